"""Plan a refinement: which regions of an image are worked on, at which size, in which tiles.

Everything that needs to know this asks here: the refiner, and whoever describes its tiles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .blend import marked_box, resize_mask
from .errors import ImageError, SettingsError
from .geometry import (
    MIN_MARGIN_PX,
    Box,
    Size,
    in_reading_order,
    padded_size,
    region_boxes,
    scaled_size,
    tile_boxes,
    working_size,
)
from .pixels import read_mask
from .settings import RefineSettings

PLACE = "{tile}"
"""Where a tile's text goes in the common prompt."""


class Region(NamedTuple):
    """A part of an image that is worked on by itself.

    Attributes:
        box: In pixels of the image after `scale`.
        size: The size at which it is refined, before padding.
        tiles: The tiles of the padded region, at the size of the work, row by row.
    """

    box: Box
    size: Size
    tiles: list[Box]


def plan_regions(size: Size, mask: Tensor | None, settings: RefineSettings) -> list[Region]:
    """Return the regions to refine, in reading order; none if the mask marks nothing.

    Args:
        size: Of the image after `scale`.
        mask: (1, 1, H, W) of that size, 0 to 1, or None: refine everything.
        settings: `working_size`, `regions` and `tile_size` matter.
    """
    boxes = [Box(0, 0, *size)]
    if mask is not None:
        marked = marked_box(mask)
        if marked is None:
            return []
        parts = _parts(mask) if settings.regions == "separate" else [marked]
        boxes = in_reading_order(region_boxes(parts, *size))
    regions: list[Region] = []
    for box in boxes:
        work = working_size(*box.size, settings.working_size, settings.tile_size)
        tiles = tile_boxes(*padded_size(*work), settings.tile_size)
        regions.append(Region(box, work, tiles))
    return regions


def plan_tiles(
    size: tuple[int, int], settings: RefineSettings | None = None, mask: Any = None
) -> list[list[Box]]:
    """Return the part of the image that each tile shows, as (top, left, bottom, right) in pixels.

    The outer list has the regions, in reading order: one without a mask. The inner ones have
    their tiles, row by row.

    Args:
        size: (height, width) of the image.
        settings: `scale`, `working_size`, `regions` and `tile_size` matter.
        mask: One image's, as `ImageRefiner.refine` takes it.

    Raises:
        ImageError: the image has no pixels, or the mask cannot be used.
    """
    settings = settings or RefineSettings()
    height, width = size
    if height < 1 or width < 1:
        raise ImageError("The image is empty: it has no pixels.")
    full = scaled_size(height, width, settings.scale)
    marked = None if mask is None else resize_mask(read_mask(mask, 1, height, width), full)
    regions = plan_regions(full, marked, settings)
    return [
        [_in_input(tile, region, Size(height, width), full) for tile in region.tiles]
        for region in regions
    ]


@dataclass(frozen=True, kw_only=True)
class TilePrompts:
    """A text for each tile of one image, and what its tiles were computed from.

    Attributes:
        texts: By region and tile, in the order of `plan_tiles`.
        boxes: The return value of `plan_tiles`.
        size: (height, width) of the image.
        settings: `scale`, `working_size`, `regions` and `tile_size` matter.
    """

    texts: Sequence[Sequence[str]]
    boxes: Sequence[Sequence[Box]]
    size: tuple[int, int]
    settings: RefineSettings

    @classmethod
    def planned(
        cls, size: tuple[int, int], settings: RefineSettings, mask: Any = None
    ) -> TilePrompts:
        """Return the tiles of an image, with blank texts. Arguments are those of `plan_tiles`."""
        boxes = plan_tiles(size, settings, mask)
        texts = [[""] * len(region) for region in boxes]
        return cls(texts=texts, boxes=boxes, size=size, settings=settings)

    def with_texts(self, texts: Iterator[str]) -> TilePrompts:
        """Return the same tiles with the next texts, one for each."""
        return replace(self, texts=[[next(texts) for _ in region] for region in self.boxes])

    def for_image(
        self, size: tuple[int, int], settings: RefineSettings, mask: Any
    ) -> list[list[str]]:
        """Return the texts, checked to be for the tiles of this image.

        Raises:
            SettingsError: they are for other tiles; the message names the difference.
        """
        boxes = plan_tiles(size, settings, mask)
        if boxes != [list(row) for row in self.boxes]:
            raise SettingsError(
                f"The tile prompts do not fit: {self._difference(size, settings)}. Give Describe "
                "Tiles and the refiner the same image, mask and settings."
            )
        return [list(row) for row in self.texts]

    def _difference(self, size: tuple[int, int], settings: RefineSettings) -> str:
        if size != self.size:
            (height, width), (own_height, own_width) = size, self.size
            return (
                f"they are for an image of {own_width} x {own_height} px, and this one is "
                f"{width} x {height} px"
            )
        for name in ("working_size", "scale", "regions", "tile_size"):
            theirs, ours = getattr(self.settings, name), getattr(settings, name)
            if theirs != ours:
                return f"{name} was {theirs}, and is {ours} here"
        return "the mask is another"


