"""Splats that are computed: a dented sphere of flat Gaussians with a texture."""

from __future__ import annotations

import math

import numpy as np
import torch
from image_refinery.refine.splats import Splat, ViewWeights
from image_refinery.refine.splats.colors import to_linear, to_srgb
from PIL import Image
from torch import Tensor


def sphere(count: int, texture: str = "fine", seed: int = 0) -> Splat:
    """A sphere of radius about 1, its Gaussians as large as they are apart."""
    random = torch.Generator().manual_seed(seed)
    index = torch.arange(count, dtype=torch.float64)
    y = 1 - 2 * (index + 0.5) / count
    turn = index * math.pi * (3 - math.sqrt(5))
    radius = (1 - y * y).sqrt()
    normals = torch.stack([radius * turn.cos(), y, radius * turn.sin()], dim=1)
    dents = 1 + 0.15 * torch.sin(4 * normals[:, 0]) * torch.cos(5 * normals[:, 1])
    positions = normals * dents[:, None]
    axis = torch.linalg.cross(torch.tensor([[0.0, 0, 1]]).double().expand_as(normals), normals)
    apart = math.sqrt(4 * math.pi / count)
    scales = torch.tensor([[0.7, 0.7, 0.1]]) * apart
    scales = scales * (0.8 + 0.4 * torch.rand(count, 3, generator=random))
    return Splat(
        positions=positions.float(),
        scales=scales,
        rotations=torch.cat([1 + normals[:, 2:], axis], dim=1).float(),
        opacities=0.6 + 0.39 * torch.rand(count, generator=random),
        sh=((_colors(positions, texture) - 0.5) / 0.28209479177387814)[:, None].float(),
    )


def painted(count: int, scene: Image.Image, noise: float = 0.0) -> Splat:
    """A sphere with an image on its front and back, and noise of that deviation in its colors."""
    splat = sphere(count)
    image = scene.convert("RGB").resize((256, 256))
    colors = torch.from_numpy(np.asarray(image, np.float32) / 255)
    columns, rows, _ = ((splat.positions + 1.2) / 2.4 * 255).long().clamp(0, 255).unbind(1)
    random = torch.Generator().manual_seed(1)
    grain = noise * torch.randn(count, 3, generator=random)
    return splat.with_changed_colors(colors[rows, columns] - splat.colors + grain)


def _colors(positions: Tensor, texture: str) -> Tensor:
    """(N, 3), 0.05 to 0.95."""
    x, y, z = positions.unbind(dim=1)
    if texture == "smooth":
        phases = [1.5 * x, 1.5 * y + 1, 1.5 * z + 2]
        return 0.5 + 0.4 * torch.stack(phases, dim=1).sin()
    waves = 0.5 + 0.45 * torch.stack([9 * x + 2 * y, 11 * y, 7 * z + 5 * x], dim=1).sin()
    fields = (positions * 6).floor().sum(dim=1, keepdim=True) % 2
    return waves * (0.5 + 0.5 * fields)


def image_of(splat: Splat, weights: ViewWeights) -> Tensor:
    """The straight colors of a view and which pixels count: (H, W, 4)."""
    light = weights.render(to_linear(splat.colors.clamp(0, 1)))
    counts = (weights.coverage > 0.5).float()
    return torch.cat([to_srgb(light / weights.coverage.clamp_min(1e-6)), counts], dim=-1)


def psnr(one: Splat, other: Splat, views: list[ViewWeights]) -> float:
    """How close two splats look in views, in dB."""
    errors: list[Tensor] = []
    for view in views:
        left, right = image_of(one, view), image_of(other, view)
        errors.append((left - right)[left[..., 3] > 0][:, :3].square().mean())
    return float(-10 * torch.stack(errors).mean().log10())
