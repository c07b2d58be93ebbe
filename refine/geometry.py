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

    def overlaps(self, other: Box) -> bool:
        """Return whether they have pixels in common."""
        return (
            self.top < other.bottom
            and other.top < self.bottom
            and self.left < other.right
            and other.left < self.right
        )

    def joined(self, other: Box) -> Box:
        """Return the smallest box around both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def divided(self, by: int) -> Box:
        """Return the same rectangle on a grid that is `by` times coarser."""
        return Box(*(side // by for side in self))


def working_size(height: int, width: int, mode: WorkingSize, tile_size: int = 0) -> Size:
    """Return the size at which an image is refined.

    "auto" enlarges an image below three quarters of a megapixel to about one megapixel and keeps
    its proportions; with a `tile_size`, one below three quarters of a tile to fill the tile. Every
    other image keeps its size.
    """
    factor = math.sqrt(MEGAPIXEL / (height * width))
    if tile_size:
        factor = tile_size / max(height, width)
    if mode == "keep size" or factor <= math.sqrt(MEGAPIXEL / MIN_WORKING_AREA_PX):
        return Size(height, width)
    return Size(max(1, round(height * factor)), max(1, round(width * factor)))


def padded_size(height: int, width: int) -> Size:
    """Return the next size whose sides are multiples of 64."""
    return Size(_round_up(height), _round_up(width))


def scaled_size(height: int, width: int, scale: float) -> Size:
    """Return the size of an image that is enlarged by a factor."""
    return Size(round(height * scale), round(width * scale))


def tile_boxes(height: int, width: int, tile_size: int = 0) -> list[Box]:
    """Return the tiles, all of one size, that cover a padded image, row by row.

    Images of up to two megapixels and 2048 px a side are one tile. Larger ones are cut into
    tiles of at most 1024 px that overlap by at least 128 px; all positions are multiples of 8, or
    of 64 with a `tile_size`, for VAEs with larger cells.

    Args:
        height: A multiple of 64.
        width: A multiple of 64.
        tile_size: The largest side of a tile, also of a single one; at least 256. 0: as above.
    """
    longest, area = max(height, width), height * width
    if (
        longest <= tile_size
        if tile_size
        else longest <= MAX_SINGLE_TILE_SIDE_PX and area <= MAX_SINGLE_TILE_AREA_PX
    ):
        return [Box(0, 0, height, width)]
    largest = tile_size // MULTIPLE * MULTIPLE or MAX_TILE_SIDE_PX
    grid = MULTIPLE if tile_size else LATENT
    tops, tile_height = _spread(height, largest, grid)
    lefts, tile_width = _spread(width, largest, grid)
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


def region_boxes(marked: list[Box], height: int, width: int) -> list[Box]:
    """Return the parts of an image to refine, each as in `region_box`, none of which overlap.

    Args:
        marked: The boxes around the parts of a mask; those whose regions overlap become one.
        height: The image's height.
        width: The image's width.
    """
    left, regions = [*marked], dict[Box, Box]()
    while left:
        box = left.pop()
        region = region_box(box, height, width)
        other = next((one for one, its in regions.items() if its.overlaps(region)), None)
        if other is None:
            regions[box] = region
        else:
            del regions[other]
            left.append(box.joined(other))
    return [*regions.values()]


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """Return boxes row by row, each row from left to right; a row has the height of its first."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.top + box.bottom):
        if rows and box.top + box.bottom < 2 * rows[-1][0].bottom:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box.left)]


def _round_up(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


def _spread(side: int, largest: int, grid: int) -> tuple[list[int], int]:
    """Return the starts of the tiles along one side, and their common length."""
    if side <= largest:
        return [0], side
    count = math.ceil((side - MIN_TILE_OVERLAP_PX) / (largest - MIN_TILE_OVERLAP_PX))
    length = _round_up(math.ceil((side + (count - 1) * MIN_TILE_OVERLAP_PX) / count))
    room = side - length
    starts = [room * index // (count - 1) // grid * grid for index in range(count - 1)]
    return [*starts, room], length
