"""One image's way: cut out, enlarge, pad and tile before the model; all of it undone after."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from . import blend
from .geometry import LATENT, Box, Size, padded_size, region_box, tile_boxes, working_size
from .pixels import Source
from .previews import Canvas, fit_colors
from .settings import RefineSettings

LATENT_CHANNELS = 4


@dataclass
class Tile:
    """One piece of work for the model.

    Args:
        pixels: (1, 3, H, W), 0 to 1; sides are multiples of 64.
        latent_noise: (1, 4, H / 8, W / 8); what the VAE's posterior is sampled with.
        start_noise: The same shape; what is added before the first step.
        generator: For samplers that add noise at every step.
        input_latents: (1, 4, H / 8, W / 8), scaled; filled by `Stages.encode`.
        latents: The same at first, then replaced by `Stages.refine`.
    """

    pixels: Tensor
    latent_noise: Tensor
    start_noise: Tensor
    generator: torch.Generator
    input_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Layout:
    """Where one image is worked on, and at which size.

    Args:
        region: The part of the image that is worked on.
        size: The size at which it is worked on, before padding.
        boxes: The tiles of the padded work.
    """

    region: Box
    size: Size
    boxes: list[Box]


@dataclass
class Job:
    """What is to be done to one image.

    Args:
        composite: (1, 3, H, W); the image over gray.
        mask: (1, 1, H, W), or None: refine everything.
        layout: Where and how large.
        work: (1, 3, h, w); cut out, enlarged and padded.
        tiles: What the model gets.
    """

    composite: Tensor
    mask: Tensor | None
    layout: Layout
    work: Tensor
    tiles: list[Tile]
    _canvas: Canvas | None = None
    _colors: dict[int, Tensor] = field(default_factory=dict)

    def preview(self, index: int, clean: Tensor) -> Image.Image:
        """Paint a tile's clean latents into the preview and return the whole of it."""
        if self._canvas is None:
            self._canvas = Canvas(self.work)
        if index not in self._colors:
            tile = self.tiles[index]
            self._colors[index] = fit_colors(tile.input_latents, tile.pixels)
        self._canvas.put(self.layout.boxes[index], clean, self._colors[index])
        return self._canvas.image()


def plan_work(
    height: int, width: int, mask: Tensor | None, settings: RefineSettings
) -> Layout | None:
    """Return where an image is worked on, or None if its mask (1, 1, H, W) marks nothing."""
    region = Box(0, 0, height, width)
    if mask is not None:
        marked = blend.marked_box(mask)
        if marked is None:
            return None
        region = region_box(marked, height, width)
    size = working_size(*region.size, settings.working_size)
    return Layout(region, size, tile_boxes(*padded_size(*size)))


def crop_and_tile(
    composite: Tensor, mask: Tensor | None, layout: Layout, seed: int, dtype: torch.dtype
) -> Job:
    """Cut out, enlarge, pad and tile one image.

    Args:
        composite: (1, 3, H, W), 0 to 1.
        mask: (1, 1, H, W), 0 to 1, or None.
        layout: Where and how large.
        seed: The image's own.
        dtype: The UNet's type, in which diffusers would draw the noise.
    """
    work = blend.resize(composite[(..., *layout.region.slices)], layout.size)
    work = blend.pad(work, padded_size(*layout.size))
    return Job(composite, mask, layout, work, _cut(work, layout.boxes, seed, dtype))


def stitch(job: Job, refined: list[Tensor], settings: RefineSettings) -> Tensor:
    """Put a job's refined tiles together: (1, 3, h, w), 0 to 1, at the output size."""
    work = blend.join_tiles(refined, job.layout.boxes)[
        ..., : job.layout.size.height, : job.layout.size.width
    ]
    original = job.composite[(..., *job.layout.region.slices)]
    if settings.keep_colours:
        work = blend.keep_colors(work, blend.resize(original, job.layout.size))
    if job.mask is None:
        is_working = settings.output_size == "working"
        return (work if is_working else blend.resize(work, job.layout.region.size)).clamp(0, 1)
    work = blend.resize(work, job.layout.region.size)
    shown = blend.feather(job.mask)[(..., *job.layout.region.slices)]
    result = job.composite.clone()
    result[(..., *job.layout.region.slices)] = original + (work - original) * shown
    return result.clamp(0, 1)


def restore_transparency(source: Source, refined: Tensor, index: int) -> Tensor:
    """Return the colors of an image that was refined over gray, without the gray.

    What the refinement changed is added to the image's own colors; where nothing is visible
    they stay. So no fringe of gray gets into half transparent pixels.
    """
    if source.alpha is None:
        return refined
    size = Size(*refined.shape[-2:])
    rgb, alpha, composite = (
        blend.resize(some[index : index + 1], size)
        for some in (source.rgb, source.alpha, source.composite)
    )
    return (rgb + (refined - composite) * (alpha > 0)).clamp(0, 1)


def _cut(work: Tensor, boxes: list[Box], seed: int, dtype: torch.dtype) -> list[Tile]:
    """Cut the padded work into tiles that share one field of noise.

    The noise is drawn as diffusers draws it for the whole image: first for the VAE's
    posterior, then for the start. Where tiles overlap they see the same noise, and so agree.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1, LATENT_CHANNELS, *(side // LATENT for side in work.shape[-2:]))
    latent_noise = torch.randn(shape, generator=generator)
    start_noise = torch.randn(shape, generator=generator, dtype=dtype)
    tiles = []
    for box in boxes:
        cells = box.divided(LATENT).slices
        own = torch.Generator()
        own.set_state(generator.get_state())
        tiles.append(
            Tile(
                pixels=work[(..., *box.slices)],
                latent_noise=latent_noise[(..., *cells)],
                start_noise=start_noise[(..., *cells)],
                generator=own,
            )
        )
    return tiles
