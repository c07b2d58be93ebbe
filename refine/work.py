"""Prepare one image for the model (crop, enlarge, pad, tile), and stitch the result together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from . import blend
from .errors import ImageError
from .geometry import Box, Size, padded_size
from .pixels import Planes
from .plan import Region
from .previews import Canvas, fit_colors
from .settings import PromptSyntax, RefineSettings

Upscaler = Callable[[Tensor], Tensor]
"""Enlarges an image (1, H, W, 3), 0 to 1, as ComfyUI's upscale models do."""


class Noise(NamedTuple):
    """The noise of a region, of which each of its tiles takes its part.

    Attributes:
        seed: What it was drawn from.
        fields: (..., h / cell, w / cell) each, as many as the model needs.
        cell: Pixels per latent, along one side.
        generator: As it is after the fields were drawn.
    """

    seed: int
    fields: list[Tensor]
    cell: int
    generator: torch.Generator


class Place(NamedTuple):
    """Where a tile is.

    Attributes:
        image: The number of its image in the batch, from 0.
        size: The size of the image, after `scale`.
        region: Its region.
        box: The tile in the padded region.
    """

    image: int
    size: Size
    region: Region
    box: Box

    @property
    def is_whole(self) -> bool:
        """Whether the tile is the image itself, neither cropped, enlarged nor padded."""
        size = self.size
        return self.region.box.size == self.region.size == self.box.size == size

    def cut(self, pixels: Tensor) -> Tensor:
        """Return this tile's part of pixels (1, C, H, W) of the size of the image."""
        return region_pixels(pixels, self.region)[(..., *self.box.slices)]


@dataclass
class Tile:
    """One tile for the model.

    Attributes:
        place: Where it is.
        pixels: (1, 3, H, W), 0 to 1; sides are multiples of 64.
        noise: Its part of the region's noise.
        input_latents: (1, C, ..., H / cell, W / cell), scaled; set by `TileModel.encode`.
        latents: The same at first, then replaced by `TileModel.refine`.
    """

    place: Place
    pixels: Tensor
    noise: Noise
    input_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: Tensor = field(default_factory=lambda: torch.empty(0))


class TileModel(Protocol):
    """What refines tiles: `Stages` with diffusers, or a host's own model.

    A conditioning is whatever its own `encode_prompts` returns.
    """

    def noise(self, size: Size, seed: int) -> Noise:
        """Return the noise for a padded region."""
        ...

    def encode_prompts(self, prompt: str, negative_prompt: str | None, syntax: PromptSyntax) -> Any:
        """Encode the prompts. `negative_prompt` None: without guidance."""
        ...

    def encode(self, tiles: list[Tile], before: Callable[[int], None]) -> None:
        """Turn the tiles' pixels into latents.

        Args:
            tiles: This sets their `latents` and `input_latents`.
            before: Called with each tile's number (from 0) before it is encoded.
        """
        ...

    def refine(
        self,
        tiles: list[Tile],
        conditionings: list[Any],
        settings: RefineSettings,
        on_step: Callable[[int, int, Tensor], None],
    ) -> None:
        """Run the steps over the tiles' latents.

        Args:
            tiles: The encoded tiles; this replaces their `latents`.
            conditionings: The prompts of each tile.
            settings: Strength, steps, guidance.
            on_step: Called with a tile's number (from 0), the step (from 1; 0 before the first)
                and the current estimate of the clean latents.
        """
        ...

    def decode(self, tiles: list[Tile], before: Callable[[int], None]) -> list[Tensor]:
        """Turn the tiles' latents into pixels (1, 3, H, W), 0 to 1, float32, on the CPU."""
        ...


@dataclass
class Work:
    """One region of an image that is being refined.

    Attributes:
        region: Its box, size and tiles.
        padded: (1, 3, h, w); the region, enlarged and padded.
        tiles: The tiles for the model.
    """

    region: Region
    padded: Tensor
    tiles: list[Tile]
    _canvas: Canvas | None = None
    _colors: dict[int, Tensor] = field(default_factory=dict)

    def preview(self, index: int, clean: Tensor) -> Image.Image:
        """Paint a tile's clean latents into the preview and return the whole of it."""
        if self._canvas is None:
            self._canvas = Canvas(self.padded, self.tiles[index].noise.cell)
        if index not in self._colors:
            tile = self.tiles[index]
            self._colors[index] = fit_colors(tile.input_latents, tile.pixels)
        self._canvas.put(self.region.tiles[index], clean, self._colors[index])
        return self._canvas.image()


