"""Convert images of three types (PIL, numpy, tensor) to floats and back to the same type.

The pixels of a caller's image keep their own type, (1, H, W, C). For the model they are planes:
tensors (1, C, H, W), float32, 0 to 1, on the CPU. Arrays and tensors are never converted to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import UnknownRange, normalized, with_8_bits
from .errors import ImageError

AnyImage = TypeVar("AnyImage", Image.Image, np.ndarray, Tensor)

BACKGROUND = 0.5
"""The gray behind transparent pixels in the model's input."""
_MIN_VALUE, _MAX_VALUE = -1.0, 2.0
"""Resizing overshoots a little, which is harmless; 0 to 255 or latents are a mistake."""
# Modes of the input that the output keeps; for the others it is RGB or RGBA.
_BACK_TO = {"L": "L", "LA": "LA", "1": "L"}


class Pixels(NamedTuple):
    """The pixels of one image or batch that a caller passed.

    Attributes:
        rows: Each of its images, (1, H, W, C) with C 1, 3 or 4, in the caller's dtype and on its
            device: a view if possible.
        join: Makes an object of the caller's type from as many tensors (1, h, w, C).
    """

    rows: list[Tensor]
    join: Callable[[list[Tensor]], Image.Image | np.ndarray | Tensor]


@dataclass(frozen=True)
class Planes:
    """One image as floats, 0 to 1.

    Attributes:
        rgb: (1, 3, H, W); the colors, not multiplied by alpha.
        alpha: (1, 1, H, W), or None for an opaque image.
    """

    rgb: Tensor
    alpha: Tensor | None

    @cached_property
    def composite(self) -> Tensor:
        """The image over gray, (1, 3, H, W): the model's input."""
        if self.alpha is None:
            return self.rgb
        return self.rgb * self.alpha + BACKGROUND * (1 - self.alpha)


def read_image(image: Image.Image | np.ndarray | Tensor) -> Pixels:
    """Return an image's pixels, unconverted; `check_values` checks them.

    Args:
        image: A PIL image; or an array or tensor (H, W, C) or (B, H, W, C) with 1, 3 or 4
            channels, float 0 to 1 (or uint8 0 to 255).

    Raises:
        ImageError: another type or shape, or an image without pixels.
    """
    if isinstance(image, Image.Image):
        return _read_pil(image)
    if isinstance(image, np.ndarray):
        return _read_array(image)
    if isinstance(image, Tensor):
        return _read_tensor(image)
    raise ImageError(
        "An image must be a PIL image, a numpy array or a torch tensor, not "
        f"{type(image).__name__}."
    )


def count_images(image: object) -> int:
    """Return how many images an entry of a caller's list has, even if it cannot be read."""
    return len(image) if isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4 else 1


def check_values(pixels: Tensor) -> None:
    """Check the values of an image, (1, H, W, C).

    Raises:
        ImageError: NaN or infinity, or floats far from 0 to 1.
    """
    if pixels.dtype == torch.uint8:
        return
    low, high = pixels.aminmax()
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ImageError("The image contains NaN or infinity, so it cannot be refined.")
    if low < _MIN_VALUE or high > _MAX_VALUE:
        raise ImageError(
            f"A float image must be from 0 to 1, but this one is from {low:g} to {high:g}: scale "
            "it first."
        )


def to_planes(pixels: Tensor) -> Planes:
    """Convert an image, (1, H, W, C), to floats."""
    floats = pixels.to("cpu", torch.float32)
    if pixels.dtype == torch.uint8:
        floats = floats / 255
    planes = floats.movedim(-1, 1)
    if planes.shape[1] == 1:
        return Planes(planes.expand(-1, 3, -1, -1), None)
    return Planes(planes[:, :3], planes[:, 3:] if planes.shape[1] == 4 else None)


def from_planes(planes: Planes, like: Tensor, mask: Tensor | None) -> Tensor:
    """Convert floats back to pixels of an image's own type.

    Args:
        planes: Of any size; with alpha if `like` has it.
        like: The original image, (1, H, W, C). If the size is the same, its alpha is copied bit for
            bit.
        mask: (1, 1, H, W); where it is 0 the pixels of `like` are copied bit for bit.

    Returns:
        (1, h, w, C), a new tensor, in the type and on the device of `like`.
    """
    rgb, alpha = planes.rgb, planes.alpha
    pixels = (rgb if alpha is None else torch.cat([rgb, alpha], dim=1)).movedim(1, -1)
    if like.shape[-1] == 1:
        pixels = pixels.contiguous().mean(dim=-1, keepdim=True)
    if like.dtype == torch.uint8:
        pixels = pixels.clamp(0, 1).mul_(255).round_()
    # The order of the channels changes after the type: bytes are a quarter of the floats.
    result = pixels.to(like.device, like.dtype).contiguous()
    if result.shape == like.shape:
        if like.shape[-1] == 4:
            result[..., 3] = like[..., 3]
        if mask is not None:
            kept = (mask[:, 0] == 0).to(like.device)
            result[kept] = like[kept]
    return result


