"""Prepare one image for the model (crop, enlarge, pad, tile), and stitch the result together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from . import blend
from .geometry import LATENT, Box, Size, padded_size, region_box, tile_boxes, working_size
from .pixels import Planes
from .previews import Canvas, fit_colors
from .settings import RefineSettings

LATENT_CHANNELS = 4


class Plan(NamedTuple):
    """The region of an image to refine, and the size and tiles for that.

    Attributes:
        region: The part of the image to refine.
        size: The size at which it is refined, before padding.
        boxes: The tiles of the padded region.
    """

    region: Box
    size: Size
    boxes: list[Box]


@dataclass
class Tile:
    """One tile for the model.

    Attributes:
        pixels: (1, 3, H, W), 0 to 1; sides are multiples of 64.
        latent_noise: (1, 4, H / 8, W / 8); the noise to sample the VAE's posterior.
        start_noise: The same shape; the noise to add before the first step.
        generator: For samplers that add noise at every step.
        input_latents: (1, 4, H / 8, W / 8), scaled; set by `Stages.encode`.
        latents: The same at first, then replaced by `Stages.refine`.
    """

    pixels: Tensor
    latent_noise: Tensor
    start_noise: Tensor
    generator: torch.Generator
    input_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Work:
    """One image that is being refined.

    Attributes:
        planes: The image.
        mask: (1, 1, H, W), 0 to 1, or None: refine everything.
        plan: Its region, size and tiles.
        padded: (1, 3, h, w); the region, enlarged and padded.
        tiles: The tiles for the model.
    """

    planes: Planes
    mask: Tensor | None
    plan: Plan
    padded: Tensor
    tiles: list[Tile]
    _canvas: Canvas | None = None
    _colors: dict[int, Tensor] = field(default_factory=dict)

    def preview(self, index: int, clean: Tensor) -> Image.Image:
        """Paint a tile's clean latents into the preview and return the whole of it."""
        if self._canvas is None:
            self._canvas = Canvas(self.padded)
        if index not in self._colors:
            tile = self.tiles[index]
            self._colors[index] = fit_colors(tile.input_latents, tile.pixels)
        self._canvas.put(self.plan.boxes[index], clean, self._colors[index])
        return self._canvas.image()


def plan_work(
    height: int, width: int, mask: Tensor | None, settings: RefineSettings
) -> Plan | None:
    """Return the region, size and tiles of an image; None if its mask (1, 1, H, W) is empty."""
    region = Box(0, 0, height, width)
    if mask is not None:
        marked = blend.marked_box(mask)
        if marked is None:
            return None
        region = region_box(marked, height, width)
    size = working_size(*region.size, settings.working_size)
    return Plan(region, size, tile_boxes(*padded_size(*size)))


def crop_and_tile(
    planes: Planes, mask: Tensor | None, plan: Plan, seed: int, dtype: torch.dtype
) -> Work:
    """Crop, enlarge, pad and tile one image.

    Args:
        planes: The image.
        mask: (1, 1, H, W), 0 to 1, or None.
        plan: Its region, size and tiles.
        seed: The seed of this image.
        dtype: The UNet's type, in which diffusers draws the noise.
    """
    padded = blend.resize(planes.composite[(..., *plan.region.slices)], plan.size)
    padded = blend.pad(padded, padded_size(*plan.size))
    return Work(planes, mask, plan, padded, _cut(padded, plan.boxes, seed, dtype))


def stitch(work: Work, refined: list[Tensor], settings: RefineSettings) -> Planes:
    """Return the refined image at the output size.

    Args:
        work: The image.
        refined: Its tiles, (1, 3, h, w), 0 to 1, float32.
        settings: Output size and color keeping.
    """
    plan, composite = work.plan, work.planes.composite
    original = composite[(..., *plan.region.slices)]
    result = blend.join_tiles(refined, plan.boxes)[..., : plan.size.height, : plan.size.width]
    if settings.keep_colors:
        result = blend.keep_colors(result, blend.resize(original, plan.size))
    if work.mask is not None:
        region = blend.resize(result, plan.region.size)
        shown = blend.feather(work.mask)[(..., *plan.region.slices)]
        result = composite.clone()
        result[(..., *plan.region.slices)] = original + (region - original) * shown
    elif settings.output_size == "original":
        result = blend.resize(result, plan.region.size)
    return _with_transparency(work.planes, result.clamp(0, 1))


def _with_transparency(planes: Planes, refined: Tensor) -> Planes:
    """Return the image that was refined over gray, without the gray.

    Adds the change by the refinement to the image's own colors, except where the image is fully
    transparent. So half-transparent pixels get no gray fringe.
    """
    if planes.alpha is None:
        return Planes(refined, None)
    size = Size(*refined.shape[-2:])
    rgb, alpha, composite = (
        blend.resize(some, size) for some in (planes.rgb, planes.alpha, planes.composite)
    )
    return Planes((rgb + (refined - composite) * (alpha > 0)).clamp(0, 1), alpha.clamp(0, 1))


def _cut(padded: Tensor, boxes: list[Box], seed: int, dtype: torch.dtype) -> list[Tile]:
    """Cut the padded region into tiles that share one field of noise.

    The noise is drawn like in diffusers for the whole image: first for the VAE's posterior, then
    for the start. Overlapping tiles have the same noise in the overlap, so that they match.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1, LATENT_CHANNELS, *(side // LATENT for side in padded.shape[-2:]))
    latent_noise = torch.randn(shape, generator=generator)
    start_noise = torch.randn(shape, generator=generator, dtype=dtype)
    tiles = []
    for box in boxes:
        cells = box.divided(LATENT).slices
        own = torch.Generator()
        own.set_state(generator.get_state())
        tiles.append(
            Tile(
                pixels=padded[(..., *box.slices)],
                latent_noise=latent_noise[(..., *cells)],
                start_noise=start_noise[(..., *cells)],
                generator=own,
            )
        )
    return tiles
