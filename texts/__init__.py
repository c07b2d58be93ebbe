"""Work on texts that needs neither ComfyUI nor a server: wildcards, file names, instructions."""

from .filenames import safe_filename
from .instructions import ready_instructions
from .wildcard_files import WildcardFiles
from .wildcards import Expanded, expand, without_comments

__all__ = [
    "Expanded",
    "WildcardFiles",
    "expand",
    "ready_instructions",
    "safe_filename",
    "without_comments",
]
