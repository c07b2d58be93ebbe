"""Train the tiny refiner's VAE, then its UNet, on drawn scenes; CPU only.

    python tools/tiny_refiner/train.py vae  WORK --minutes 15
    python tools/tiny_refiner/train.py unet WORK --minutes 20

The VAE learns to reproduce images. The UNet learns to repair: on the path of Euler's sampler
from a damaged image's noisy latents to zero noise, it predicts the direction that ends at
the clean image's latents. WORK keeps the results (vae.safetensors, unet.safetensors); build.py
joins them with the rest.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from scene_pairs import clean_crop, scene_pair
from starts import silence, start_as_pyramid
from tiny_model import SCHEDULER, build_pipeline
from torch import Tensor
from torch.nn import functional

SEED = 20261121
VAE_SIDE = 96
VAE_BATCH = 8
UNET_SIDE = 256
UNET_BATCH = 8
UNET_PAIRS = 900
# The noise at which the default refinement (20 steps, strength 0.3) starts.
START_SIGMA = 0.698
PROMPTS = (
    "",
    "a red circle",
    "sharp, clean, detailed",
    "blurry, noisy",
    "photo of a small green star",
)


def main() -> None:
    """Train one part for the given time and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("vae", "unet"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="continue from the files in WORK")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(SEED, arguments.work / "tokenizer")
    if arguments.resume:
        held = load_file(arguments.work / f"{arguments.part}.safetensors")
        getattr(pipeline, arguments.part).load_state_dict(held)
    if arguments.part == "vae":
        if not arguments.resume:
            start_as_pyramid(pipeline.vae)
        vae = train_vae(pipeline.vae, arguments.minutes)
        save_file(vae.state_dict(), arguments.work / "vae.safetensors")
        return
    pipeline.vae.load_state_dict(load_file(arguments.work / "vae.safetensors"))
    if not arguments.resume:
        silence(pipeline.unet)
    unet = train_unet(pipeline, arguments.minutes)
    save_file(unet.state_dict(), arguments.work / "unet.safetensors")


def train_vae(vae: AutoencoderKL, minutes: float) -> AutoencoderKL:
    """Teach the VAE to reproduce images, with latents of about unit variance once scaled."""
    kept = [clean_crop(seed, VAE_SIDE) for seed in range(4000)]
    crops = torch.stack([(crop * 255).to(torch.uint8) for crop in kept])
    del kept

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(crops), (VAE_BATCH,), generator=generator)
        pixels = crops[chosen].float() / 127.5 - 1
        if torch.rand((), generator=generator) < 0.5:
            pixels = pixels.flip(-1)
        posterior = vae.encode(pixels).latent_dist
        back = vae.decode(posterior.sample(generator), return_dict=False)[0]
        edges = functional.l1_loss(back.diff(dim=-1), pixels.diff(dim=-1)) + functional.l1_loss(
            back.diff(dim=-2), pixels.diff(dim=-2)
        )
        error = functional.mse_loss(back, pixels) + 0.1 * functional.l1_loss(back, pixels)
        return error + 0.1 * edges + 1e-6 * posterior.kl().mean() / VAE_SIDE**2

    _train(vae, loss, minutes, peak=1e-3)
    with torch.no_grad():
        pixels = crops[:256].float() / 127.5 - 1
        _fold_scale(vae, vae.encode(pixels).latent_dist.mean)
    return vae


