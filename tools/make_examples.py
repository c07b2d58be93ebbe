"""Draw examples/scene.png, which the demo describes, and a damaged copy, which it refines.

    python tools/make_examples.py

Needs numpy and Pillow. Both images follow from a seed that training never uses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(ROOT / "tools" / "toy_vision"))

from scenes import describe, draw_scene  # noqa: E402  (the generator is no package)

SEED = 20_000_793
SIZE = (512, 512)
NOISE = 25.0
"""Standard deviation, of 255."""
QUALITY = 90


def damage(image: Image.Image) -> Image.Image:
    """Return an image with noise, as in a photograph taken with too little light."""
    pixels = np.asarray(image, np.float32)
    noise = np.random.default_rng(SEED).standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(pixels + noise * NOISE, 0, 255).round().astype(np.uint8))


def main() -> None:
    image, scene = draw_scene(SEED, size=SIZE, objects=3, damaged=False)
    image.save(EXAMPLES / "scene.png", optimize=True)
    damage(image).save(EXAMPLES / "scene-damaged.jpg", quality=QUALITY)
    print(describe(scene))


if __name__ == "__main__":
    main()
