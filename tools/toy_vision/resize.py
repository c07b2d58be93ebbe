"""Bring a picture to the model's square as llama.cpp does for the projector type `mlp`.

It scales the longer side to the model's side with Pillow's own cubic and centres the result on
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


def to_model_square(picture: Image.Image, side: int, smooth: bool = True) -> NDArray[np.uint8]:
    """Return uint8 pixels (side, side, 3) of an RGB picture of any size."""
    width, height = fitted_size(picture.size, side)
    if smooth:
        fitted = picture.resize((width, height), CUBIC)
    else:
        steps = (picture.width / width, 0, 0, 0, picture.height / height, 0)
        fitted = picture.transform((width, height), Image.Transform.AFFINE, steps, CUBIC)
    square = Image.new("RGB", (side, side), PADDING_RGB)
    square.paste(fitted, ((side - width) // 2, (side - height) // 2))
    return np.array(square)


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the width and height of a picture once it is fitted into the square."""
    scale = min(np.float32(side) / np.float32(size[0]), np.float32(side) / np.float32(size[1]))
    width, height = (min(math.ceil(np.float32(length) * scale), side) for length in size)
    return width, height
