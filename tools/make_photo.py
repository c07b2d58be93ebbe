"""Draw examples/photo.jpg: a landscape with the statistics of a photograph, from a seed.

    python tools/make_photo.py [--seed N] [--side PX] [OUTPUT]

Benchmarks need a picture that compresses like a photograph (1/f texture, soft gradients, hard
edges, sensor noise), and one whose license is ours. Needs numpy and pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float64]

OUTPUT = Path(__file__).resolve().parent.parent / "examples" / "photo.jpg"
SIDE_PX = 1024
SEED = 20261121
QUALITY = 90  # a camera's usual setting; the file stays moderate
HORIZON = 0.58  # share of the height that is sky and hills

SKY_TOP, SKY_LOW = (0.24, 0.44, 0.72), (0.93, 0.82, 0.68)
CLOUD, SUN = (0.98, 0.95, 0.92), (1.0, 0.93, 0.74)
FAR_HILL, NEAR_HILL = (0.46, 0.55, 0.63), (0.13, 0.22, 0.12)
ROCK = (0.36, 0.31, 0.27)


def texture(rng: np.random.Generator, height: int, width: int, slope: float) -> Plane:
    """Return noise whose amplitude falls as 1 / frequency ** slope, scaled to 0..1, (H, W)."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    phase = np.exp(2j * np.pi * rng.random(frequency.shape))
    noise = np.fft.irfft2(phase / frequency**slope, s=(height, width))
    low, high = np.percentile(noise, (0.5, 99.5))
    return np.clip((noise - low) / (high - low), 0.0, 1.0)


def blend(under: Plane, over: Plane | tuple[float, float, float], alpha: Plane) -> Plane:
    """Lay `over` (RGB) on `under` (H, W, 3) where `alpha` (H, W) is 1."""
    return under + (np.asarray(over) - under) * alpha[..., None]


def sky(rng: np.random.Generator, side: int) -> Plane:
    """Return a gradient with a low sun and clouds, (H, W, 3)."""
    down = np.linspace(0.0, 1.0, side)[:, None]
    fade = np.broadcast_to(np.clip(down / HORIZON, 0.0, 1.0), (side, side))
    picture = np.broadcast_to(np.array(SKY_TOP), (side, side, 3))
    picture = blend(picture, SKY_LOW, fade**1.4)
    clouds = texture(rng, side, side, 1.5)
    picture = blend(picture, CLOUD, np.clip((clouds - 0.52) * 2.6, 0.0, 0.85) * (1.0 - 0.5 * fade))
    across = np.linspace(0.0, 1.0, side)[None, :]
    distance = np.hypot(across - 0.68, down - 0.4)
    picture = blend(picture, SUN, np.exp(-((distance / 0.16) ** 2)) * 0.7)
    return blend(picture, SUN, np.clip((0.035 - distance) * side / 3, 0.0, 1.0))


def ridge(rng: np.random.Generator, side: int, roughness: float) -> Plane:
    """Return the height of a skyline for each column, -1..1, (W,)."""
    frequency = np.fft.rfftfreq(side)
    frequency[0] = 1.0
    phase = np.exp(2j * np.pi * rng.random(frequency.size))
    line = np.fft.irfft(phase / frequency**roughness, n=side)
    return line / np.abs(line).max()


def hills(rng: np.random.Generator, picture: Plane, layers: int = 5) -> Plane:
    """Lay ranges of hills over the sky, the nearer the darker and the rougher."""
    side = picture.shape[0]
    row = np.arange(side)[:, None]
    for layer in range(layers):
        near = layer / (layers - 1)
        top = (HORIZON - 0.17 * (1 - near) - 0.02) * side
        line = top + ridge(rng, side, 1.9 - 0.5 * near) * side * (0.07 - 0.03 * near)
        cover = np.clip(row - line[None, :], 0.0, 1.0)
        color = np.asarray(FAR_HILL) * (1 - near) + np.asarray(NEAR_HILL) * near
        grain = texture(rng, side, side, 1.1 - 0.35 * near)[..., None]
        ground = color * (1.0 + (grain - 0.5) * (0.25 + 1.1 * near))
        picture = blend(picture, ground, cover)
    return picture


def lake(rng: np.random.Generator, picture: Plane) -> Plane:
    """Mirror what is above the horizon into rippled water."""
    side = picture.shape[0]
    shore = int(HORIZON * side)
    below = side - shore
    depth = np.arange(below)[:, None] / below
    ripple = texture(rng, below, side, 1.0) - 0.5
    rows = shore - 1 - np.arange(below)[:, None] * (shore - 1) / below
    rows = np.clip(rows + ripple * (12 + 50 * depth) * side / 1024, 0, shore - 1).astype(int)
    water = picture[rows, np.arange(side)[None, :]] * np.array((0.66, 0.74, 0.8))
    water = water * (0.92 - 0.25 * depth[..., None]) + (ripple * 0.12 * depth)[..., None]
    return np.concatenate([picture[:shore], water])


def rocks(rng: np.random.Generator, picture: Plane, count: int = 24) -> Plane:
    """Put stones with hard edges and fine grain on the near shore."""
    side = picture.shape[0]
    row, column = np.mgrid[0:side, 0:side] / side
    grain = texture(rng, side, side, 0.7)
    for middle_y in np.sort(rng.uniform(0.86, 1.03, count)):
        middle_x, size = rng.uniform(0, 1), rng.uniform(0.02, 0.09)
        edge = np.hypot((column - middle_x) / size, (row - middle_y) / (size * 0.62))
        light = 0.65 + 0.55 * np.clip((middle_y - row) / size, -0.8, 0.8)
        stone = np.asarray(ROCK) * (light * (0.55 + 0.9 * grain))[..., None]
        picture = blend(picture, stone, np.clip((1.0 - edge) * size * side / 1.5, 0.0, 1.0))
    return picture


def photo(seed: int = SEED, side: int = SIDE_PX) -> Image.Image:
    """Return the landscape as an RGB image of side x side px; the same for the same seed."""
    rng = np.random.default_rng(seed)
    picture = rocks(rng, lake(rng, hills(rng, sky(rng, side))))
    brightness = picture.mean(axis=2, keepdims=True)
    noise = rng.normal(0.0, 1.0, picture.shape) * (
        0.006 + 0.012 * np.sqrt(np.clip(brightness, 0, 1))
    )
    levels = np.clip((picture + noise) * 255.0, 0.0, 255.0).round()
    return Image.fromarray(levels.astype(np.uint8))


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw a photo-like landscape.")
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--side", type=int, default=SIDE_PX)
    args = parser.parse_args()
    photo(args.seed, args.side).save(args.output, quality=QUALITY)
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
