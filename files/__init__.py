"""Folders of pictures and the captions beside them: plain Python, never outside a given folder."""

from .captions import EXISTING, caption_file, write_caption
from .folders import OutsideFolder, find_pictures, inside, subfolders
from .pictures import (
    UnknownRange,
    UnreadablePicture,
    check_picture,
    normalized,
    open_picture,
    with_8_bits,
)

__all__ = [
    "EXISTING",
    "OutsideFolder",
    "UnknownRange",
    "UnreadablePicture",
    "caption_file",
    "check_picture",
    "find_pictures",
    "inside",
    "normalized",
    "open_picture",
    "subfolders",
    "with_8_bits",
    "write_caption",
]
