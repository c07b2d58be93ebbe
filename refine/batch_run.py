"""Run the images of a batch through the stages, in groups, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from .batch import Batch, Item
from .errors import PER_IMAGE_ERRORS
from .geometry import MEGAPIXEL
from .pixels import from_planes, to_planes
from .progress import Progress, ProgressCallback, Stage
from .prompts import Conditioning
from .stages import Stages
from .work import Work, crop_and_tile, stitch

MAX_GROUP_PIXELS = 8 * MEGAPIXEL
"""Images go through the stages in groups of about this size: weights move once per group, and a
long batch takes hardly more memory than a short one."""

PromptCache = dict[tuple[str, str | None], Conditioning]
"""Conditioning by prompt and negative prompt (None: no guidance)."""
MAX_CACHED_PROMPTS = 8


class BatchRun:
    """Refines the images of one batch.

    Args:
        batch: The images.
        stages: The stages of a loaded checkpoint.
        cache: The caller's cache; this fills it.
        report: Called with every event.
    """

    def __init__(
        self, batch: Batch, stages: Stages, cache: PromptCache, report: ProgressCallback
    ) -> None:
        self._batch = batch
        self._settings = batch.settings
        self._stages = stages
        self._cache = cache
        self._report = report
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
        return 0 if item.plan is None else self._settings.steps * len(item.plan.boxes)

    def _groups(self, *, is_alone: bool) -> Iterator[list[Item]]:
        """Yield the images in groups, or one by one if one image's error must not affect others."""
        group: list[Item] = []
        pixels = 0
        for item in self._batch.items:
            own = 0 if item.plan is None else item.plan.size.height * item.plan.size.width
            if group and (is_alone or pixels + own > MAX_GROUP_PIXELS):
                yield group
                group, pixels = [], 0
            group.append(item)
            pixels += own
        if group:
            yield group

    def _refine_group(self, group: list[Item]) -> dict[int, Tensor]:
        dtype = self._stages.components.dtypes["unet"]
        works = [
            (item, crop_and_tile(to_planes(item.pixels), item.mask, item.plan, item.seed, dtype))
            for item in group
            if item.plan is not None
        ]
        refined = {item.number: item.pixels.clone() for item in group if item.plan is None}
        self._encode_prompts([item for item, _ in works])
        tiles = iter(self._run_stages(works))
        for item, work in works:
            planes = stitch(work, [next(tiles) for _ in work.tiles], self._settings)
            refined[item.number] = from_planes(planes, item.pixels, item.mask)
        return refined

    def _encode_prompts(self, items: list[Item]) -> None:
        """Fill the cache with the prompts of a group, each once."""
        wanted: dict[tuple[str, str | None], Item] = {}
        for item in items:
            wanted.setdefault(self._prompt_key(item), item)
        for key in [key for key in self._cache if key not in wanted][: len(wanted)]:
            if len(self._cache) + len(wanted) > MAX_CACHED_PROMPTS:
                del self._cache[key]
        for key, item in wanted.items():
            if key not in self._cache:
                self._report(self._event("prompt", item))
                self._cache[key] = self._stages.encode_prompts(*key)

    def _prompt_key(self, item: Item) -> tuple[str, str | None]:
        return item.prompt, self._settings.negative_prompt if self._settings.guided_steps else None

    def _run_stages(self, works: list[tuple[Item, Work]]) -> list[Tensor]:
        """Return the refined tiles of all images, one after another."""
        owners = [(item, work, index) for item, work in works for index in range(len(work.tiles))]
        if not owners:
            return []
        tiles = [work.tiles[index] for _, work, index in owners]

        def announce(stage: Stage) -> Callable[[int], None]:
            return lambda number: self._report(self._event(stage, *owners[number]))

        def on_step(number: int, step: int, clean: Tensor) -> None:
            self._done += step > 0
            self._report(self._event("refine", *owners[number], step, clean))

        self._stages.encode(tiles, announce("encode"))
        conditionings = [self._cache[self._prompt_key(item)] for item, _, _ in owners]
        self._stages.refine(tiles, conditionings, self._settings, on_step)
        return self._stages.decode(tiles, announce("decode"))

    def _event(
        self,
        stage: Stage,
        item: Item,
        work: Work | None = None,
        index: int = 0,
        step: int = 0,
        clean: Tensor | None = None,
    ) -> Progress:
        settings = self._settings
        return Progress(
            stage=stage,
            image=item.number + 1,
            images=self._batch.count,
            tile=index + 1,
            tiles=1 if work is None else len(work.tiles),
            step=step,
            steps=settings.steps,
            done=self._done,
            total=self._total,
            formula=f"{settings.num_inference_steps} x {settings.strength:g}",
            render_preview=None
            if work is None or clean is None
            else partial(work.preview, index, clean),
        )