def enlarged(
    planes: Planes, size: Size, upscaler: Upscaler | None, check: Callable[[], None]
) -> Planes:
    """Return an image at a larger size.

    Args:
        planes: The image.
        size: The new size.
        upscaler: Enlarges the colors (1, H, W, 3), 0 to 1, to any size. None: Lanczos.
        check: Called before each channel, of which one may take half a second; it may raise.

    Raises:
        ImageError: what the upscaler returned is no image.
    """
    check()
    alpha = None if planes.alpha is None else blend.enlarge(planes.alpha, size)
    if upscaler is None:
        channels: list[Tensor] = []
        for channel in planes.rgb.split(1, dim=1):
            check()
            channels.append(blend.enlarge(channel, size))
        return Planes(torch.cat(channels, dim=1), alpha)
    made = upscaler(planes.rgb.movedim(1, -1).contiguous()).detach().to("cpu", torch.float32)
    if made.ndim != 4 or made.shape[0] != 1 or made.shape[-1] != 3:
        raise ImageError(
            f"The upscaler returned a tensor of the shape {tuple(made.shape)} rather than one "
            "image (1, H, W, 3)."
        )
    if not bool(torch.isfinite(made).all()):
        raise ImageError("The upscaler produced NaN or infinity: choose another upscale model.")
    return Planes(blend.resize(made.movedim(-1, 1), size).clamp(0, 1), alpha)


def crop_and_tile(planes: Planes, image: int, region: Region, noise: Noise) -> Work:
    """Crop, enlarge, pad and tile one region.

    Args:
        planes: The image.
        image: Its number in the batch, from 0.
        region: Its box, size and tiles.
        noise: For the padded region. Tiles that overlap have the same noise there, so that they
            match.
    """
    padded = region_pixels(planes.composite, region)
    size = Size(*planes.composite.shape[-2:])
    tiles: list[Tile] = []
    for box in region.tiles:
        cells = box.divided(noise.cell).slices
        own = torch.Generator()
        own.set_state(noise.generator.get_state())
        part = noise._replace(
            fields=[field[(..., *cells)] for field in noise.fields], generator=own
        )
        tiles.append(Tile(Place(image, size, region, box), padded[(..., *box.slices)], part))
    return Work(region, padded, tiles)


def region_pixels(pixels: Tensor, region: Region) -> Tensor:
    """Return the part of an image (1, C, H, W) that is a region, enlarged and padded."""
    part = blend.resize(pixels[(..., *region.box.slices)], region.size)
    return blend.pad(part, padded_size(*region.size))


def stitch(
    planes: Planes,
    mask: Tensor | None,
    refined: list[tuple[Region, list[Tensor]]],
    settings: RefineSettings,
) -> Planes:
    """Return the refined image at the output size.

    Args:
        planes: The image.
        mask: (1, 1, H, W), 0 to 1, or None: refine everything.
        refined: Its regions, and their tiles, (1, 3, h, w), 0 to 1, float32.
        settings: Output size and color keeping.
    """
    composite = planes.composite
    if mask is None:
        ((region, tiles),) = refined
        size = region.size if settings.output_size == "working" else region.box.size
        result = _finished(composite, region, tiles, settings, size)
    else:
        result, shown = composite.clone(), blend.feather(mask)
        for region, tiles in refined:
            part = (..., *region.box.slices)
            work = _finished(composite, region, tiles, settings, region.box.size)
            result[part] += (work - composite[part]) * shown[part]
    return _with_transparency(planes, result.clamp(0, 1))


def _finished(
    composite: Tensor, region: Region, tiles: list[Tensor], settings: RefineSettings, size: Size
) -> Tensor:
    """Return a refined region (1, 3, h, w) at a size, in the colors of the image."""
    original = composite[(..., *region.box.slices)]
    joined = blend.join_tiles(tiles, region.tiles)
    joined = joined[..., : region.size.height, : region.size.width]
    if settings.keep_colors:
        joined = blend.keep_colors(joined, blend.resize(original, region.size))
    return blend.resize(joined, size)


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
