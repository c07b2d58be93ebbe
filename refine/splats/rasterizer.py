"""Render a splat: linear in the colors, forward and transposed.

A pixel's color is the sum of the Gaussians' colors, each with the weight alpha x transmittance
(Kerbl et al., 2023, equation 2). The weights depend on geometry, opacity and camera alone, so
they are computed once for each view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .cameras import Camera
from .projection import Projection, project
from .splat import Splat

MAX_ALPHA = 0.999
MIN_WEIGHT = 1e-4
"""Smaller weights are dropped: they change no 8-bit image."""
_MAX_BAND_PAIRS = 2_000_000
"""So many pairs of pixel and Gaussian are computed at a time: about 200 MB."""


class Rows(NamedTuple):
    """A sparse matrix, row by row (CSR).

    Attributes:
        starts: (R + 1,), int32: where the entries of each row begin, and the end of the last.
        columns: (M,), int32.
        values: (M,), float32.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product (R, C) with a dense matrix, float32."""
        # This is what embedding_bag computes, on all devices; torch's own CSR tensors are in beta.
        return functional.embedding_bag(
            self.columns,
            dense,
            self.starts,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=True,
        )


@dataclass(frozen=True)
class ViewWeights:
    """The weight of each Gaussian in each pixel of a view: a sparse matrix A.

    Attributes:
        rows: A: (height x width, N). No weight is below 0, and no row adds up to more than 1.
        height: Of the view in pixels.
        width: Of the view in pixels.
        count: N, how many Gaussians the splat has.
    """

    rows: Rows
    height: int
    width: int
    count: int

    def render(self, colors: Tensor) -> Tensor:
        """Return A c: the image (H, W, C) that colors (N, C) give, in the space of the colors."""
        return (self.rows @ colors).reshape(self.height, self.width, -1)

    def gather(self, image: Tensor) -> Tensor:
        """Return A' r: for each Gaussian the weighted sum (N, C) of an image (H, W, C)."""
        return self._transposed @ image.reshape(self.height * self.width, -1)

    @cached_property
    def coverage(self) -> Tensor:
        """How much of each pixel the splat covers: (H, W, 1), 0 to 1."""
        return self.render(self.rows.values.new_ones(self.count, 1))

    @cached_property
    def _transposed(self) -> Rows:
        """The same matrix by Gaussian: 8 bytes an entry more, for products 50 times as fast."""
        starts, gaussians, weights = self.rows
        pixels = torch.arange(len(starts) - 1, dtype=torch.int32, device=starts.device)
        pixels = pixels.repeat_interleave(starts.diff())
        gaussians, order = gaussians.sort(stable=True)
        return Rows(_starts(gaussians, self.count), pixels[order], weights[order])


def view_weights(
    splat: Splat, camera: Camera, check: Callable[[], None] = lambda: None
) -> ViewWeights:
    """Return the weights of a splat's Gaussians in a camera's view.

    Args:
        splat: On a device that has float64 (CPU or CUDA).
        camera: The view.
        check: Called before each band of rows; what it raises reaches the caller.
    """
    projected = project(splat, camera)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for first, last in _bands(projected, camera.height):
        check()
        owners, pixels, alphas = _pairs(projected, first, last, camera.width)
        parts.append(_blend(owners, pixels, alphas))
    pixels, owners, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    starts = _starts(pixels, camera.height * camera.width)
    return ViewWeights(
        rows=Rows(starts, projected.indices.int()[owners], weights),
        height=camera.height,
        width=camera.width,
        count=len(splat),
    )


def _starts(ordered: Tensor, count: int) -> Tensor:
    """Return where each of `count` values begins in an ascending list of them, and its end."""
    values = torch.arange(count + 1, dtype=ordered.dtype, device=ordered.device)
    return torch.searchsorted(ordered, values, out_int32=True)


def _bands(projected: Projection, height: int) -> Iterator[tuple[int, int]]:
    """Yield bands of rows (first, one after the last) that have few enough pairs."""
    changes = projected.widths.new_zeros(height + 1)
    changes.index_add_(0, projected.top, projected.widths)
    changes.index_add_(0, projected.top + projected.heights, -projected.widths)
    pairs = changes.cumsum(0)[:height].tolist()
    first, total = 0, 0
    for row, count in enumerate(pairs):
        if row > first and total + count > _MAX_BAND_PAIRS:
            yield first, row
            first, total = row, 0
        total += count
    yield first, height


def _pairs(
    projected: Projection, first: int, last: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Gaussian, pixel and alpha of each pair in a band of rows, the nearest first.

    In each row the pixels with q <= reach, a quadratic inequality, are an interval.
    """
    bottoms = (projected.top + projected.heights).clamp_max(last)
    rows = (bottoms - projected.top.clamp_min(first)).clamp_min(0)
    owners, step = _spread(rows)
    row = projected.top.clamp_min(first)[owners] + step
    v = (row - projected.centers[owners, 1]).float()
    reach = projected.reach[owners]
    a, b, c = projected.numerator[:, owners].unbind()
    e, f, g, h, i = projected.denominator[:, owners].unbind()
    square = a - reach * g
    half = (b - reach * h) * v - reach * e
    free = (c - reach * i) * v * v - reach * (1 + 2 * f * v)
    root = (half * half - square * free).clamp_min(0).sqrt()
    center = projected.centers[owners, 0]
    left = (center + (-half - root) / square).ceil().clamp_min(0).long()
    right = (center + (root - half) / square).floor().clamp_max(width - 1).long()

    spans, step = _spread((right - left + 1).clamp_min(0))
    column = left[spans] + step
    u = (column - center[spans]).float()
    # q = (a u^2 + 2 b uv + c v^2) / ..., with what depends on the row alone computed once for it
    numerator = a[spans] * u + (2 * b * v)[spans]
    numerator = numerator * u + (c * v * v)[spans]
    denominator = g[spans] * u + (2 * (e + h * v))[spans]
    denominator = denominator * u + (1 + (2 * f + i * v) * v)[spans]
    alphas = (numerator / denominator).mul_(-0.5).exp_()
    alphas.mul_(projected.opacities[owners][spans]).clamp_(max=MAX_ALPHA)
    return owners[spans], row[spans] * width + column, alphas


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return each index as often as its count says, and the running number within it.

    >>> [part.tolist() for part in _spread(torch.tensor([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    return owners, torch.arange(len(owners), device=counts.device) - starts[owners]


def _blend(owners: Tensor, pixels: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixel, Gaussian and weight (alpha x transmittance) of each pair that counts."""
    pixels, order = pixels.int().sort(stable=True)
    owners, alphas = owners[order], alphas[order]
    logs = torch.log1p(-alphas.double())
    before = logs.cumsum(0) - logs
    _, counts = pixels.unique_consecutive(return_counts=True)
    firsts = counts.cumsum(0) - counts
    transmittance = (before - before[firsts].repeat_interleave(counts)).exp_()
    weights = transmittance.float() * alphas
    kept = weights >= MIN_WEIGHT
    return pixels[kept], owners[kept], weights[kept]
