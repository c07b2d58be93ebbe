"""Pixel work around the model: resize, pad, feather, stitch, keep colors.

Every function takes and returns tensors (B, C, H, W), float32, on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .geometry import Box, Size

REGION_FEATHER_PX = 16
"""The width in pixels over which a refined region fades in, from the mask's edge inwards."""
_COLOR_CELL = 8
_COLOR_SIGMA = 2.0  # in cells: 16 pixels


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Resize with an antialiased bicubic filter; the same tensor if nothing changes."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return functional.interpolate(pixels, tuple(size), mode="bicubic", antialias=True)


def enlarge(pixels: Tensor, size: Size) -> Tensor:
    """Enlarge with Lanczos; the same tensor if nothing changes."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    shape = (size.width, size.height)
    planes = [
        # Mode F keeps floats. 0 to 1 as in the input: Lanczos overshoots at edges.
        np.asarray(Image.fromarray(plane.numpy()).resize(shape, Image.Resampling.LANCZOS))
        for plane in pixels.flatten(0, 1).contiguous()
    ]
    return torch.from_numpy(np.stack(planes)).reshape(*pixels.shape[:2], *size).clamp_(0, 1)


def resize_mask(mask: Tensor, size: Size) -> Tensor:
    """Resize a mask (1, 1, H, W); the same tensor if nothing changes."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    return functional.interpolate(mask, tuple(size), mode="bilinear", align_corners=False)


def pad(pixels: Tensor, size: Size) -> Tensor:
    """Extend an image to the right and downwards by mirroring, up to `size`."""
    while tuple(pixels.shape[-2:]) != tuple(size):
        height, width = pixels.shape[-2:]
        # A mirror image can be no larger than the image, so a thin one takes several rounds.
        down, right = min(size.height - height, height), min(size.width - width, width)
        if down:
            pixels = torch.cat([pixels, pixels[..., height - down :, :].flip(-2)], dim=-2)
        if right:
            pixels = torch.cat([pixels, pixels[..., :, width - right :].flip(-1)], dim=-1)
    return pixels


def join_tiles(tiles: list[Tensor], boxes: list[Box]) -> Tensor:
    """Join overlapping tiles; in every overlap one fades into the other.

    Args:
        tiles: (B, C, h, w) each, all of one size.
        boxes: The position of each tile; together they cover the image.
    """
    if len(tiles) == 1:
        return tiles[0]
    height, width = max(box.bottom for box in boxes), max(box.right for box in boxes)
    total = tiles[0].new_zeros(*tiles[0].shape[:2], height, width)
    weights = tiles[0].new_zeros(1, 1, height, width)
    for tile, box in zip(tiles, boxes, strict=True):
        rows, columns = box.slices
        fade = _fade(box, boxes, height, width)
        total[..., rows, columns] += tile * fade
        weights[..., rows, columns] += fade
    return total / weights


def keep_colors(refined: Tensor, original: Tensor) -> Tensor:
    """Give the refined image the low frequencies of the original (its colors and light).

    This reverts changes larger than about 16 pixels; finer detail stays refined.
    """
    change = original - refined
    height, width = change.shape[-2:]
    cells = Size(-(-height // _COLOR_CELL), -(-width // _COLOR_CELL))
    coarse = functional.adaptive_avg_pool2d(change, (cells.height, cells.width))
    smooth = _blur(coarse, _COLOR_SIGMA)
    correction = functional.interpolate(
        smooth, (height, width), mode="bilinear", align_corners=False
    )
    return correction.add_(refined)


def feather(mask: Tensor) -> Tensor:
    """Return how much of the refined image shows: 0 outside the mask, fading in inside it.

    The fade runs inwards from the mask's edge (not from the image's), over 16 pixels or as
    far as the mask is thick, so that a thin mask still shows its middle in full.

    Args:
        mask: (B, 1, H, W), 0 to 1.
    """
    inside = (mask > 0).to(mask.dtype)
    layers = [inside]
    while len(layers) < REGION_FEATHER_PX:
        eroded = _erode(layers[-1])
        # Nothing left to erode: the mask is thinner than the fade is wide.
        if not bool(eroded.any()):
            break
        layers.append(eroded)
    return mask * torch.stack(layers).mean(dim=0)


def marked_box(mask: Tensor) -> Box | None:
    """Return the smallest box around everything marked in a mask (1, 1, H, W), or None."""
    marked = mask[0, 0] > 0
    rows, columns = (
        marked.any(dim=1).nonzero().flatten(),
        marked.any(dim=0).nonzero().flatten(),
    )
    if rows.numel() == 0:
        return None
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _erode(inside: Tensor) -> Tensor:
    # Outside the image counts as inside the mask: a mask that reaches the edge must not fade there.
    outside = functional.pad(1 - inside, (1, 1, 1, 1), value=0.0)
    return 1 - functional.max_pool2d(outside, kernel_size=3, stride=1)


def _fade(box: Box, boxes: list[Box], height: int, width: int) -> Tensor:
    """Return a tile's weights (1, 1, h, w): 1 inside, decreasing towards neighbors, never 0."""
    rows = _ramp(box.top, box.bottom, {(b.top, b.bottom) for b in boxes}, height)
    columns = _ramp(box.left, box.right, {(b.left, b.right) for b in boxes}, width)
    return (rows[:, None] * columns[None, :])[None, None]


def _ramp(start: int, end: int, spans: set[tuple[int, int]], length: int) -> Tensor:
    ramp = torch.ones(end - start)
    before = max((other_end for other, other_end in spans if other < start), default=start)
    after = min((other for other, _ in spans if other > start), default=end)
    if start > 0 and before > start:
        ramp[: before - start] *= _rise(before - start)
    if end < length and after < end:
        ramp[after - start :] *= _rise(end - after).flip(0)
    return ramp


def _rise(length: int) -> Tensor:
    """Return half a cosine wave from above 0 to below 1."""
    steps = (torch.arange(length) + 0.5) / length
    return 0.5 - 0.5 * torch.cos(torch.pi * steps)


def _blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; the values at the edge continue beyond it."""
    reach = int(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=pixels.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    padded = functional.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(across, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
