"""Folders of images and their caption files; names never lead outside a given folder."""

from .about import about_data, about_file, caption_beside, one_caption
from .captions import (
    EXISTING,
    NameTaken,
    NotWritten,
    caption_file,
    caption_files,
    same_name_message,
    write_caption,
)
from .folders import (
    NoFolder,
    NoImages,
    OutsideFolder,
    count_links_out,
    find_images,
    inside,
    subfolders,
)
from .images import (
    UnknownRange,
    UnreadableImage,
    check_image,
    normalized,
    open_image,
    with_8_bits,
)
from .words import read_words

__all__ = [
    "EXISTING",
    "NameTaken",
    "NoFolder",
    "NoImages",
    "NotWritten",
    "OutsideFolder",
    "UnknownRange",
    "UnreadableImage",
    "about_data",
    "about_file",
    "caption_beside",
    "caption_file",
    "caption_files",
    "check_image",
    "count_links_out",
    "find_images",
    "inside",
    "normalized",
    "one_caption",
    "open_image",
    "read_words",
    "same_name_message",
    "subfolders",
    "with_8_bits",
    "write_caption",
]
