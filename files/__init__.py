"""Folders of pictures and the captions beside them: plain Python, never outside a given folder."""

from .captions import (
    EXISTING,
    caption_file,
    caption_files,
    one_line,
    same_name_message,
    write_caption,
)
from .folders import OutsideFolder, find_pictures, inside, subfolders
from .pictures import UnreadablePicture, open_picture

__all__ = [
    "EXISTING",
    "OutsideFolder",
    "UnreadablePicture",
    "caption_file",
    "caption_files",
    "find_pictures",
    "inside",
    "one_line",
    "open_picture",
    "same_name_message",
    "subfolders",
    "write_caption",
]
