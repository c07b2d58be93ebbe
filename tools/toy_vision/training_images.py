"""Training images drawn ahead of time, so that training never waits for drawing.

    python tools/toy_vision/training_images.py FOLDER --first 0 --count 60000 --processes 2

writes shards of 2,000 scenes (about 98 MB each) and leaves out those that are there already.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import vocabulary
from model import Shape
from numpy.typing import NDArray
from resize import fitted_size, to_model_square
from scenes import (
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    TRAINING_SEEDS,
    Drawing,
    Scene,
    compose,
    damage,
    mirror,
    paint,
)

SHARD = 2000
# Ids of a sentence, EOS included; the longest has three objects.
SENTENCE = 22
# The share of a patch that an object's surrounding square must cover for the patch to count as its.
COVERED = 0.2
# How many words there are of each kind that `patch_words` gives, "nothing" counted in.
PATCH_WORDS = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(SIZES), 1 + len(PLACES), 1 + 3)


class Sample(NamedTuple):
    """One scene: pixels (side, side, 3), ids (SENTENCE,), patch words (patches, 5)."""

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int16]
    patches: NDArray[np.int8]
    mirrored_ids: NDArray[np.int16]
    mirrored_patches: NDArray[np.int8]


def sample(seed: int, shape: Shape) -> Sample:
    """Draw one training scene as the model gets it, with what it is to say."""
    drawing = compose(seed)
    image = damage(paint(drawing), np.random.default_rng((seed, 1)))
    return Sample(
        to_model_square(image, shape.image_size, smooth=seed % 5 != 4),
        sentence_ids(drawing.scene),
        patch_words(drawing, shape),
        sentence_ids(mirror(drawing.scene)),
        patch_words(mirror_drawing(drawing), shape),
    )


def mirror_drawing(drawing: Drawing) -> Drawing:
    """Exchange left and right of a drawing (its pixels are mirrored elsewhere)."""
    scene = mirror(drawing.scene)
    placed_at = {_mirrored_place(PLACES.index(p.object.place)): p for p in drawing.placed}
    placed = []
    for o in scene.objects:
        was = placed_at[PLACES.index(o.place)]
        center = (drawing.width - was.center[0], was.center[1])
        placed.append(replace(was, object=o, center=center))
    return replace(drawing, scene=scene, placed=tuple(placed))


def sentence_ids(scene: Scene) -> NDArray[np.int16]:
    """Return what the model is to say about a scene, filled up to SENTENCE ids."""
    ids = np.full(SENTENCE, vocabulary.PAD_ID, np.int16)
    words = vocabulary.encode(scene)
    ids[: len(words)] = words
    return ids


def patch_words(drawing: Drawing, shape: Shape) -> NDArray[np.int8]:
    """Return for each patch what covers it, 0 for nothing: color, shape, size, place, order."""
    side, patch = shape.image_size, shape.patch_size
    width, height = fitted_size((drawing.width, drawing.height), side)
    left, top = (side - width) // 2, (side - height) // 2
    starts = np.arange(0, side, patch)
    words = np.zeros((side // patch, side // patch, len(PATCH_WORDS)), np.int8)
    most = np.full((side // patch, side // patch), COVERED)
    for order, placed in enumerate(drawing.placed):
        x = left + placed.center[0] * width / drawing.width
        y = top + placed.center[1] * height / drawing.height
        reach = placed.half_width * width / drawing.width
        share = np.outer(_overlap(starts, patch, y, reach), _overlap(starts, patch, x, reach))
        o = placed.object
        words[share > most] = (
            1 + list(COLORS).index(o.color),
            1 + SHAPES.index(o.shape),
            1 + list(SIZES).index(o.size),
            1 + PLACES.index(o.place),
            1 + order,
        )
        most = np.maximum(most, share)
    return words.reshape(-1, len(PATCH_WORDS))


def _mirrored_place(place: int) -> int:
    row, column = divmod(place, 3)
    return 3 * row + 2 - column


def draw_shard(folder: Path, first: int, shape: Shape) -> None:
    """Write the scenes of seeds first to first + SHARD - 1, unless they are there."""
    path = folder / f"{first:08d}.npz"
    if path.exists():
        return
    samples = [sample(first + i, shape) for i in range(SHARD)]
    unfinished = path.with_suffix(".part.npz")
    np.savez(
        unfinished,
        pixels=np.stack([s.pixels for s in samples]),
        ids=np.stack([s.ids for s in samples]),
        patches=np.stack([s.patches for s in samples]),
        mirrored_ids=np.stack([s.mirrored_ids for s in samples]),
        mirrored_patches=np.stack([s.mirrored_patches for s in samples]),
    )
    unfinished.rename(path)


def _overlap(
    starts: NDArray[np.int64], length: int, center: float, reach: float
) -> NDArray[np.float64]:
    """Return which share of each stretch [start, start + length) lies within reach of center."""
    ends = np.minimum(starts + length, center + reach)
    return np.clip(ends - np.maximum(starts, center - reach), 0, None) / length


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw training images.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=TRAINING_SEEDS.start)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        firsts = range(arguments.first, arguments.first + arguments.count, SHARD)
        tasks = [pool.submit(draw_shard, arguments.folder, first, Shape()) for first in firsts]
        for first, task in zip(firsts, tasks, strict=True):
            task.result()
            print(f"{first + SHARD - arguments.first:,} of {arguments.count:,}", flush=True)


if __name__ == "__main__":
    main()
