"""What a file tells about its image, for the placeholders of prompts."""

from __future__ import annotations

from pathlib import Path

from .captions import caption_file
from .images import opened

_ORIENTATION = 0x0112
_LONGEST_CAPTION_BYTES = 20_000


def about_file(path: Path) -> dict[str, str]:
    """Return name, folder, tags (its caption file), width and height (px, upright) of an image.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with opened(path) as image:
        width, height = image.size
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):  # turned by a quarter
            width, height = height, width
    return {
        "name": path.stem,
        "folder": path.absolute().parent.name,
        "tags": _caption(caption_file(path)),
        "width": str(width),
        "height": str(height),
    }


def _caption(file: Path) -> str:
    try:
        with file.open("rb") as opened_file:
            data = opened_file.read(_LONGEST_CAPTION_BYTES)
    except OSError:  # there is none
        return ""
    return " ".join(data.decode("utf-8-sig", "replace").split())
