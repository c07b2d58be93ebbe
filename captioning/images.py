"""Encode an image for sending: small enough, and in a format that every Ollama release reads."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps

from ..files import UnknownRange, UnreadableImage, normalized, open_image, with_8_bits
from ..llm.errors import UnusableImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SIDE_PX = 1344
"""The default longest side of sent images: 48 patches of 28 px, more than most models use."""
RETRY_SIDE_PX = 1024
"""Longest side in the single retry after the server reports that the context is too long."""
MIN_SIDE_PX = 32
"""Shorter sides are padded: models that merge patches of 28 px fail on anything smaller."""
PNG_SIDE_PX = 256
"""Up to this side PNG is small, and JPEG's blocks would be large relative to the content."""
JPEG_QUALITY = 95


class EncodedImage(NamedTuple):
    """An image ready to send: base64 of a PNG or JPEG file, and its size (width, height) in px."""

    base64: str
    size: tuple[int, int]
    format: str


def file_source(path: Path) -> Callable[[], Image.Image]:
    """Return what opens an image file, upright, when its turn comes; it may raise UnusableImage."""

    def load() -> Image.Image:
        try:
            return open_image(path)
        except UnreadableImage as error:
            raise UnusableImage(str(error)) from error

    return load


def encode_image(
    image: Image.Image | NDArray[np.uint8], *, max_side: int = MAX_SIDE_PX, lossless: bool = False
) -> EncodedImage:
    """Return `image` encoded for Ollama.

    A PIL image is turned upright by its EXIF orientation. Transparent parts become white. The
    aspect ratio is kept; nothing is enlarged.

    Args:
        image: PIL image of any mode, or uint8 array of shape (height, width, 1 | 3 | 4).
        max_side: longest side in px; larger images are reduced with Lanczos.
        lossless: PNG whatever the size.

    Raises:
        ValueError: `max_side` is below 32, the array has another shape or dtype, or a PIL image
            holds 32-bit values.
    """
    if max_side < MIN_SIDE_PX:
        raise ValueError(f"max_image_side is {max_side}, but must be at least {MIN_SIDE_PX} px.")
    prepared = _opaque(_read(image) if isinstance(image, Image.Image) else _from_array(image))
    longest = max(prepared.size)
    if longest > max_side:
        width, height = (max(1, round(side * max_side / longest)) for side in prepared.size)
        # Reducing by a whole factor first changes little and is several times faster.
        prepared = prepared.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    prepared = _padded(prepared)
    png = lossless or max(prepared.size) <= PNG_SIDE_PX
    file = io.BytesIO()
    if png:
        prepared.save(file, "PNG", compress_level=1)
    else:
        prepared.save(file, "JPEG", quality=JPEG_QUALITY)
    return EncodedImage(
        base64=base64.b64encode(file.getbuffer()).decode("ascii"),
        size=prepared.size,
        format="PNG" if png else "JPEG",
    )


def _read(image: Image.Image) -> Image.Image:
    try:
        return with_8_bits(normalized(image))
    except UnknownRange as error:
        raise ValueError(f"The image {error}. Save it as an 8-bit image.") from None


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if str(array.dtype) != "uint8" or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(
            f"An image array must be uint8 of shape (height, width, 1 | 3 | 4), not {array.dtype} "
            f"of shape {tuple(array.shape)}."
        )
    if 0 in array.shape:
        raise ValueError(f"An image of {array.shape[1]} x {array.shape[0]} px has no pixels.")
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "L"):
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _padded(image: Image.Image) -> Image.Image:
    width, height = (max(side, MIN_SIDE_PX) for side in image.size)
    if (width, height) == image.size:
        return image
    return ImageOps.pad(image, (width, height), color="white") if min(image.size) > 0 else image
