"""Run the images of a batch through the stages, in groups, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from .batch import Batch, Item
from .errors import PER_IMAGE_ERRORS
from .geometry import MEGAPIXEL, padded_size
from .pixels import Planes, from_planes, to_planes
from .plan import Region
from .progress import Progress, ProgressCallback, Stage
from .settings import PromptSyntax
from .work import TileModel, Work, crop_and_tile, enlarged, stitch

MAX_GROUP_PIXELS = 8 * MEGAPIXEL
"""Images go through the stages in groups of about this size: weights move once per group, and a
long batch takes hardly more memory than a short one."""

PromptKey = tuple[str, str | None, PromptSyntax]
PromptCache = dict[PromptKey, Any]
"""Conditioning by prompt, negative prompt (None: no guidance) and their syntax."""
MAX_CACHED_PROMPTS = 8
"""More than these only while a group has more, of which each tile may have its own."""


class _Owner(NamedTuple):
    """Which tile of which region of which image."""

    item: Item
    region: int
    tile: int
    work: Work


class BatchRun:
    """Refines the images of one batch.

    Args:
        batch: The images.
        model: Refines the tiles; None if no image has anything to refine.
        cache: The caller's cache; this fills it.
        report: Called with every event.
        check: Called before each channel that is enlarged; if it raises, the work ends.
    """

    def __init__(
        self,
        batch: Batch,
        model: TileModel | None,
        cache: PromptCache,
        report: ProgressCallback,
        check: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._settings = batch.settings
        self._model = model
        self._cache = cache
        self._report = report
        self._check = check
        self._total = sum(self._steps_of(item) for item in batch.items)
        self._done = 0

    def refine(self) -> dict[int, Tensor]:
        """Return the refined images (1, h, w, C), by their numbers."""
        refined: dict[int, Tensor] = {}
        on_image_error = self._batch.on_image_error
        for group in self._groups(is_alone=on_image_error is not None):
            done = self._done + sum(self._steps_of(item) for item in group)
            try:
                refined |= self._refine_group(group)
            except PER_IMAGE_ERRORS as error:
                if on_image_error is None:
                    raise
                on_image_error(group[0].number, error)
            self._done = done
        return refined

    def _steps_of(self, item: Item) -> int:
        return self._settings.steps * item.tiles

    def _groups(self, *, is_alone: bool) -> Iterator[list[Item]]:
        """Yield the images in groups, or one by one if one image's error must not affect others."""
        group: list[Item] = []
        pixels = 0
        for item in self._batch.items:
            own = sum(region.size.height * region.size.width for region in item.regions)
            own = max(own, item.size.height * item.size.width)  # both are in memory
            if group and (is_alone or pixels + own > MAX_GROUP_PIXELS):
                yield group
                group, pixels = [], 0
            group.append(item)
            pixels += own
        if group:
            yield group

    def _refine_group(self, group: list[Item]) -> dict[int, Tensor]:
        refined: dict[int, Tensor] = {}
        images: list[tuple[Item, Planes, list[Work]]] = []
        for item in group:
            planes = self._enlarged(item)
            works = [self._work(item, planes, region) for region in item.regions]
            if works:
                images.append((item, planes, works))
            elif planes.rgb.shape[-2:] == item.pixels.shape[1:3]:
                refined[item.number] = item.pixels.clone()
            else:
                refined[item.number] = from_planes(planes, item.pixels, item.mask)
        owners = [
            _Owner(item, region, tile, work)
            for item, _, works in images
            for region, work in enumerate(works)
            for tile in range(len(work.tiles))
        ]
        if not owners:
            return refined
        self._encode_prompts(owners)
        tiles = iter(self._run_stages(owners))
        for item, planes, works in images:
            parts = [(work.region, [next(tiles) for _ in work.tiles]) for work in works]
            done = stitch(planes, item.mask, parts, self._settings)
            refined[item.number] = from_planes(done, item.pixels, item.mask)
        return refined

    def _work(self, item: Item, planes: Planes, region: Region) -> Work:
        assert self._model is not None
        # A region does not depend on the others: all have the seed of the image.
        noise = self._model.noise(padded_size(*region.size), item.seed)
        return crop_and_tile(planes, item.number, region, noise)

    def _enlarged(self, item: Item) -> Planes:
        planes = to_planes(item.pixels)
        if item.size != planes.rgb.shape[-2:]:
            self._report(self._event("enlarge", item))
            planes = enlarged(planes, item.size, self._batch.upscaler, self._check)
        return planes

    def _encode_prompts(self, owners: list[_Owner]) -> None:
        """Fill the cache with the prompts of a group, each once."""
        assert self._model is not None
        wanted: dict[PromptKey, Item] = {}
        for owner in owners:
            wanted.setdefault(self._prompt_key(owner), owner.item)
        for key in [key for key in self._cache if key not in wanted]:
            if len(self._cache.keys() | wanted.keys()) > MAX_CACHED_PROMPTS:
                del self._cache[key]
        for key, item in wanted.items():
            if key not in self._cache:
                self._report(self._event("prompt", item))
                self._cache[key] = self._model.encode_prompts(*key)

    def _prompt_key(self, owner: _Owner) -> PromptKey:
        settings = self._settings
        negative = settings.negative_prompt if settings.guided_steps else None
        return owner.item.prompts[owner.region][owner.tile], negative, settings.prompt_syntax

    def _run_stages(self, owners: list[_Owner]) -> list[Tensor]:
        """Return the refined tiles, in their order."""
        assert self._model is not None
        tiles = [owner.work.tiles[owner.tile] for owner in owners]

        def announce(stage: Stage) -> Callable[[int], None]:
            return lambda n: self._report(self._event(stage, owners[n].item, owners[n]))

        def on_step(number: int, step: int, clean: Tensor) -> None:
            self._done += step > 0
            owner = owners[number]
            self._report(self._event("refine", owner.item, owner, step, clean))

        self._model.encode(tiles, announce("encode"))
        conditionings = [self._cache[self._prompt_key(owner)] for owner in owners]
        self._model.refine(tiles, conditionings, self._settings, on_step)
        return self._model.decode(tiles, announce("decode"))

    def _event(
        self,
        stage: Stage,
        item: Item,
        owner: _Owner | None = None,
        step: int = 0,
        clean: Tensor | None = None,
    ) -> Progress:
        settings = self._settings
        preview = None
        if owner is not None and clean is not None:
            preview = partial(owner.work.preview, owner.tile, clean)
        return Progress(
            stage=stage,
            image=item.number + 1,
            images=self._batch.count,
            region=owner.region + 1 if owner else 1,
            regions=len(item.regions) if owner else 1,
            tile=owner.tile + 1 if owner else 1,
            tiles=len(owner.work.tiles) if owner else 1,
            step=step,
            steps=settings.steps,
            done=self._done,
            total=self._total,
            formula=settings.formula,
            render_preview=preview,
        )
