"""One piece of work for the model."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tile:
    """One piece of work for the model.

    Args:
        pixels: (1, 3, H, W), 0 to 1; sides are multiples of 64.
        latent_noise: (1, 4, H / 8, W / 8); what the VAE's posterior is sampled with.
        start_noise: The same shape; what is added before the first step.
        generator: For samplers that add noise at every step.
        input_latents: (1, 4, H / 8, W / 8), scaled; filled by `Stages.encode`.
        latents: The same at first, then replaced by `Stages.refine`.
    """

    pixels: Tensor
    latent_noise: Tensor
    start_noise: Tensor
    generator: torch.Generator
    input_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
