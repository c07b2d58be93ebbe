"""The measures of similarity: known values, and the formulas written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from image_refinery.refine.similarity import MIN_SIDE_PX, gmsd, haarpsi, similarity, ssim
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float64]
EXACT = {"ssim": 1.0, "gmsd": 0.0, "haarpsi": 1.0}


def texture(*shape: int, seed: int = 0) -> Pixels:
    """Smooth shapes and edges, as in a photograph."""
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width]
    plane = 110 + 60 * np.sin(x / 5 + y / 9) + 50 * (x > width / 2) - 40 * (y + x > height)
    planes = np.stack([np.roll(plane, 7 * turn, axis=1) for turn in range(3)], axis=2)
    noise = np.random.default_rng(seed).normal(0, 3, (height, width, 3))
    pixels = np.clip(planes + noise, 0, 255)
    return pixels if len(shape) == 3 else pixels[:, :, 0]


def noisy(pixels: Pixels, deviation: float) -> Pixels:
    noise = np.random.default_rng(1).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255)


@pytest.mark.parametrize("shape", [(48, 65), (65, 48, 3), (MIN_SIDE_PX, MIN_SIDE_PX, 3)])
def test_an_image_equals_itself_and_noise_takes_it_further_away(shape: tuple[int, ...]) -> None:
    original = texture(*shape)
    assert similarity(original, original) == pytest.approx(EXACT, abs=1e-9)
    found = [similarity(original, noisy(original, sigma)) for sigma in (2, 6, 12, 25, 50)]
    for name, best in EXACT.items():
        away = [abs(best - each[name]) for each in found]
        assert away == sorted(away) and away[0] > 0 and away[-1] < 1


def test_measures_are_the_same_in_both_directions() -> None:
    first, second = texture(40, 40, 3), texture(40, 40, 3, seed=9)
    assert similarity(first, second) == pytest.approx(similarity(second, first))


@pytest.mark.parametrize("level", [0, 255])
def test_plain_images_are_measured_too(level: int) -> None:
    plain = np.full((40, 40), level, np.uint8)
    assert similarity(plain, plain) == pytest.approx(EXACT, abs=1e-9)
    # By hand: no variance is left, only the luminance term of 0 and 255.
    assert ssim(plain, 255 - plain) == pytest.approx(2.55**2 / (255**2 + 2.55**2))


def test_bytes_are_read_as_numbers_and_haarpsi_notices_a_change_of_color_alone() -> None:
    original = texture(40, 40, 3).astype(np.uint8)
    assert similarity(original, original.astype(float)) == pytest.approx(EXACT, abs=1e-9)
    other = original + np.array((20, -10.1873, 0))  # of the same luma
    assert ssim(original, other) == pytest.approx(1, abs=1e-4)
    assert haarpsi(original, other) < 0.99


def luma(pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        return pixels
    return 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]


def halved(plane: Pixels) -> Pixels:
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    small = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            block = plane[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            small[row, column] = block.sum() / 4
    return small


def ssim_by_hand(first: Pixels, second: Pixels) -> float:
    one, other = luma(first), luma(second)
    window = np.array(
        [[math.exp(-(y * y + x * x) / 4.5) for x in range(-5, 6)] for y in range(-5, 6)]
    )
    window /= window.sum()
    values: list[float] = []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            a = one[row : row + 11, column : column + 11]
            b = other[row : row + 11, column : column + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            shared = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 6.5025)
                * (2 * shared + 58.5225)
                / ((mean_a**2 + mean_b**2 + 6.5025) * (var_a + var_b + 58.5225))
            )
    return sum(values) / len(values)


def gmsd_by_hand(first: Pixels, second: Pixels) -> float:
    one, other = halved(luma(first)), halved(luma(second))

    def gradient(plane: Pixels, row: int, column: int) -> float:
        block = plane[row - 1 : row + 2, column - 1 : column + 2]
        across = (block[:, 0].sum() - block[:, 2].sum()) / 3
        down = (block[0].sum() - block[2].sum()) / 3
        return math.sqrt(across**2 + down**2)

    values: list[float] = []
    for row in range(1, one.shape[0] - 1):
        for column in range(1, one.shape[1] - 1):
            a, b = gradient(one, row, column), gradient(other, row, column)
            values.append((2 * a * b + 170) / (a * a + b * b + 170))
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def haarpsi_by_hand(first: Pixels, second: Pixels) -> float:
    def channels(pixels: Pixels) -> list[Pixels]:
        if pixels.ndim == 2:
            return [halved(pixels)]
        red, green, blue = (pixels[..., index] for index in range(3))
        return [
            halved(luma(pixels)),
            halved(0.596 * red - 0.274 * green - 0.322 * blue),
            halved(0.211 * red - 0.523 * green + 0.312 * blue),
        ]

    def at(plane: Pixels, row: int, column: int) -> float:
        inside = 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]
        return float(plane[row, column]) if inside else 0.0

    def haar(plane: Pixels, row: int, column: int, side: int, down: bool) -> float:
        total = 0.0
        for y in range(side):
            for x in range(side):
                sign = 1 if (y if down else x) < side // 2 else -1
                start = side // 2 - 1
                total += sign * at(plane, row + y - start, column + x - start) / side
        return abs(total)

    def alike(a: float, b: float) -> float:
        return (2 * a * b + 30) / (a * a + b * b + 30)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-4.2 * value))

    ones, others = channels(first), channels(second)
    above = below = 0.0
    for row in range(ones[0].shape[0]):
        for column in range(ones[0].shape[1]):
            weights: list[float] = []
            for down in (True, False):
                pairs = [
                    (
                        haar(ones[0], row, column, side, down),
                        haar(others[0], row, column, side, down),
                    )
                    for side in (2, 4, 8)
                ]
                weights.append(max(pairs[2]))
                above += weights[-1] * sigmoid((alike(*pairs[0]) + alike(*pairs[1])) / 2)
            if len(ones) == 3:
                means = [
                    abs(sum(at(plane, row + y, column + x) for y in (0, 1) for x in (0, 1)) / 4)
                    for plane in (*ones[1:], *others[1:])
                ]
                weights.append(sum(weights) / 2)
                both = (alike(means[0], means[2]) + alike(means[1], means[3])) / 2
                above += weights[-1] * sigmoid(both)
            below += sum(weights)
    mean = above / below
    return (math.log(mean / (1 - mean)) / 4.2) ** 2


@pytest.mark.parametrize("shape", [(33, 40), (36, 33, 3)])
def test_the_measures_are_the_published_formulas(shape: tuple[int, ...]) -> None:
    original = texture(*shape)
    other = noisy(original, 20)
    assert ssim(original, other) == pytest.approx(ssim_by_hand(original, other), abs=1e-9)
    assert gmsd(original, other) == pytest.approx(gmsd_by_hand(original, other), abs=1e-9)
    assert haarpsi(original, other) == pytest.approx(haarpsi_by_hand(original, other), abs=1e-9)


def test_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    original = texture(60, 90)
    for image in (noisy(original, 15), np.asarray(Image.fromarray(original).rotate(2))):
        theirs = metrics.structural_similarity(
            original,
            image,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(original, image) == pytest.approx(theirs, abs=1e-9)
