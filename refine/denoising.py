"""The UNet's steps on latents, numerically identical to diffusers' img2img pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .components import Components
from .geometry import LATENT
from .prompts import Conditioning
from .settings import RefineSettings

StepCallback = Callable[[int, Tensor], None]
"""Called after every step with its number (from 1) and its estimate of the clean latents."""


@torch.no_grad()
def denoise(
    components: Components,
    latents: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    settings: RefineSettings,
    generator: torch.Generator,
    on_step: StepCallback,
) -> Tensor:
    """Add noise to latents and remove it again, step by step.

    Args:
        components: Components with a UNet that is ready on the device of `latents`.
        latents: (1, 4, h, w), scaled, without noise, in the UNet's type.
        noise: The noise to add at the start; as `latents`.
        conditioning: The prompts.
        settings: Strength, steps, guidance and scores.
        generator: For samplers that add noise at every step.
        on_step: Called after every step; if it raises, the work ends.

    Returns:
        (1, 4, h, w): the refined latents, scaled.
    """
    unet, scheduler = components.unet, components.scheduler
    timesteps = _timesteps(scheduler, settings, latents.device)
    # Samplers that add noise take a generator; the others refuse one.
    draws = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": generator} if draws else {}
    embeds, pooled, time_ids = _unet_inputs(components, latents, conditioning, settings)
    guided_steps = settings.guided_steps
    latents = scheduler.add_noise(latents, noise, timesteps[:1])
    for index, timestep in enumerate(timesteps):
        if index == guided_steps > 0:  # from here on, only the prompt's half
            embeds, pooled, time_ids = (some.chunk(2)[1] for some in (embeds, pooled, time_ids))
        is_guided = index < guided_steps
        predicted = unet(
            scheduler.scale_model_input(
                torch.cat([latents] * 2) if is_guided else latents, timestep
            ),
            timestep,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
        if is_guided:
            negative, positive = predicted.chunk(2)
            predicted = negative + settings.guidance_scale * (positive - negative)
        stepped = scheduler.step(predicted, timestep, latents, **options, return_dict=False)
        latents = stepped[0].to(latents.dtype)
        # Most samplers also return their estimate of the clean latents.
        on_step(index + 1, stepped[1] if len(stepped) > 1 else latents)
    return latents


def _timesteps(scheduler: Any, settings: RefineSettings, device: torch.device) -> Tensor:
    """Set up the sampler, and return the timesteps of its schedule that `strength` selects."""
    scheduler.set_timesteps(settings.num_inference_steps, device=device)
    first = (settings.num_inference_steps - settings.steps) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def _unet_inputs(
    components: Components, latents: Tensor, conditioning: Conditioning, settings: RefineSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts, pooled prompts and size conditioning; negative ones first, if any."""
    height, width = (side * LATENT for side in latents.shape[-2:])
    scores = [settings.negative_aesthetic_score, settings.aesthetic_score]
    size_ids = [
        [
            height,
            width,
            0,
            0,
            *([score] if components.requires_aesthetics_score else [height, width]),
        ]
        for score in scores
    ]
    tensors = conditioning.to(latents.device, latents.dtype)
    embeds, pooled = tensors["prompt_embeds"], tensors["pooled_prompt_embeds"]
    time_ids = torch.tensor(size_ids, dtype=latents.dtype, device=latents.device)
    if not settings.guided_steps:
        return embeds, pooled, time_ids[1:]
    embeds = torch.cat([tensors["negative_prompt_embeds"], embeds])
    pooled = torch.cat([tensors["negative_pooled_prompt_embeds"], pooled])
    return embeds, pooled, time_ids
