"""Compute sizes, tiles and regions: integer arithmetic, without pixels.

All sizes are (height, width) in pixels; boxes are half open, like slices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .settings import WorkingSize

MEGAPIXEL = 1024 * 1024
"""The area at which SDXL models work best."""
MIN_WORKING_AREA_PX = MEGAPIXEL * 3 // 4
"""Smaller images are enlarged before the refinement."""
MAX_SINGLE_TILE_AREA_PX = 2 * MEGAPIXEL
MAX_SINGLE_TILE_SIDE_PX = 2048
"""Images above this area, or with a side above this length, are refined in tiles."""
MULTIPLE = 64
"""Three halvings in the VAE and three in the UNet: other sizes give the UNet odd skip sizes."""
LATENT = 8
"""Pixels per latent, along one side."""
MAX_TILE_SIDE_PX = 1024
MIN_TILE_OVERLAP_PX = 128
MARGIN_SHARE = 0.25
"""The margin around a masked region, as a share of its longer side."""
MIN_MARGIN_PX = 32


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Box(NamedTuple):
    """A rectangle: rows top to bottom - 1, columns left to right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Size:
        """The rectangle's height and width."""
        return Size(self.bottom - self.top, self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices, to index the last two dimensions of a tensor."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def divided(self, by: int) -> Box:
        """Return the same rectangle on a grid that is `by` times coarser."""
        return Box(*(side // by for side in self))


def working_size(height: int, width: int, mode: WorkingSize) -> Size:
    """Return the size at which an image is refined.

    "auto" enlarges an image below three quarters of a megapixel to about one megapixel and keeps
    its proportions. Every other image keeps its size.
    """
    area = height * width
    if mode == "keep size" or area >= MIN_WORKING_AREA_PX:
        return Size(height, width)
    factor = math.sqrt(MEGAPIXEL / area)
    return Size(max(1, round(height * factor)), max(1, round(width * factor)))


def padded_size(height: int, width: int) -> Size:
    """Return the next size whose sides are multiples of 64."""
    return Size(_round_up(height), _round_up(width))


def tile_boxes(height: int, width: int) -> list[Box]:
    """Return the tiles, all of one size, that cover a padded image, row by row.

    Images of up to two megapixels and 2048 px a side are one tile. Larger ones are cut into
    tiles of at most 1024 px that overlap by at least 128 px; all positions are multiples of 8.

    Args:
        height: A multiple of 64.
        width: A multiple of 64.
    """
    if height * width <= MAX_SINGLE_TILE_AREA_PX and max(height, width) <= MAX_SINGLE_TILE_SIDE_PX:
        return [Box(0, 0, height, width)]
    tops, tile_height = _spread(height)
    lefts, tile_width = _spread(width)
    return [Box(top, left, top + tile_height, left + tile_width) for top in tops for left in lefts]


def region_box(marked: Box, height: int, width: int) -> Box:
    """Return the part of an image to refine if only `marked` should change.

    Args:
        marked: The smallest box around the mask.
        height: The image's height.
        width: The image's width.
    """
    margin = max(MIN_MARGIN_PX, round(max(marked.size) * MARGIN_SHARE))
    return Box(
        max(0, marked.top - margin),
        max(0, marked.left - margin),
        min(height, marked.bottom + margin),
        min(width, marked.right + margin),
    )


def _round_up(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


def _spread(side: int) -> tuple[list[int], int]:
    """Return the starts of the tiles along one side, and their common length."""
    if side <= MAX_TILE_SIDE_PX:
        return [0], side
    count = math.ceil((side - MIN_TILE_OVERLAP_PX) / (MAX_TILE_SIDE_PX - MIN_TILE_OVERLAP_PX))
    length = _round_up(math.ceil((side + (count - 1) * MIN_TILE_OVERLAP_PX) / count))
    room = side - length
    starts = [room * index // (count - 1) // LATENT * LATENT for index in range(count - 1)]
    return [*starts, room], length