def read_mask(
    mask: Image.Image | np.ndarray | Tensor, count: int, height: int, width: int
) -> Tensor:
    """Turn a mask into a tensor (count, 1, H, W), float32, 0 (keep) to 1 (refine).

    Args:
        mask: A PIL image (its gray value); or an array or tensor (H, W), (B, H, W) or
            (B, H, W, 1), float 0 to 1 or bool.
        count: How many images the mask is for; one mask is used for all of them.
        height: The images' height; the mask must have the same size.
        width: The images' width.

    Raises:
        ImageError: the mask has another shape, size or range.
    """
    if isinstance(mask, Image.Image):
        gray = _upright(mask).convert("L")
        values = torch.from_numpy(np.asarray(gray, np.float32) / 255)
    elif isinstance(mask, (np.ndarray, Tensor)):
        values = torch.as_tensor(mask).detach().to("cpu", torch.float32)
    else:
        raise ImageError(f"A mask must be an image, array or tensor, not {type(mask).__name__}.")
    shape = tuple(values.shape)
    if values.ndim == 4 and shape[-1] == 1:
        values = values[..., 0]
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ImageError(
            f"A mask must have the shape (H, W), (B, H, W) or (B, H, W, 1), not {shape}."
        )
    if values.shape[1:] != (height, width):
        raise ImageError(
            f"The mask is {values.shape[2]} x {values.shape[1]} px, but the image is {width} x "
            f"{height} px: scale the mask to the size of the image."
        )
    if values.shape[0] not in (1, count):
        images = "1 image" if count == 1 else f"{count} images"
        raise ImageError(
            f"There are {values.shape[0]} masks for {images}: pass one mask, or one for each image."
        )
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ImageError("A mask must be from 0 (keep) to 1 (refine): scale its values first.")
    return values[:, None].expand(count, 1, height, width)


def _read_pil(image: Image.Image) -> Pixels:
    upright = _upright(image)
    mode = upright.mode
    info: dict[str | tuple[int, int], Any] = {
        k: v for k, v in upright.info.items() if k in ("exif", "icc_profile", "dpi")
    }
    own = _as_mode(upright, "RGBA" if upright.has_transparency_data else "RGB")

    def join(rows: list[Tensor]) -> Image.Image:
        result = Image.fromarray(rows[0][0].numpy())
        result = _as_mode(result, _BACK_TO.get(mode, result.mode))
        result.info = info
        return result

    return Pixels([torch.from_numpy(np.array(own))[None]], join)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image upright, with 8 bits a channel; see docs/python-api.md for each mode."""
    if image.width == 0 or image.height == 0:
        raise ImageError("The image is empty: it has no pixels.")
    try:
        return with_8_bits(normalized(image))
    except UnknownRange as error:
        raise ImageError(
            f"The image {error} (mode {image.mode}). Convert it to mode L or RGB, or pass an "
            "array of floats from 0 to 1."
        ) from None


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image if necessary; PIL would always copy."""
    return image if image.mode == mode else image.convert(mode)


def _read_array(image: np.ndarray) -> Pixels:
    if not (np.issubdtype(image.dtype, np.floating) or image.dtype == np.uint8):
        raise ImageError(_type_message("array", str(image.dtype)))
    # ascontiguousarray: from_numpy refuses arrays that are read backwards.
    pixels = _read_tensor(torch.from_numpy(np.ascontiguousarray(image)))

    def join(rows: list[Tensor]) -> np.ndarray:
        result = pixels.join(rows)
        assert isinstance(result, Tensor)
        return result.numpy()

    return Pixels(pixels.rows, join)


def _read_tensor(image: Tensor) -> Pixels:
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ImageError(_type_message("tensor", str(image.dtype).removeprefix("torch.")))
    _check_shape(tuple(image.shape))
    is_batch = image.ndim == 4

    def join(rows: list[Tensor]) -> Tensor:
        result = rows[0] if len(rows) == 1 else torch.cat(rows)
        return result if is_batch else result[0]

    return Pixels(list((image if is_batch else image[None]).detach().split(1)), join)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4):
        hint = ""
        if len(shape) in (3, 4) and shape[-3] in (1, 3, 4):
            hint = " Its channels come first: move them last with movedim(-3, -1)."
        raise ImageError(
            "An array or tensor must be (H, W, C) or (B, H, W, C) with 1, 3 or 4 channels, "
            f"not {shape}.{hint}"
        )
    if 0 in shape:
        raise ImageError(f"The image is empty: its shape is {shape}.")


def _type_message(kind: str, dtype: str) -> str:
    return f"An image {kind} must be floats from 0 to 1 (or uint8), not {dtype}: convert it first."
