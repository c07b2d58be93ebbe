"""Bring an image to the model's square as llama.cpp does for the projector type `mlp`.

It scales the longer side to the model's side with Pillow's own cubic and centers the result on
(122, 116, 104). Builds from before August 2026 took a cubic through four samples instead, with no
smoothing before it shrinks; training shows the model some of that too (`smooth=False`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PADDING_RGB = (122, 116, 104)
CUBIC = Image.Resampling.BICUBIC


def to_model_square(image: Image.Image, side: int, smooth: bool = True) -> NDArray[np.uint8]:
    """Return uint8 pixels (side, side, 3) of an RGB image of any size."""
    width, height = fitted_size(image.size, side)
    if smooth:
        fitted = image.resize((width, height), CUBIC)
    else:
        steps = (image.width / width, 0, 0, 0, image.height / height, 0)
        fitted = image.transform((width, height), Image.Transform.AFFINE, steps, CUBIC)
    square = Image.new("RGB", (side, side), PADDING_RGB)
    square.paste(fitted, ((side - width) // 2, (side - height) // 2))
    return np.array(square)


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the width and height of an image once it is fitted into the square."""
    scale = min(np.float32(side) / np.float32(size[0]), np.float32(side) / np.float32(size[1]))
    width, height = (min(math.ceil(np.float32(length) * scale), side) for length in size)
    return width, height