def joined(prompt: str, text: str) -> str:
    """Return the common prompt with a tile's text: in place of {tile}, else after it.

    >>> joined("photo of {tile}, sharp", "a cat"), joined("sharp photo", "a cat"), joined("", "cat")
    ('photo of a cat, sharp', 'sharp photo, a cat', 'cat')
    """
    if PLACE in prompt:
        return prompt.replace(PLACE, text)
    return f"{prompt}, {text}" if prompt.strip() and text.strip() else prompt + text


def _parts(mask: Tensor) -> list[Box]:
    """Return a box around each connected part of a mask.

    Parts count as one if they touch the same cell of `MIN_MARGIN_PX`, or neighboring cells: with
    their margins they would overlap anyway. So the search is among a thousandth of the pixels.
    """
    boxes = _cell_boxes(mask[0, 0] > 0)
    parts: list[Box] = []
    while boxes:
        cells = [next(iter(boxes))]
        part = boxes.pop(cells[0])
        for row, column in cells:  # grows while it is walked
            for near in itertools.product(
                (row - 1, row, row + 1), (column - 1, column, column + 1)
            ):
                if near in boxes:
                    part = part.joined(boxes.pop(near))
                    cells.append(near)
        parts.append(part)
    return parts


def _cell_boxes(marked: Tensor) -> dict[tuple[int, int], Box]:
    """Return the box around what is marked in each cell that has something, by row and column."""
    side = MIN_MARGIN_PX
    down, across = (-length % side for length in marked.shape)
    cells = functional.pad(marked.to(torch.uint8), (0, across, 0, down))
    cells = cells.reshape(cells.shape[0] // side, side, cells.shape[1] // side, side)
    rows, columns = cells.amax(3).transpose(1, 2), cells.amax(1)  # (rows, columns, side)
    edges = torch.stack(
        [
            rows.argmax(2),
            columns.argmax(2),
            side - rows.flip(2).argmax(2),
            side - columns.flip(2).argmax(2),
        ],
        dim=2,
    )
    return {
        (row, column): Box(*(y + side * at for y, at in zip(edge, 2 * (row, column), strict=True)))
        for row, column in rows.amax(2).nonzero().tolist()
        for edge in [edges[row, column].tolist()]
    }


def _in_input(tile: Box, region: Region, size: Size, full: Size) -> Box:
    """Return what a tile shows, in pixels of the image before `scale`; no padding."""
    high, wide = region.box.size
    down, across = high / region.size.height, wide / region.size.width
    top = (region.box.top + tile.top * down) * size.height / full.height
    left = (region.box.left + tile.left * across) * size.width / full.width
    bottom = min(region.box.bottom, region.box.top + tile.bottom * down) * size.height / full.height
    right = min(region.box.right, region.box.left + tile.right * across) * size.width / full.width
    # Rounded outwards, but not because of the last digit of a float.
    return Box(
        math.floor(top + 1e-6),
        math.floor(left + 1e-6),
        min(size.height, math.ceil(bottom - 1e-6)),
        min(size.width, math.ceil(right - 1e-6)),
    )
