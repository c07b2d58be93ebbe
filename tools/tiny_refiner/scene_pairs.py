"""Training images: drawn scenes, clean and damaged, enlarged as the refiner enlarges them.

The scenes come from tools/toy_vision/scenes.py. Every image follows from its seed; the seeds
here are training seeds, the held-out ones are left to evaluate.py.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "toy_vision"))
from scenes import HELD_OUT_SEEDS, compose, paint

__all__ = ["HELD_OUT_SEEDS", "clean_crop", "damage", "draw", "scene_pair", "to_tensor"]

# One seed in four shows soft color clouds instead of a scene, so that the VAE learns more
# than flat ground.
CLOUD_SHARE = 4


def draw(seed: int, size: tuple[int, int]) -> Image.Image:
    """Draw the undamaged scene of a seed, `size` is width and height."""
    return paint(compose(seed, size))


def damage(image: Image.Image, rng: np.random.Generator, kind: str) -> Image.Image:
    """Damage an image by "noise" (deviation 10 to 40 of 255) or "jpeg" (quality 5 to 25)."""
    if kind == "noise":
        pixels = np.asarray(image, np.float32)
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * rng.uniform(10, 40)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(5, 26)))
    return Image.open(file).convert("RGB")


def scene_pair(seed: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the same crop (3, side, side), 0 to 1, of a clean and of a damaged scene.

    The image is damaged at its own size (256 to 640 px) and enlarged to about one megapixel,
    which is what ImageRefiner does with an image of that size.
    """
    rng = np.random.default_rng((seed, 2))
    native = int(rng.integers(256, 641))
    clean = draw(seed, (native, native))
    damaged = damage(clean, rng, ("noise", "jpeg")[seed % 2])
    if rng.random() < 0.25:
        damaged = damaged.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    left, top = (int(v) for v in rng.integers(0, 1024 - side + 1, 2) // 8 * 8)
    box = tuple(v * native / 1024 for v in (left, top, left + side, top + side))
    return tuple(
        to_tensor(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
        for image in (clean, damaged)
    )


def clean_crop(seed: int, side: int) -> Tensor:
    """Return a crop (3, side, side), 0 to 1, for the VAE: shapes at many scales, or clouds."""
    rng = np.random.default_rng((seed, 3))
    if seed % CLOUD_SHARE == 0:
        return _clouds(rng, side)
    native = round(float(np.exp(rng.uniform(np.log(160), np.log(1024)))))
    image = draw(seed, (max(native, side),) * 2)
    left, top = (int(v) for v in rng.integers(0, max(native, side) - side + 1, 2))
    return to_tensor(image.crop((left, top, left + side, top + side)))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an image as (3, H, W), float32, 0 to 1."""
    return torch.from_numpy(np.asarray(image, np.float32) / 255).movedim(-1, 0)


def _clouds(rng: np.random.Generator, side: int) -> Tensor:
    cells = int(rng.integers(2, 9))
    coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    return to_tensor(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