def train_unet(pipeline, minutes: float) -> UNet2DConditionModel:
    """Teach the UNet to lead from damaged images' latents to the clean ones'."""
    unet, vae = pipeline.unet, pipeline.vae
    clean, damaged = _encode_pairs(vae)
    texts, pooled = _encode_prompts(pipeline)
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    variances = (1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod
    sigmas = variances.sqrt().float()

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(clean), (UNET_BATCH,), generator=generator)
        target, harm = clean[chosen], damaged[chosen] - clean[chosen]
        # One in eight is undamaged: clean images must stay clean.
        harm = harm * (torch.rand(UNET_BATCH, 1, 1, 1, generator=generator) > 1 / 8)
        times = torch.randint(1, 320, (UNET_BATCH,), generator=generator)
        sigma = sigmas[times][:, None, None, None]
        start = torch.empty(UNET_BATCH, 1, 1, 1).uniform_(0.5, 0.9, generator=generator)
        noise = torch.randn(target.shape, generator=generator)
        direction = noise + harm / start
        noisy = target + sigma * direction
        which = torch.randint(len(texts), (UNET_BATCH,), generator=generator)
        scores = torch.where(torch.rand(UNET_BATCH, generator=generator) < 0.5, 6.0, 2.5)
        side = float(torch.randint(8, 17, (), generator=generator) * 64)
        ids = torch.tensor([side, side, 0.0, 0.0]).repeat(UNET_BATCH, 1)
        guess = unet(
            noisy / (sigma.square() + 1).sqrt(),
            times,
            encoder_hidden_states=texts[which],
            added_cond_kwargs={
                "text_embeds": pooled[which],
                "time_ids": torch.cat([ids, scores[:, None]], dim=1),
            },
            return_dict=False,
        )[0]
        # Errors at much noise move the image most.
        weight = (sigma / START_SIGMA).clamp(0.15, 1.0)
        return (weight * (guess - direction).square()).mean()

    _train(unet, loss, minutes, peak=2e-3)
    return unet


def _train(
    module: torch.nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    minutes: float,
    peak: float,
) -> None:
    """Run AdamW with a warm-up and a cosine for the given time; leave averaged weights."""
    generator = torch.Generator().manual_seed(SEED)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak, weight_decay=1e-4)
    averaged = {name: value.detach().clone() for name, value in module.state_dict().items()}
    recent: list[float] = []
    for step, share in enumerate(_shares(minutes)):
        for group in optimizer.param_groups:
            group["lr"] = (
                peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * math.cos(share * math.pi / 2))
            )
        value = loss(generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rate = min(0.995, step / (step + 10))
        for name, current in module.state_dict().items():
            averaged[name].lerp_(current, 1 - rate)
        recent = [*recent[-99:], value.item()]
        if step % 100 == 0:
            print(f"{share:6.1%} step {step} loss {sum(recent) / len(recent):.5f}", flush=True)
    module.load_state_dict(averaged)
    module.eval()
    print(f"{step + 1} steps, loss {sum(recent) / len(recent):.5f}", flush=True)


def _shares(minutes: float) -> Iterator[float]:
    """Yield the share of the time that has passed, until it is over."""
    start = time.monotonic()
    while (share := (time.monotonic() - start) / (minutes * 60)) < 1:
        yield share


@torch.no_grad()
def _fold_scale(vae: AutoencoderKL, latents: Tensor) -> None:
    """Scale the latents inside the weights, so that SDXL's 0.13025 gives unit variance."""
    factor = 1 / (latents.std() * vae.config.scaling_factor)
    mean_rows = vae.config.latent_channels
    vae.quant_conv.weight[:mean_rows] *= factor
    vae.quant_conv.bias[:mean_rows] *= factor
    vae.quant_conv.bias[mean_rows:] += 2 * factor.log()
    vae.post_quant_conv.weight /= factor


@torch.no_grad()
def _encode_pairs(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Return the latents (scaled) of clean and damaged crops, (UNET_PAIRS, 4, h, w) each."""
    generator = torch.Generator().manual_seed(SEED)
    latents = []
    for seed in range(100_000, 100_000 + UNET_PAIRS):
        both = torch.stack(scene_pair(seed, UNET_SIDE)) * 2 - 1
        latents.append(vae.encode(both).latent_dist.sample(generator) * vae.config.scaling_factor)
        if seed % 300 == 0:
            print(f"encoded {seed - 100_000} of {UNET_PAIRS} pairs", flush=True)
    stacked = torch.stack(latents)
    return stacked[:, 0].contiguous(), stacked[:, 1].contiguous()


@torch.no_grad()
def _encode_prompts(pipeline) -> tuple[Tensor, Tensor]:
    texts, _, pooled, _ = pipeline.encode_prompt(
        list(PROMPTS), device="cpu", do_classifier_free_guidance=False
    )
    return texts, pooled


if __name__ == "__main__":
    main()
