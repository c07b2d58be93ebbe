"""Working sizes, tiles and regions."""

import itertools
import math

import pytest
from hypothesis import given, settings, strategies
from image_refinery.refine.geometry import (
    LATENT,
    MAX_SINGLE_TILE_AREA_PX,
    MAX_TILE_SIDE_PX,
    MEGAPIXEL,
    MIN_TILE_OVERLAP_PX,
    MULTIPLE,
    Box,
    padded_size,
    region_box,
    tile_boxes,
    working_size,
)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (518, 518, (1024, 1024)),
        (1, 1, (1024, 1024)),
        (768, 1024, (768, 1024)),
        (1024, 1024, (1024, 1024)),
        (1000, 1504, (1000, 1504)),
        (256, 512, (724, 1448)),
        (2000, 3000, (2000, 3000)),
    ],
)
def test_auto_enlarges_small_pictures_only(height: int, width: int, expected: tuple) -> None:
    assert working_size(height, width, "auto") == expected
    assert working_size(height, width, "keep size") == (height, width)


def test_a_small_region_fills_a_tile_of_a_given_size() -> None:
    assert working_size(100, 200, "auto", 512) == (256, 512)
    assert working_size(450, 100, "auto", 512) == (450, 100)
    assert working_size(600, 900, "auto", 512) == (600, 900)
    assert working_size(100, 200, "keep size", 512) == (100, 200)


@settings(deadline=None)
@given(strategies.integers(1, 5000), strategies.integers(1, 5000))
def test_enlarging_reaches_a_megapixel_and_keeps_proportions(height: int, width: int) -> None:
    size = working_size(height, width, "auto")
    if size == (height, width):
        return
    factor = math.sqrt(MEGAPIXEL / (height * width))
    assert abs(size.height - height * factor) <= 0.5 or size.height == 1
    assert abs(size.width - width * factor) <= 0.5 or size.width == 1


def test_padding_reaches_the_next_multiple_of_64() -> None:
    assert padded_size(1, 64) == (64, 64)
    assert padded_size(65, 128) == (128, 128)


@settings(max_examples=300, deadline=None)
@given(
    strategies.integers(1, 130), strategies.integers(1, 130), strategies.sampled_from((0, 256, 700))
)
def test_tiles_cover_everything_overlap_enough_and_fit_the_model(
    rows: int, columns: int, tile_size: int
) -> None:
    height, width = rows * MULTIPLE, columns * MULTIPLE
    boxes = tile_boxes(height, width, tile_size)
    if len(boxes) == 1:
        assert boxes == [Box(0, 0, height, width)]
        assert height * width <= (tile_size**2 or MAX_SINGLE_TILE_AREA_PX)
        return
    assert {box.size for box in boxes} == {boxes[0].size}
    for start, end, length in ((0, 2, height), (1, 3, width)):
        spans = sorted({(box[start], box[end]) for box in boxes})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(
            one[1] - other[0] >= MIN_TILE_OVERLAP_PX for one, other in itertools.pairwise(spans)
        )
        assert all(low % (MULTIPLE if tile_size else LATENT) == 0 for low, _ in spans)
        longest = tile_size or MAX_TILE_SIDE_PX
        assert all((high - low) % MULTIPLE == 0 and high - low <= longest for low, high in spans)


def test_a_photograph_of_six_megapixels_takes_twelve_tiles() -> None:
    assert len(tile_boxes(*padded_size(2000, 3000))) == 12


def test_a_region_has_a_margin_and_stays_inside_the_picture() -> None:
    assert region_box(Box(400, 400, 600, 500), 1000, 1000) == Box(350, 350, 650, 550)
    assert region_box(Box(0, 0, 10, 10), 1000, 1000) == Box(0, 0, 42, 42)
    assert region_box(Box(990, 0, 1000, 1000), 1000, 1000) == Box(740, 0, 1000, 1000)


def test_boxes_index_tensors_and_latents() -> None:
    box = Box(8, 16, 72, 144)
    assert box.size == (64, 128)
    assert box.slices == (slice(8, 72), slice(16, 144))
    assert box.divided(8) == Box(1, 2, 9, 18)
