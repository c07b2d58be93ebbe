"""Separate regions, scale, and a prompt for each tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from image_refinery.refine import (
    Batch,
    ImageError,
    ImageRefiner,
    RefineCancelled,
    RefineSettings,
    SettingsError,
    TilePrompts,
    blend,
    plan_tiles,
)
from image_refinery.refine.geometry import Box, Size, in_reading_order, region_boxes
from image_refinery.refine.plan import _parts, plan_regions
from image_refinery.refine.stages import Stages
from PIL import Image

Draw = Callable[[int, tuple[int, int]], Image.Image]
QUICK: dict[str, Any] = {"num_inference_steps": 4}
SMALL: dict[str, Any] = {"num_inference_steps": 4, "working_size": "keep size"}


def mask_of(height: int, width: int, *boxes: Box) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    for box in boxes:
        mask[(..., *box.slices)] = 1
    return mask


def connected(mask: torch.Tensor) -> list[Box]:
    """The boxes around the connected parts of a mask, pixel by pixel."""
    left = {(int(row), int(column)) for row, column in mask[0, 0].nonzero()}
    boxes: list[Box] = []
    while left:
        found = [left.pop()]
        for row, column in found:
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
            found += near & left
            left -= near
        rows, columns = zip(*found, strict=True)
        boxes.append(Box(min(rows), min(columns), max(rows) + 1, max(columns) + 1))
    return boxes


@settings(max_examples=60, deadline=None)
@given(strategies.integers(0, 2**32 - 1), strategies.integers(1, 8))
def test_regions_are_those_of_connected_parts(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 700, 2))
    mask = torch.zeros(1, 1, height, width)
    for _ in range(count):
        top, left = int(random.integers(height)), int(random.integers(width))
        mask[..., top : top + int(random.integers(1, 40)), left : left + 3] = 1
    regions = region_boxes(_parts(mask), height, width)
    assert sorted(regions) == sorted(region_boxes(connected(mask), height, width))
    for index, box in enumerate(regions):
        assert not any(box.overlaps(other) for other in regions[:index])
        mask[(..., *box.slices)] = 0
    assert not mask.any()


def test_reading_order_is_by_rows() -> None:
    boxes = [
        Box(0, 500, 100, 600),
        Box(20, 10, 130, 90),
        Box(300, 0, 350, 50),
        Box(90, 700, 160, 9),
    ]
    assert in_reading_order(boxes[::-1]) == [boxes[1], boxes[0], boxes[3], boxes[2]]


def test_a_part_inside_another_belongs_to_it() -> None:
    ring = mask_of(600, 600, Box(100, 100, 500, 500))
    ring[..., 110:490, 110:490] = 0
    ring[..., 290:310, 290:310] = 1
    (region,) = plan_regions(Size(600, 600), ring, RefineSettings())
    assert region.box == Box(0, 0, 600, 600)


def test_two_small_objects_get_a_megapixel_each(refiner: ImageRefiner) -> None:
    objects = [Box(30, 40, 126, 136), Box(1850, 1800, 1946, 1896)]
    mask = mask_of(2000, 2000, *objects)
    regions = plan_regions(Size(2000, 2000), mask, RefineSettings())
    assert [region.size for region in regions] == [(1018, 1030), (1024, 1024)]
    assert [region.box for region in regions] == [
        Box(0, 8, 158, 168),
        Box(1818, 1768, 1978, 1928),
    ]
    (one,) = plan_regions(Size(2000, 2000), mask, RefineSettings(regions="one box"))
    assert one.box == Box(0, 0, 2000, 2000) and len(one.tiles) == 9


@pytest.mark.usefixtures("sixteenth_megapixel")
def test_each_region_is_refined_as_if_it_were_alone(refiner: ImageRefiner, draw: Draw) -> None:
    image = np.asarray(draw(2, (400, 300)), np.float32) / 255
    boxes = [Box(20, 10, 70, 60), Box(200, 320, 260, 380)]
    both = refiner.refine(image, mask=mask_of(300, 400, *boxes)[0, 0], **QUICK)
    outside = mask_of(300, 400, *boxes)[0, 0].numpy() == 0
    assert (both[outside] == image[outside]).all()
    for box in boxes:
        alone = refiner.refine(image, mask=mask_of(300, 400, box)[0, 0], **QUICK)
        assert (both[box.slices] == alone[box.slices]).all()
        assert (both[box.slices] != image[box.slices]).any()


@pytest.mark.usefixtures("sixteenth_megapixel")
def test_progress_tells_the_region(refiner: ImageRefiner, draw: Draw) -> None:
    texts: list[str] = []
    mask = mask_of(300, 400, Box(20, 10, 70, 60), Box(200, 320, 260, 380))[0, 0]
    refiner.refine(
        draw(2, (400, 300)), mask=mask, on_progress=lambda event: texts.append(event.text), **QUICK
    )
    assert "region 1 of 2, step 0 of 1 (4 x 0.3)" in texts
    assert texts.index("region 2 of 2, step 1 of 1 (4 x 0.3)") < len(texts) - 1


def doubled(image: torch.Tensor) -> torch.Tensor:
    return image.repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.mark.parametrize("upscaler", [None, doubled])
def test_scale_enlarges_and_refines(
    refiner: ImageRefiner, draw: Draw, upscaler: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    image = np.asarray(draw(4, (350, 250)), np.float32) / 255
    large = np.asarray(draw(4, (700, 500)), np.float32) / 255
    done = refiner.refine(image, scale=2, upscaler=upscaler, **SMALL)
    assert done.shape == (500, 700, 3)
    assert np.square(done - large).mean() < 0.01
    plain = refiner.refine(image, strength=0, scale=2, upscaler=upscaler)
    assert plain.shape == (500, 700, 3) and (plain != done).any()


def test_scale_alone_loads_nothing(tmp_path: Path, draw: Draw) -> None:
    image = draw(4, (35, 25))
    image.putalpha(77)
    refiner = ImageRefiner("cpu", model=str(tmp_path))
    enlarged = refiner.refine(image, strength=0, scale=2.5)
    assert (enlarged.size, enlarged.mode) == ((88, 62), "RGBA")
    assert enlarged.getchannel("A").getextrema() == (77, 77)
    lanczos = image.convert("RGB").resize((88, 62), Image.Resampling.LANCZOS)
    difference = np.asarray(enlarged.convert("RGB"), int) - np.asarray(lanczos, int)
    assert np.abs(difference).max() <= 1


def test_masks_follow_the_scale(refiner: ImageRefiner, draw: Draw) -> None:
    image = np.asarray(draw(4, (160, 120)), np.float32) / 255
    mask = mask_of(120, 160, Box(40, 50, 80, 90))[0, 0]
    done = refiner.refine(image, mask=mask, scale=2, **SMALL)
    plain = refiner.refine(image, strength=0, scale=2)
    assert done.shape == (240, 320, 3)
    outside = np.ones((240, 320), bool)
    outside[78:162, 98:182] = False
    assert (done[outside] == plain[outside]).all()
    assert (done[100:140, 120:160] != plain[100:140, 120:160]).any()


def test_an_upscaler_that_returns_no_image_costs_only_its_image(refiner: ImageRefiner) -> None:
    images = [torch.rand(1, 32, 32, 3) for _ in range(2)]
    answers = iter([torch.full((1, 64, 64, 3), float("nan")), torch.rand(1, 70, 60, 3)])
    errors: list[str] = []
    batch = Batch(
        images,
        RefineSettings(scale=2, **SMALL),
        upscaler=lambda _: next(answers),
        on_image_error=lambda number, error: errors.append(f"{number}: {error}"),
    )
    first, second = refiner.refine_items(batch)
    assert first is images[0] and second.shape == (1, 64, 64, 3)
    assert errors == [
        "0: The upscaler produced NaN or infinity: choose another upscale model.",
    ]
    with pytest.raises(ImageError, match=r"shape \(32, 32, 3\)"):
        refiner.refine(images[0], scale=2, upscaler=lambda image: image[0], **SMALL)


def test_a_stop_is_seen_before_an_image_is_enlarged(refiner: ImageRefiner) -> None:
    called: list[torch.Tensor] = []

    def upscaler(image: torch.Tensor) -> torch.Tensor:
        called.append(image)
        return doubled(image)

    with pytest.raises(RefineCancelled):
        refiner.refine_batch(
            [torch.rand(1, 32, 32, 3) for _ in range(3)],
            RefineSettings(scale=2, strength=0),
            upscaler=upscaler,
            should_stop=lambda: bool(called),
        )
    assert len(called) == 1


def prompts_for(image: Image.Image, texts: list[list[str]], **more: Any) -> TilePrompts:
    size, mask = (image.height, image.width), more.pop("mask", None)
    chosen = RefineSettings(**more)
    return TilePrompts(
        texts=texts, boxes=plan_tiles(size, chosen, mask), size=size, settings=chosen
    )


@pytest.mark.usefixtures("sixteenth_megapixel")
def test_each_tile_has_the_conditioning_of_its_own_text(
    refiner: ImageRefiner,
    draw: Draw,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = draw(5, (1088, 128))
    places = plan_tiles((128, 1088), RefineSettings())
    assert len(places) == 1 and len(places[0]) == 2
    texts = [[f"part {index}" for index in range(len(places[0]))]]
    used: list[Any] = []
    refine = Stages.refine

    def noted(stages: Stages, tiles: Any, conditionings: Any, *rest: Any) -> None:
        used.extend(conditionings)
        refine(stages, tiles, conditionings, *rest)

    monkeypatch.setattr(Stages, "refine", noted)
    refiner.refine(
        image, prompt="a photo of {tile}, sharp", tile_prompts=prompts_for(image, texts), **QUICK
    )
    expected = [f"a photo of {text}, sharp" for text in texts[0]]
    assert encoded == expected
    own = [refiner._prompts[prompt, "", "plain text"] for prompt in expected]
    assert len(used) == len(own) and all(a is b for a, b in zip(used, own, strict=True))
    pooled = torch.cat([one.pooled_prompt_embeds for one in own])
    assert len(pooled.unique(dim=0)) == len(own)
    refiner.refine(
        image, prompt="a photo of {tile}, sharp", tile_prompts=prompts_for(image, texts), **QUICK
    )
    assert len(encoded) == len(expected), "the second run encodes nothing"


def test_texts_of_regions_join_the_prompt(
    refiner: ImageRefiner, draw: Draw, encoded: list[str]
) -> None:
    image = draw(2, (400, 300))
    mask = mask_of(300, 400, Box(200, 320, 260, 380), Box(20, 10, 70, 60))
    tiles = prompts_for(image, [["a red ball"], ["a blue box"]], mask=mask[0, 0], **SMALL)
    refiner.refine(image, prompt="on grass", mask=mask[0, 0], tile_prompts=tiles, **SMALL)
    assert encoded == ["on grass, a red ball", "on grass, a blue box"]


@pytest.mark.parametrize(
    ("changed", "width", "named"),
    [
        ({"scale": 2.0}, 3000, "scale was 1.0, and is 2.0 here"),
        ({"working_size": "auto"}, 3000, "working_size was keep size, and is auto here"),
        ({}, 3001, "they are for an image of 3000 x 100 px, and this one is 3001 x 100 px"),
        ({"mask": mask_of(100, 3000, Box(0, 0, 9, 9))[0, 0]}, 3000, "the mask is another"),
    ],
)
def test_texts_for_other_tiles_are_refused(
    refiner: ImageRefiner, draw: Draw, changed: dict[str, Any], width: int, named: str
) -> None:
    image = draw(0, (3000, 100))
    texts = [["a ball"] * len(plan_tiles((100, 3000), RefineSettings(**SMALL))[0])]
    tiles = prompts_for(image, texts, **SMALL)
    with pytest.raises(SettingsError, match=f"The tile prompts do not fit: {named}. Give"):
        refiner.refine(draw(0, (width, 100)), tile_prompts=tiles, **{**SMALL, **changed})


def test_tile_prompts_are_paired_with_images(refiner: ImageRefiner, draw: Draw) -> None:
    batch = torch.rand(2, 64, 64, 3)
    one = prompts_for(draw(0, (64, 64)), [["a ball"]], **SMALL)
    other = replace(one, texts=[["a box"]])
    made = Batch([batch], RefineSettings(**SMALL), tile_prompts=[[one, other]])
    assert [item.prompts for item in made.items] == [[["a ball"]], [["a box"]]]
    made = Batch([batch], RefineSettings(**SMALL), tile_prompts=[one])
    assert [item.prompts for item in made.items] == [[["a ball"]]] * 2
    with pytest.raises(SettingsError, match="2 images has 1 tile prompts"):
        Batch([batch], RefineSettings(**SMALL), tile_prompts=[[one]])


def test_tiles_are_told_in_pixels_of_the_input() -> None:
    chosen = RefineSettings(scale=2)
    (tiles,) = plan_tiles((1088, 1088), chosen)
    assert tiles[0][:2] == (0, 0) and tiles[-1][2:] == (1088, 1088)
    assert len(tiles) == 9 and {box.size for box in tiles} == {(416, 416)}
    (small,) = plan_tiles((100, 60), RefineSettings())
    assert small == [Box(0, 0, 100, 60)], "the padding is not of the image"
    assert plan_tiles((64, 64), None, torch.zeros(64, 64)) == []


def test_an_empty_image_and_a_mask_of_another_size_are_refused() -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        plan_tiles((0, 64))
    with pytest.raises(ImageError, match="The mask is 60 x 64 px, but the image is 64 x 64 px"):
        plan_tiles((64, 64), None, torch.zeros(64, 60))


def test_smaller_tiles_can_be_asked_for() -> None:
    (tiles,) = plan_tiles((1024, 1024), RefineSettings(tile_size=512))
    assert len(tiles) == 9 and {box.size for box in tiles} == {(448, 448)}
    assert blend.join_tiles([torch.ones(1, 3, *box.size) for box in tiles], tiles).eq(1).all()


def test_regions_of_a_large_mask_are_found_quickly() -> None:
    random = np.random.default_rng(1)
    mask = torch.from_numpy(random.random((1, 1, 4000, 4000)) > 0.9999).float()
    (region,) = plan_regions(Size(4000, 4000), mask, RefineSettings())
    assert region.box.size == (4000, 4000)
