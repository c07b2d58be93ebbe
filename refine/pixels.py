"""Images of three kinds (PIL, numpy, tensor) in, the same kind out; floats in between.

Between the two edges an image is a tensor (B, C, H, W), float32, 0 to 1, on the CPU. Arrays and
tensors make no detour through 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import UnknownRange, normalized, with_8_bits
from .errors import ImageError

Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)

NEUTRAL = 0.5
"""What stands behind transparent pixels while the model works: mid-gray."""
_MAX_VALUE = 2.0
# Modes of the input that the output has too; for the others it is RGB or RGBA.
_BACK_TO = {"L": "L", "LA": "LA", "1": "L"}


@dataclass(frozen=True)
class Source:
    """An image taken apart.

    Args:
        rgb: (B, 3, H, W) float32; what the image holds, untouched by its alpha.
        alpha: (B, 1, H, W) float32, or None for an opaque image.
        restore: Makes an image of the original kind from new rgb (B, 3, h, w) and alpha. Where
            `kept` (B, 1, h, w) is True, and for the alpha of an image of unchanged size, the
            original's own values are used, bit for bit.
    """

    rgb: Tensor
    alpha: Tensor | None
    restore: Callable[[Tensor, Tensor | None, Tensor | None], Image.Image | np.ndarray | Tensor]

    @cached_property
    def composite(self) -> Tensor:
        """The image over mid-gray: what the model sees, (B, 3, H, W)."""
        if self.alpha is None:
            return self.rgb
        return self.rgb * self.alpha + NEUTRAL * (1 - self.alpha)


def to_planes(image: Image.Image | np.ndarray | Tensor) -> Source:
    """Turn an image into floats, and remember how to turn floats into such an image.

    Args:
        image: A PIL image; or an array or tensor (H, W, C) or (B, H, W, C) with 1, 3 or 4
            channels, float 0 to 1 (or uint8 0 to 255).

    Raises:
        ImageError: another type, shape or range, an empty image, or NaN in it.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise ImageError(
        f"An image is a PIL image, a numpy array or a torch tensor, not {type(image).__name__}."
    )


def picture_shape(image: Image.Image | np.ndarray | Tensor) -> tuple[int, int, int]:
    """Check an image, and return how many it holds, their height and their width.

    Args:
        image: As `to_planes` takes it.

    Raises:
        ImageError: as `to_planes` does.
    """
    if isinstance(image, Image.Image):
        upright = _read_pil(image)  # a damaged file is found now
        return 1, upright.height, upright.width
    count, _, height, width = to_planes(image).rgb.shape
    return count, height, width


def read_mask(
    mask: Image.Image | np.ndarray | Tensor, count: int, height: int, width: int
) -> Tensor:
    """Turn a mask into a tensor (count, 1, H, W), float32, 0 (keep) to 1 (refine).

    Args:
        mask: A PIL image (its gray value); or an array or tensor (H, W), (B, H, W) or
            (B, H, W, 1), float 0 to 1 or bool.
        count: How many images the mask is for; one mask serves them all.
        height: The images' height; the mask must have the same size.
        width: The images' width.

    Raises:
        ImageError: the mask has another shape, size or range.
    """
    if isinstance(mask, Image.Image):
        gray = _read_pil(mask).convert("L")
        values = torch.from_numpy(np.asarray(gray, np.float32) / 255)
    elif isinstance(mask, (np.ndarray, Tensor)):
        values = torch.as_tensor(mask).detach().to("cpu", torch.float32)
    else:
        raise ImageError(f"A mask is an image, array or tensor, not {type(mask).__name__}.")
    shape = tuple(values.shape)
    if values.ndim == 4 and shape[-1] == 1:
        values = values[..., 0]
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ImageError(f"A mask has the shape (H, W), (B, H, W) or (B, H, W, 1), not {shape}.")
    if values.shape[1:] != (height, width):
        raise ImageError(
            f"The mask is {values.shape[2]} x {values.shape[1]} px, but the image is {width} x "
            f"{height} px: scale the mask to the size of the image."
        )
    if values.shape[0] not in (1, count):
        images = "1 image" if count == 1 else f"{count} images"
        raise ImageError(
            f"{values.shape[0]} masks came with {images}: pass one mask, or one for each image."
        )
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ImageError("A mask's values run from 0 (keep) to 1 (refine); this one's do not.")
    return values[:, None].expand(count, 1, height, width)


