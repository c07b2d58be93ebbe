"""Noise as ComfyUI draws it, and a sampler that leaves a share of it in the latents."""

from collections.abc import Callable
from typing import Any

import torch

import comfy.model_management

calls: list[dict[str, Any]] = []
"""What `sample` was called with."""


def prepare_noise(
    latent_image: torch.Tensor, seed: int, noise_inds: list[int] | None = None
) -> torch.Tensor:
    return torch.randn(latent_image.size(), generator=torch.manual_seed(seed))


def fix_empty_latent_channels(model: Any, latent_image: torch.Tensor) -> torch.Tensor:
    frames = model.get_model_object("latent_format").latent_dimensions == 3
    return latent_image.unsqueeze(2) if frames and latent_image.ndim == 4 else latent_image


def sample(
    model: Any,
    noise: torch.Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: torch.Tensor,
    denoise: float = 1.0,
    disable_noise: bool = False,
    start_step: int | None = None,
    last_step: int | None = None,
    force_full_denoise: bool = False,
    noise_mask: torch.Tensor | None = None,
    sigmas: torch.Tensor | None = None,
    callback: Callable[[int, torch.Tensor, torch.Tensor, int], None] | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> torch.Tensor:
    calls.append({"positive": positive, "negative": negative, "seed": seed, "denoise": denoise})
    result = model.run(latent_image + denoise / 10 * noise, positive)
    for step in range(steps):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if callback is not None:
            callback(step, result, result, steps)
    return result
