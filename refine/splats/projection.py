"""Where each Gaussian of a splat lies in a camera's image, and how it fades there.

A Gaussian counts at a pixel by its largest value along the pixel's ray, which is exact in
perspective, as in "Efficient Perspective-Correct 3D Gaussian Splatting" (Hahlbohm et al., 2024).
With the center m, the inverse covariance S (both in the camera's axes) and the ray d = m / m_z +
(u, v, 0), the squared distance at that point is

    q = m'Sm - (d'Sm)^2 / d'Sd
      = (a u^2 + 2 b uv + c v^2) / (1 + 2 e u + 2 f v + g u^2 + 2 h uv + i v^2)

The right side needs no difference of large numbers, so that float32 is enough for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Camera
from .splat import Splat

MIN_ALPHA = 1 / 512
"""A Gaussian ends where it covers less than this."""
_THICKNESS = 1e-3
"""Added to each variance, as a share of the mean variance: flat Gaussians have no inverse."""


@dataclass(frozen=True)
class Projection:
    """The M Gaussians of a splat that a camera can show, the nearest first.

    Attributes:
        indices: (M,), int64: which Gaussians of the splat.
        opacities: (M,).
        reach: (M,): the q at which the Gaussian ends.
        centers: (M, 2), x and y in pixels.
        top: (M,), int64: the first row of pixels.
        heights: (M,), int64: how many rows, at least 1.
        widths: (M,), int64: at most as many pixels in each row.
        numerator: (3, M): a, b and c of q, for u and v in pixels.
        denominator: (5, M): e, f, g, h and i.
    """

    indices: Tensor
    opacities: Tensor
    reach: Tensor
    centers: Tensor
    top: Tensor
    heights: Tensor
    widths: Tensor
    numerator: Tensor
    denominator: Tensor


def project(splat: Splat, camera: Camera) -> Projection:
    """Project the Gaussians; those that reach behind the camera are left out."""
    device = splat.positions.device
    axes = camera.axes.to(device)
    centers = (splat.positions.double() - camera.position.to(device)) @ axes.mT
    covariances = axes @ splat.covariances() @ axes.mT
    mean = covariances.diagonal(dim1=1, dim2=2).mean(dim=1)
    extra = (mean * _THICKNESS).clamp_min(torch.finfo(torch.float32).tiny)
    covariances += extra[:, None, None] * torch.eye(3, dtype=torch.float64, device=device)
    reach = 2 * (splat.opacities.double() / MIN_ALPHA).clamp_min(1e-6).log()

    # The outline of the ellipsoid q = reach has the dual conic `outline`; lines x = t with
    # (1, 0, -t) outline (1, 0, -t)' = 0 touch it (Hartley and Zisserman, 2004, section 8.3).
    depths = centers[:, 2]
    outline = reach[:, None, None] * covariances - centers[:, :, None] * centers[:, None, :]
    ahead = (reach > 0) & (depths > 0) & (outline[:, 2, 2] < 0)
    left, right = _touching(outline, 0, camera.focal_px, camera.width)
    top, bottom = _touching(outline, 1, camera.focal_px, camera.height)
    chosen = (ahead & (left <= right) & (top <= bottom)).nonzero()[:, 0]
    chosen = chosen[depths[chosen].argsort(stable=True)]

    numerator, denominator = _coefficients(covariances[chosen], centers[chosen], camera.focal_px)
    middle = torch.tensor([camera.width, camera.height], device=device) / 2
    places = middle + camera.focal_px * centers[chosen, :2] / depths[chosen, None]
    return Projection(
        indices=chosen,
        opacities=splat.opacities[chosen],
        reach=reach[chosen].float(),
        centers=places,
        top=top[chosen],
        heights=(bottom - top + 1)[chosen],
        widths=(right - left + 1)[chosen],
        numerator=numerator,
        denominator=denominator,
    )


def _touching(outline: Tensor, axis: int, focal_px: float, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last pixel of each ellipsoid along an axis, within the image."""
    square, mixed, free = outline[:, 2, 2], outline[:, axis, 2], outline[:, axis, axis]
    root = (mixed.square() - square * free).clamp_min(0).sqrt()
    ends = torch.stack([(mixed + root) / square, (mixed - root) / square])
    first, last = ends.nan_to_num().clamp(-1e6, 1e6).mul(focal_px).add(size / 2).aminmax(dim=0)
    return first.ceil().clamp_min(0).long(), last.floor().clamp_max(size - 1).long()


def _coefficients(covariances: Tensor, centers: Tensor, focal_px: float) -> tuple[Tensor, Tensor]:
    """Return `numerator` and `denominator` of a Projection."""
    inverse = torch.linalg.inv(covariances)
    depths = centers[:, 2]
    middle = centers / depths[:, None]
    slopes = (inverse @ middle[:, :, None])[:, :, 0]
    square = (middle * slopes).sum(dim=1)
    s00, s01, s11 = inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]
    k0, k1 = slopes[:, 0] / square, slopes[:, 1] / square
    pixel = 1 / focal_px
    numerator = [
        s00 - slopes[:, 0] * k0,
        s01 - slopes[:, 0] * k1,
        s11 - slopes[:, 1] * k1,
    ]
    denominator = [k0 / pixel, k1 / pixel, s00 / square, s01 / square, s11 / square]
    return (
        (torch.stack(numerator) * (depths * pixel).square()).float(),
        (torch.stack(denominator) * math.pow(pixel, 2)).float(),
    )
