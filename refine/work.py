"""Prepare one image for the model (crop, enlarge, pad, tile), and stitch the result together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from . import blend
from .errors import ImageError
from .geometry import LATENT, Box, Size, padded_size
from .pixels import Planes
from .plan import Region
from .previews import Canvas, fit_colors
from .settings import RefineSettings

LATENT_CHANNELS = 4
Upscaler = Callable[[Tensor], Tensor]
"""Enlarges an image (1, H, W, 3), 0 to 1, as ComfyUI's upscale models do."""


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
            self._canvas = Canvas(self.padded)
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


def crop_and_tile(planes: Planes, region: Region, seed: int) -> Work:
    """Crop, enlarge, pad and tile one region.

    Args:
        planes: The image.
        region: Its box, size and tiles.
        seed: The seed of the image. A region does not depend on the others: all have this seed.
    """
    padded = blend.resize(planes.composite[(..., *region.box.slices)], region.size)
    padded = blend.pad(padded, padded_size(*region.size))
    return Work(region, padded, _cut(padded, region.tiles, seed))


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


def _cut(padded: Tensor, boxes: list[Box], seed: int) -> list[Tile]:
    """Cut the padded region into tiles that share one field of noise.

    The noise is drawn like in diffusers for the whole image: first for the VAE's posterior, then
    for the start. Overlapping tiles have the same noise in the overlap, so that they match. It is
    drawn in fp32 also for a model in fp16, where PyTorch draws other numbers: one seed is one image
    on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1, LATENT_CHANNELS, *(side // LATENT for side in padded.shape[-2:]))
    latent_noise = torch.randn(shape, generator=generator)
    start_noise = torch.randn(shape, generator=generator)
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
