"""Describe Tiles with the toy vision model, which really sees: each tile's text is about it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.embedded

SIDE, TILE = 2048, 768


def four_quadrants(scenes: ModuleType, first: int) -> tuple[torch.Tensor, list[Any]]:
    """An image (1, 2048, 2048, 3) with another scene in each corner, as large as a tile."""
    image, drawn = torch.full((1, SIDE, SIDE, 3), 0.5), []
    for corner in range(4):
        drawing = scenes.compose(scenes.HELD_OUT_SEEDS[first + corner], (TILE, TILE))
        pixels = torch.from_numpy(np.asarray(scenes.paint(drawing), np.float32) / 255)
        top, left = (0, SIDE - TILE)[corner // 2], (0, SIDE - TILE)[corner % 2]
        image[0, top : top + TILE, left : left + TILE] = pixels
        drawn.append(drawing.scene)
    return image, drawn


def test_each_corner_of_four_images_is_told_by_its_own_tile(
    scenes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.llm.llamacpp import process
    from image_refinery.nodes.describe_tiles import DescribeTiles
    from image_refinery.refine import Batch, RefineSettings

    loads: list[Any] = []
    start = process.Worker._start

    def noted(worker: Any) -> Any:
        loads.append(worker)
        return start(worker)

    monkeypatch.setattr(process.Worker, "_start", noted)
    made = [four_quadrants(scenes, 4 * number) for number in range(4)]
    images = [image for image, _ in made]
    texts, prompts = DescribeTiles.execute(
        image=images, vision_model=["toy-vision"], server=["embedded"]
    ).result
    assert len(texts) == 4 * 9 and len(loads) == 1
    scores: list[Any] = []
    for (image, drawn), own in zip(made, prompts, strict=True):
        ((*tiles,),) = own.texts
        for scene, index in zip(drawn, (0, 2, 6, 8), strict=True):
            assert own.boxes[0][index].size == (TILE, TILE)
            scores += scenes.score(tiles[index], scene)
        batch = Batch([image], RefineSettings(prompt="flat colors"), tile_prompts=[own])
        assert batch.items[0].prompts == [[f"flat colors, {text}" for text in tiles]]
    right = sum(score.color_and_shape and score.place for score in scores)
    assert right >= 0.9 * len(scores), f"{right} of {len(scores)}"
