"""Open a picture file the way that a person sees it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


class UnreadablePicture(Exception):
    """A picture file is not there, damaged, or no picture; the sentence names it."""


def open_picture(path: Path) -> Image.Image:
    """Return a picture, upright, its first frame, fully read.

    Raises:
        UnreadablePicture: it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise UnreadablePicture(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{path} is not an image that Pillow can read.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"{path} is damaged or too large ({error}).") from error
