"""Folders of pictures and the captions beside them: plain Python, never outside a given folder."""

from .captions import EXISTING, caption_file, write_caption
from .folders import OutsideFolder, find_pictures, inside, subfolders
from .pictures import UnreadablePicture, open_picture

__all__ = [
    "EXISTING",
    "OutsideFolder",
    "UnreadablePicture",
    "caption_file",
    "find_pictures",
    "inside",
    "open_picture",
    "subfolders",
    "write_caption",
]
