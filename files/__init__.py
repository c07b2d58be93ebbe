"""Folders of images and the captions beside them: plain Python, never outside a given folder."""

from .captions import (
    EXISTING,
    caption_file,
    caption_files,
    same_name_message,
    write_caption,
)
from .folders import OutsideFolder, count_links_out, find_pictures, inside, subfolders
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
    "caption_files",
    "check_picture",
    "count_links_out",
    "find_pictures",
    "inside",
    "normalized",
    "open_picture",
    "same_name_message",
    "subfolders",
    "with_8_bits",
    "write_caption",
]
