"""Draw examples/scene.png, the picture that the demo describes.

    python tools/make_examples.py

Needs numpy and Pillow. The picture follows from a seed that training never uses.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "toy_vision"))

from scenes import describe, draw_scene  # noqa: E402  (the generator is no package)

SEED = 20_000_793
SIZE = (512, 512)


def main() -> None:
    picture, scene = draw_scene(SEED, size=SIZE, objects=3, damaged=False)
    path = ROOT / "examples" / "scene.png"
    path.parent.mkdir(exist_ok=True)
    picture.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {describe(scene)}")


if __name__ == "__main__":
    main()
