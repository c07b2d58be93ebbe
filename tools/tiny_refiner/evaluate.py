"""Measure the tiny refiner on held-out scenes; prints the numbers that README.md states.

    python tools/tiny_refiner/evaluate.py --scenes 12

VAE: PSNR of encode and decode alone, on clean scenes at 512 and at 1024 px. Refinement: scenes
of 512 px with noise (deviation 25 of 255) or JPEG damage (quality 8) go through ImageRefiner
with its defaults (20 steps, strength 0.3, guidance 7.5, enlarged to 1024 px for the work); PSNR
against the clean scene before, after the VAE alone at the same working size, and after refining.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scene_pairs import HELD_OUT_SEEDS, draw, to_tensor
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path(__file__).resolve().parent / "weights" / "tiny_refiner.safetensors"
SIDE = 512


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    refiner = load_pack().ImageRefiner("cpu", model=arguments.weights)
    refiner.load()
    vae = refiner._stages.components.vae.float()
    for side in (SIDE, 2 * SIDE):
        values = []
        for seed in HELD_OUT_SEEDS[: arguments.scenes]:
            clean = to_tensor(draw(seed, (side, side)))[None]
            values.append(psnr(round_trip(vae, clean), clean))
        report(f"VAE alone, clean scenes of {side} px", values)
    for kind, damage in (("noise, deviation 25", add_noise), ("JPEG, quality 8", as_jpeg)):
        before, coded, after = [], [], []
        for seed in HELD_OUT_SEEDS[: arguments.scenes]:
            clean = draw(seed, (SIDE, SIDE))
            damaged = damage(clean, seed)
            refined = refiner.refine(damaged, seed=seed % 1000)
            enlarged = damaged.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
            through = round_trip(vae, to_tensor(enlarged)[None])
            small = torch.nn.functional.avg_pool2d(through, 2)
            before.append(psnr(to_tensor(damaged)[None], to_tensor(clean)[None]))
            coded.append(psnr(small, to_tensor(clean)[None]))
            after.append(psnr(to_tensor(refined)[None], to_tensor(clean)[None]))
        report(f"{kind}: damaged", before)
        report(f"{kind}: through the VAE alone", coded)
        report(f"{kind}: refined", after)


@torch.no_grad()
def round_trip(vae: torch.nn.Module, pixels: Tensor) -> Tensor:
    """Return pixels (1, 3, H, W), 0 to 1, encoded and decoded again."""
    latents = vae.encode(pixels * 2 - 1).latent_dist.mean
    return (vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal to noise ratio in dB."""
    return -10 * float(torch.log10((one - other).square().mean()))


def report(what: str, values: list[float]) -> None:
    """Print one line: mean, least and most."""
    mean = sum(values) / len(values)
    print(f"{what:45s} {mean:6.2f} dB ({min(values):.2f} to {max(values):.2f}, n = {len(values)})")


def add_noise(image: Image.Image, seed: int) -> Image.Image:
    """Add grain."""
    noise = np.random.default_rng(seed).normal(0, 25, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, _: int) -> Image.Image:
    """Compress far too much."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=8)
    return Image.open(file).convert("RGB")


def load_pack():
    """Import the checkout's refine package, whatever the checkout's folder is called."""
    spec = importlib.util.spec_from_file_location(
        "image_refinery", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["image_refinery"] = package
    spec.loader.exec_module(package)
    return importlib.import_module("image_refinery.refine")


if __name__ == "__main__":
    main()
