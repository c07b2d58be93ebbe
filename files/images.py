"""Open an image file as it is meant to be seen: upright, with its transparency."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_CONVERT_TO = {
    "HSV": "RGB",
    "LAB": "RGB",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
}
_RANGE_65535 = ("PNG", "PPM")
"""Formats whose 16 bits Pillow may read as mode I (32-bit integers)."""


class UnreadableImage(Exception):
    """A file is missing, damaged, or not an image; the message names it."""

    code = "R503"


class UnknownRange(ValueError):
    """The range of an image's values is unknown: 0 to 1, to 255, or another one."""


def open_image(file: Path | IO[bytes], name: str = "") -> Image.Image:
    """Return the first frame of an image file, fully read and `normalized`.

    Args:
        name: for messages; for a file that has no path.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with opened(file, name) as image:
        return normalized(image)


def check_image(path: Path) -> None:
    """Check that a file is an image, reading only its beginning.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    with opened(path) as file:
        _check_range(file.mode, file.format)


@contextlib.contextmanager
def opened(file: Path | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    """Open an image file, and raise UnreadableImage for whatever is wrong with it in the block."""
    from PIL import Image, UnidentifiedImageError

    path = name or file
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise UnreadableImage(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise UnreadableImage(f"{path} is not an image that Pillow can read.") from None
    except UnknownRange as error:
        raise UnreadableImage(f"{path} {error}. Save it as an 8-bit image.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.strerror:  # of the system, not of Pillow
            raise UnreadableImage(f"{path} cannot be read ({error.strerror}).") from error
        raise UnreadableImage(f"{path} is damaged or too large ({error}).") from error


def normalized(image: Image.Image) -> Image.Image:
    """Return a copy of an image that is upright and of mode 1, L, LA, P, RGB, RGBA or I;16.

    The EXIF orientation is applied and removed. CMYK becomes sRGB by its color profile. A profile
    that does not match the copy's color space is dropped.

    Raises:
        UnknownRange: the image has 32-bit integers or floats.
    """
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error):  # a damaged EXIF block; a damaged image is an OSError
        upright = image.copy()
        upright.info.pop("exif", None)
    _check_range(upright.mode, image.format)
    if upright.mode == "I":
        upright = upright.convert("I;16")
    if upright.mode == "CMYK":
        upright = _to_srgb(upright)
    elif upright.mode in _CONVERT_TO:
        upright = upright.convert(_CONVERT_TO[upright.mode])
    space = b"GRAY" if upright.mode[0] in "1LI" else b"RGB "
    if (upright.info.get("icc_profile") or b"")[16:20] != space:
        upright.info.pop("icc_profile", None)
    return upright


def _to_srgb(image: Image.Image) -> Image.Image:
    """Return a CMYK image in RGB: by its color profile if that is usable, else as Pillow does.

    Pillow's own formula ignores the inks: a photo's colors are off by 20 of 255 on average.
    """
    from PIL import ImageCms

    if profile := image.info.get("icc_profile"):
        # A damaged profile, one for another space, or a Pillow without LittleCMS.
        with contextlib.suppress(ImageCms.PyCMSError, ImportError):
            result = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            assert result is not None
            result.info = {**image.info, **result.info}
            return result
    return image.convert("RGB")


def _check_range(mode: str, format: str | None) -> None:
    if mode == "F" or (mode == "I" and format not in _RANGE_65535):
        kind = "float" if mode == "F" else "integer"
        raise UnknownRange(f"holds 32-bit {kind} values, whose range is unknown")


def with_8_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit gray image (0 to 65535) scaled to mode L, any other image unchanged."""
    import numpy as np
    from PIL import Image

    if not image.mode.startswith("I;16"):
        return image
    scaled = Image.fromarray((np.asarray(image) / 257.0).round().astype(np.uint8))
    scaled.info = dict(image.info)
    return scaled
