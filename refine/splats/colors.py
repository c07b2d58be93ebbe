"""The sRGB curve (IEC 61966-2-1). Splats store sRGB; light adds up linearly."""

from __future__ import annotations

import torch
from torch import Tensor


def to_linear(values: Tensor) -> Tensor:
    """Return the linear light of sRGB values, 0 to 1."""
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Tensor) -> Tensor:
    """Return the sRGB values of linear light, 0 to 1; below 0 counts as 0."""
    light = light.clamp_min(0)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
