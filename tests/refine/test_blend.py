"""Resizing, padding, feathering, stitching and colour keeping."""

import pytest
import torch
from image_refinery.refine import blend
from image_refinery.refine.geometry import Box, Size, tile_boxes
from torch import Tensor


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("size", [(1, 1), (65, 70), (64, 64), (130, 3)])
def test_padding_mirrors_and_leaves_the_picture_itself(size: tuple[int, int]) -> None:
    pixels = noise(1, 3, *size)
    padded = blend.pad(pixels, Size(192, 128))
    assert padded.shape == (1, 3, 192, 128)
    assert torch.equal(padded[..., : size[0], : size[1]], pixels)
    assert torch.equal(padded[..., size[0], : size[1]], pixels[..., -1, :])


def test_tiles_cut_from_a_picture_join_to_that_picture() -> None:
    picture = noise(1, 3, 2048, 3008)
    boxes = tile_boxes(2048, 3008)
    assert len(boxes) > 1
    joined = blend.join_tiles([picture[(..., *box.slices)] for box in boxes], boxes)
    assert torch.allclose(joined, picture, atol=1e-6)


def test_between_two_different_tiles_there_is_no_step() -> None:
    boxes = tile_boxes(1024, 3072)
    shades = [torch.full((1, 1, *box.size), index / 3) for index, box in enumerate(boxes)]
    joined = blend.join_tiles(shades, boxes)
    steepest = (joined[..., 1:] - joined[..., :-1]).abs().max()
    # A cosine over the 128 px overlap between shades 1/3 apart rises by at most pi/2/128/3 a pixel.
    assert steepest < 0.0045


def test_keep_colors_takes_a_tint_back_and_leaves_detail() -> None:
    original = torch.full((1, 3, 128, 128), 0.5)
    detail = torch.zeros_like(original)
    detail[..., ::2] = 0.1
    detail[..., 1::2] = -0.1
    tinted = original + detail + torch.tensor([0.2, -0.1, 0.05])[None, :, None, None]
    kept = blend.keep_colors(tinted, original)
    assert torch.allclose(kept, original + detail, atol=1e-4)


def test_feather_is_zero_outside_full_inside_and_fades_inwards() -> None:
    mask = torch.zeros(1, 1, 100, 100)
    mask[..., 20:80, 20:80] = 1
    shown = blend.feather(mask)
    assert bool((shown[mask == 0] == 0).all())
    assert shown[0, 0, 50, 50] == 1
    edge = shown[0, 0, 50, 20:37]
    assert torch.allclose(edge, torch.arange(1, 18).clamp(max=16) / 16)


def test_a_mask_that_reaches_the_pictures_edge_does_not_fade_there() -> None:
    assert bool((blend.feather(torch.ones(1, 1, 40, 40)) == 1).all())


def test_a_line_of_one_pixel_still_shows() -> None:
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 20, :] = 1
    assert torch.equal(blend.feather(mask), mask)


def test_marked_box() -> None:
    mask = torch.zeros(1, 1, 10, 12)
    assert blend.marked_box(mask) is None
    mask[..., 3:5, 7] = 0.2
    assert blend.marked_box(mask) == Box(3, 7, 5, 8)


def test_resize_keeps_left_left() -> None:
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, 0, :, :32] = 1
    pixels[:, 2, :, 32:] = 1
    resized = blend.resize(pixels, Size(96, 200))
    assert resized[0, 0, 48, 20] > 0.99
    assert resized[0, 2, 48, 180] > 0.99
