"""What a file tells about its image, for the placeholders of prompts."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import IO

from .captions import caption_file
from .images import opened

_ORIENTATION = 0x0112
_LONGEST_CAPTION_BYTES = 20_000


def about_file(path: Path) -> dict[str, str]:
    """Return name, folder, tags (its caption file), width and height (px, upright) of an image.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    return about_data(path, path.absolute(), caption_beside(path))


def caption_beside(path: Path) -> bytes:
    """Return what the caption file of an image holds; b"" if there is none."""
    try:
        with caption_file(path).open("rb") as file:
            return file.read(_LONGEST_CAPTION_BYTES)
    except OSError:
        return b""


def one_caption(data: bytes) -> str:
    """Return the text of a caption file as one line."""
    return " ".join(data[:_LONGEST_CAPTION_BYTES].decode("utf-8-sig", "replace").split())


def about_data(file: Path | IO[bytes], path: PurePath, caption: bytes) -> dict[str, str]:
    """Return what `about_file` does, for an image that may be no file on a disk.

    Args:
        path: has its name and folder.
        caption: what its caption file holds; b"" if there is none.

    Raises:
        UnreadableImage: the image cannot be read.
    """
    with opened(file, str(path)) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):  # turned by a quarter
            width, height = height, width
    return {
        "name": path.stem,
        "folder": path.parent.name,
        "tags": one_caption(caption),
        "width": str(width),
        "height": str(height),
    }