def _from_pil(image: Image.Image) -> Source:
    image = _read_pil(image)
    original = np.asarray(_as_mode(image, "RGBA" if image.has_transparency_data else "RGB"))

    def restore(rgb: Tensor, alpha: Tensor | None, kept: Tensor | None) -> Image.Image:
        array = _to_bytes(_join(rgb, alpha))[0]
        if array.shape == original.shape:
            _put_back(array[None], original[None], kept)
        result = Image.fromarray(array)
        result = _as_mode(result, _BACK_TO.get(image.mode, result.mode))
        result.info = {k: v for k, v in image.info.items() if k in ("exif", "icc_profile", "dpi")}
        return result

    floats = original.astype(np.float32)
    floats /= 255
    rgb, alpha = _split(torch.from_numpy(floats)[None])
    return Source(rgb, alpha, restore)


def _read_pil(image: Image.Image) -> Image.Image:
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
    """Convert where it is needed; PIL would copy in any case."""
    return image if image.mode == mode else image.convert(mode)


def _from_array(image: np.ndarray) -> Source:
    if not (np.issubdtype(image.dtype, np.floating) or image.dtype == np.uint8):
        raise ImageError(_type_message("array", str(image.dtype)))
    # ascontiguousarray: from_numpy refuses arrays that are read backwards.
    source = _from_tensor(torch.from_numpy(np.ascontiguousarray(image)))

    def restore(rgb: Tensor, alpha: Tensor | None, kept: Tensor | None) -> np.ndarray:
        result = source.restore(rgb, alpha, kept)
        assert isinstance(result, Tensor)
        return result.numpy()

    return Source(source.rgb, source.alpha, restore)


def _from_tensor(image: Tensor) -> Source:
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ImageError(_type_message("tensor", str(image.dtype).removeprefix("torch.")))
    _check_shape(tuple(image.shape))
    original = (image if image.ndim == 4 else image[None]).detach()
    floats = original.to("cpu", torch.float32)
    if image.dtype == torch.uint8:
        floats = floats / 255
    _check_range(floats)

    def restore(rgb: Tensor, alpha: Tensor | None, kept: Tensor | None) -> Tensor:
        result = _join(rgb, alpha).contiguous()
        if original.shape[-1] == 1:
            result = result.mean(dim=-1, keepdim=True)
        if image.dtype == torch.uint8:
            result = torch.from_numpy(_to_bytes(result))
        result = result.to(original.device, original.dtype)
        if result.shape == original.shape:
            _put_back(result, original, None if kept is None else kept.to(original.device))
        return result if image.ndim == 4 else result[0]

    rgb, alpha = _split(floats)
    return Source(rgb, alpha, restore)


def _split(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split BHWC into rgb (B, 3, H, W) and alpha (B, 1, H, W)."""
    planes = pixels.movedim(-1, 1)
    if planes.shape[1] == 1:
        return planes.expand(-1, 3, -1, -1), None
    return planes[:, :3], planes[:, 3:] if planes.shape[1] == 4 else None


def _join(rgb: Tensor, alpha: Tensor | None) -> Tensor:
    """Join rgb and alpha (B, C, H, W) to BHWC."""
    planes = rgb if alpha is None else torch.cat([rgb, alpha], dim=1)
    return planes.movedim(1, -1)


def _put_back(result: Any, original: Any, kept: Tensor | None) -> None:
    """Copy the original's alpha, and its pixels where `kept` is True, into a BHWC result."""
    if original.shape[-1] == 4:
        result[..., 3] = original[..., 3]
    if kept is not None:
        chosen = kept[:, 0] if isinstance(result, Tensor) else kept[:, 0].numpy()
        result[chosen] = original[chosen]


def _to_bytes(pixels: Tensor) -> np.ndarray:
    # Put in order (channels last) as bytes, which are a quarter of the floats.
    return pixels.clamp(0, 1).mul_(255).round_().to(torch.uint8).contiguous().numpy()


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4) or shape[-1] not in (1, 3, 4):
        hint = ""
        if len(shape) in (3, 4) and shape[-3] in (1, 3, 4):
            hint = " Its channels come first: move them last with movedim(-3, -1)."
        raise ImageError(
            "An array or tensor is (H, W, C) or (B, H, W, C) with 1, 3 or 4 channels, "
            f"not {shape}.{hint}"
        )
    if 0 in shape:
        raise ImageError(f"The image is empty: its shape is {shape}.")


def _check_range(floats: Tensor) -> None:
    low, high = floats.aminmax()
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ImageError("The image holds NaN or infinity, so it cannot be refined.")
    # Resizers overshoot a little, which does no harm; 0 to 255 or a latent is a mistake.
    if low < -1.0 or high > _MAX_VALUE:
        raise ImageError(
            f"A float image runs from 0 to 1, this one from {low:g} to {high:g}: scale it first."
        )


def _type_message(kind: str, dtype: str) -> str:
    return f"An image {kind} holds floats from 0 to 1 (or uint8), not {dtype}: convert it first."
