"""How close an image is to the undamaged original, by three published measures.

They need no weights. Each takes two images of one size: arrays (H, W) in gray or (H, W, 3) in RGB,
with values from 0 to 255 and sides of at least `MIN_SIDE_PX`. Luma is that of BT.601.

- SSIM: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
  visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004.
- GMSD: W. Xue, L. Zhang, X. Mou, A. C. Bovik, "Gradient magnitude similarity deviation: a highly
  efficient perceptual image quality index", IEEE Transactions on Image Processing 23(2), 2014.
- HaarPSI: R. Reisenhofer, S. Bosse, G. Kutyniok, T. Wiegand, "A Haar wavelet-based perceptual
  similarity index for image quality assessment", Signal Processing: Image Communication 61, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Plane = NDArray[np.float64]

MIN_SIDE_PX = 32

_SSIM_WINDOW_PX, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_GMSD_C = 170.0
_HAARPSI_C, _HAARPSI_ALPHA = 30.0, 4.2
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def similarity(original: ArrayLike, image: ArrayLike) -> dict[str, float]:
    """Return all three measures, by their names in lower case."""
    return {
        "ssim": ssim(original, image),
        "gmsd": gmsd(original, image),
        "haarpsi": haarpsi(original, image),
    }


def ssim(original: ArrayLike, image: ArrayLike) -> float:
    """Return the mean structural similarity of the luma: 1 for equal images, less for others.

    Gaussian window of 11 px and sigma 1.5, K1 = 0.01, K2 = 0.03, at the full size, over all windows
    that are entirely inside the image.
    """
    distance = np.arange(_SSIM_WINDOW_PX) - _SSIM_WINDOW_PX // 2
    window = np.exp(-(distance**2) / (2 * _SSIM_SIGMA**2))
    window /= window.sum()
    first, second = _planes(original)[0], _planes(image)[0]

    def mean(plane: Plane) -> Plane:
        return _filtered(plane, window, window)

    means = mean(first), mean(second)
    product = means[0] * means[1]
    squares = means[0] ** 2 + means[1] ** 2
    variances = mean(first**2) + mean(second**2) - squares
    covariance = mean(first * second) - product
    luminance = (2 * product + _SSIM_C1) / (squares + _SSIM_C1)
    return float((luminance * (2 * covariance + _SSIM_C2) / (variances + _SSIM_C2)).mean())


def gmsd(original: ArrayLike, image: ArrayLike) -> float:
    """Return the gradient magnitude similarity deviation: 0 for equal images, more for others.

    On the luma at half the size (means of 2 x 2 px), Prewitt gradients inside the image, c = 170.
    """
    smooth, slope = (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, -1.0)

    def gradients(image: ArrayLike) -> Plane:
        plane = _halved(_planes(image)[0])
        return np.hypot(_filtered(plane, smooth, slope), _filtered(plane, slope, smooth))

    return float(_alike(gradients(original), gradients(image), _GMSD_C).std())


def haarpsi(original: ArrayLike, image: ArrayLike) -> float:
    """Return the Haar wavelet-based perceptual similarity index: 1 for equal images, 0 at least.

    At half the size, C = 30, alpha = 4.2. Images in color are compared in YIQ.
    """
    firsts, seconds = ([_halved(plane) for plane in _planes(one)] for one in (original, image))
    maps: list[Plane] = []
    weights: list[Plane] = []
    for is_row in (True, False):
        pairs = [
            (np.abs(_haar(firsts[0], scale, is_row)), np.abs(_haar(seconds[0], scale, is_row)))
            for scale in (1, 2, 3)
        ]
        maps.append((_alike(*pairs[0], _HAARPSI_C) + _alike(*pairs[1], _HAARPSI_C)) / 2)
        weights.append(np.maximum(*pairs[2]))
    if len(firsts) == len(seconds) == 3:
        chroma = [
            np.abs(_filtered(_padded(plane, 0, 1), (0.5, 0.5), (0.5, 0.5)))
            for plane in (*firsts[1:], *seconds[1:])
        ]
        of_i = _alike(chroma[0], chroma[2], _HAARPSI_C)
        maps.append((of_i + _alike(chroma[1], chroma[3], _HAARPSI_C)) / 2)
        weights.append((weights[0] + weights[1]) / 2)
    weight = np.stack(weights)
    if not weight.any():  # two plain images: nothing to see, so nothing to weigh by
        weight = np.ones_like(weight)
    logistic = 1 / (1 + np.exp(-_HAARPSI_ALPHA * np.stack(maps)))
    mean = float((logistic * weight).sum() / weight.sum())
    return float((np.log(mean / (1 - mean)) / _HAARPSI_ALPHA) ** 2)


def _planes(image: ArrayLike) -> list[Plane]:
    """Return the luma, and for an image in color also I and Q."""
    pixels = np.asarray(image, np.float64)
    if pixels.ndim == 2:
        return [pixels]
    return [pixels @ np.array(weights) for weights in _TO_YIQ]


def _alike(first: Plane, second: Plane, constant: float) -> Plane:
    return (2 * first * second + constant) / (first**2 + second**2 + constant)


def _halved(plane: Plane) -> Plane:
    """Return the means of blocks of 2 x 2 px; an odd last row or column is left out."""
    height, width = (side - side % 2 for side in plane.shape)
    return plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _haar(plane: Plane, scale: int, is_row: bool) -> Plane:
    """Return the Haar coefficients of one scale and direction, of zeros outside the image."""
    side = 2**scale
    flat = np.full(side, 2.0**-scale)
    step = np.repeat((1.0, -1.0), side // 2)
    padded = _padded(plane, side // 2 - 1, side // 2)
    return _filtered(padded, flat, step) if is_row else _filtered(padded, step, flat)


def _padded(plane: Plane, before: int, after: int) -> Plane:
    return np.pad(plane, (before, after))


def _filtered(
    plane: Plane, down: Sequence[float] | Plane, across: Sequence[float] | Plane
) -> Plane:
    """Return the correlation with a separable filter, only where it is inside the image."""
    height, width = plane.shape[0] - len(down) + 1, plane.shape[1] - len(across) + 1
    rows = np.zeros((height, plane.shape[1]))
    for at, weight in enumerate(down):
        rows += weight * plane[at : at + height]
    result = np.zeros((height, width))
    for at, weight in enumerate(across):
        result += weight * rows[:, at : at + width]
    return result
