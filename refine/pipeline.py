"""diffusers' own img2img pipeline, run for its UNet steps alone: latents in, latents out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from torch import Tensor

from .components import Components
from .prompts import Conditioning
from .settings import RefineSettings

StepCallback = Callable[[int, Tensor], None]
"""Called after every step with its number (from 1) and the clean latents guessed so far."""


class LatentPipeline(StableDiffusionXLImg2ImgPipeline):
    """The pipeline without its ends: text and images are encoded outside, by the stages.

    Overriding three methods keeps its denoising loop, which is worth sharing: diffusers would
    otherwise draw the noise itself (then tiles could not share one field of it), cast the
    conditioning to the type of weights that may rest in another type, and take the device from
    whichever component happens to be first.
    """

    run_device: torch.device
    noise: Tensor

    @property
    def _execution_device(self) -> torch.device:
        return self.run_device

    def encode_prompt(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor | None,
        pooled_prompt_embeds: Tensor,
        negative_pooled_prompt_embeds: Tensor | None,
        **_: Any,
    ) -> tuple[Tensor | None, ...]:
        """Return the conditioning as it was passed."""
        return (
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )

    def prepare_latents(self, image: Tensor, timestep: Tensor, *_: Any, **__: Any) -> Tensor:
        """Add the noise that `denoise` was given to the latents."""
        return self.scheduler.add_noise(image, self.noise, timestep)


def build_pipeline(components: Components, device: torch.device) -> LatentPipeline:
    """Build the pipeline around components whose weights somebody else moves."""
    absent: Any = None  # diffusers allows it, but its annotations do not
    pipeline = LatentPipeline(
        vae=components.vae,  # for its configuration; it is not run here
        text_encoder=absent,
        text_encoder_2=absent,
        tokenizer=absent,
        tokenizer_2=absent,
        unet=components.unet,
        scheduler=components.scheduler,
        requires_aesthetics_score=components.requires_aesthetics_score,
        force_zeros_for_empty_prompt=components.force_zeros_for_empty_prompt,
        # None would mean: if the watermarking library happens to be installed.
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.run_device = device
    return pipeline


def denoise(
    pipeline: LatentPipeline,
    latents: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    settings: RefineSettings,
    generator: torch.Generator,
    on_step: StepCallback,
) -> Tensor:
    """Run the UNet steps.

    Args:
        pipeline: Its UNet is ready on the pipeline's device.
        latents: (1, 4, h, w), scaled, without noise; on the device, in the UNet's type.
        noise: As latents; what is added at the start.
        conditioning: The prompts.
        settings: Strength, steps, guidance and scores.
        generator: For samplers that add noise at every step.
        on_step: Called after every step; an exception from it ends the work.

    Returns:
        (1, 4, h, w): the refined latents, scaled.
    """
    pipeline.noise = noise
    guided = settings.guided_steps

    with _watching(pipeline.scheduler) as guess:

        def after_step(pipe: Any, index: int, _: Any, tensors: dict[str, Tensor]) -> Any:
            on_step(index + 1, guess.get("clean", tensors["latents"]))
            if index + 1 == guided < settings.steps:
                # From here on the guided half of every tensor is all there is.
                pipe._guidance_scale = 1.0
                for name in ("prompt_embeds", "add_text_embeds", "add_time_ids"):
                    tensors[name] = tensors[name].chunk(2)[1]
            return tensors

        run: Any = pipeline
        return run(
            image=latents,
            strength=float(settings.strength),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale if guided else 1.0,
            aesthetic_score=settings.aesthetic_score,
            negative_aesthetic_score=settings.negative_aesthetic_score,
            generator=generator,
            output_type="latent",
            return_dict=False,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[
                "latents",
                "prompt_embeds",
                "add_text_embeds",
                "add_time_ids",
            ],
            **conditioning.to(pipeline.run_device, latents.dtype),
        )[0]


@contextmanager
def _watching(scheduler: Any) -> Iterator[dict[str, Tensor]]:
    """Keep the clean image that the sampler guesses at each step, for previews."""
    guess: dict[str, Tensor] = {}
    step = scheduler.step

    # diffusers asks step for its signature, which wraps() passes on.
    @wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if isinstance(result, tuple) and len(result) > 1:
            guess["clean"] = result[1]
        return result

    scheduler.step = watched
    try:
        yield guess
    finally:
        del scheduler.step
