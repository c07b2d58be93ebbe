"""Work on texts that needs neither ComfyUI nor a server: wildcards, file names, instructions.

The names below are imported on first use: ComfyUI needs few of these modules when it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .filenames import safe_filename as safe_filename
    from .instructions import Preset as Preset
    from .instructions import presets as presets
    from .instructions import ready_instructions as ready_instructions
    from .wildcard_files import WildcardFiles as WildcardFiles
    from .wildcards import Expanded as Expanded
    from .wildcards import expand as expand
    from .wildcards import without_comments as without_comments

_HOMES = {
    "Expanded": "wildcards",
    "Preset": "instructions",
    "WildcardFiles": "wildcard_files",
    "expand": "wildcards",
    "presets": "instructions",
    "ready_instructions": "instructions",
    "safe_filename": "filenames",
    "without_comments": "wildcards",
}

__all__ = [
    "Expanded",
    "Preset",
    "WildcardFiles",
    "expand",
    "presets",
    "ready_instructions",
    "safe_filename",
    "without_comments",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
