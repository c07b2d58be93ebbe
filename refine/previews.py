"""Step previews without the VAE: colors fitted to the image that is being refined.

Both the image and its latents are available, so the colors of latents need no constants: least
squares finds them, for any VAE, in about a millisecond.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .geometry import Box

_MAX_SAMPLES = 4096


def fit_colors(latents: Tensor, pixels: Tensor) -> Tensor:
    """Return the map from latents to colors (C + 1, 3): the channels and a constant.

    Args:
        latents: (1, C, ..., h, w).
        pixels: (1, 3, h cells, w cells), 0 to 1; the same image.
    """
    known = functional.avg_pool2d(pixels, pixels.shape[-1] // latents.shape[-1])[0].flatten(1).T
    rows = _with_constant(latents)
    stride = max(1, len(rows) // _MAX_SAMPLES)
    rows, known = rows[::stride], known[::stride]
    # Slightly regularized: the latents of a flat image have no full rank, which lstsq would refuse.
    ridge = 1e-4 * len(rows) * torch.eye(rows.shape[1])
    return torch.linalg.solve(rows.T @ rows + ridge, rows.T @ known)


def paint(latents: Tensor, colors: Tensor) -> Tensor:
    """Return the image of latents (1, C, ..., h, w) as pixels (1, 3, h, w), 0 to 1."""
    height, width = latents.shape[-2:]
    return (_with_constant(latents) @ colors).T.reshape(1, 3, height, width).clamp(0, 1)


class Canvas:
    """A small preview: the input at the size of its latents, with tiles painted over it.

    Args:
        pixels: (1, 3, H, W), 0 to 1.
        cell: Pixels per latent, along one side; a divisor of both sides.
    """

    def __init__(self, pixels: Tensor, cell: int) -> None:
        self._cell = cell
        self._image = functional.avg_pool2d(pixels, cell)

    def put(self, box: Box, latents: Tensor, colors: Tensor) -> None:
        """Paint a tile's latents at its position; `box` is in pixels of the padded image."""
        rows, columns = box.divided(self._cell).slices
        self._image[..., rows, columns] = paint(latents, colors)

    def image(self) -> Image.Image:
        """Return the image as it is now."""
        array = (self._image[0].movedim(0, -1).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(array.numpy())


def _with_constant(latents: Tensor) -> Tensor:
    rows = latents[0].float().cpu().flatten(1).T
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
