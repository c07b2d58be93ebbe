"""Many images through the stages: in groups, with progress, each result in its image's kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import blend
from .geometry import MEGAPIXEL, Size
from .pixels import Source, picture_shape, read_mask, to_planes
from .progress import Progress, ProgressCallback, Stage
from .prompts import Conditioning
from .settings import RefineSettings
from .work import Job, Layout, crop_and_tile, plan_work, restore_transparency, stitch

if TYPE_CHECKING:
    from .stages import Stages

MAX_GROUP_PIXELS = 8 * MEGAPIXEL
"""Images go through the stages in groups of about this size: weights move once a group, and a
long batch takes hardly more memory than a short one."""

PromptCache = dict[tuple[str, str | None], Conditioning]
MAX_CACHED_PROMPTS = 8
_SEEDS = 2**64


@dataclass(frozen=True)
class _Entry:
    """One entry of the caller's list: an image, or an array or tensor of several."""

    image: Any
    mask: Any
    prompt: str
    layouts: list[Layout | None]


@dataclass(frozen=True)
class _Place:
    """Which image: its entry, its row there, and its number in the whole batch."""

    entry: int
    row: int
    number: int


class Batch:
    """Checks a list of images at once, then refines them.

    Args:
        images: As `ImageRefiner.refine_batch` takes them.
        settings: How to refine them; strength is above 0.
        prompts: One per entry, or None.
        masks: One (or None) per entry, or None.

    Raises:
        ImageError: an image or mask cannot be refined.
    """

    def __init__(
        self,
        images: Sequence[Any],
        settings: RefineSettings,
        prompts: Sequence[str] | None,
        masks: Sequence[Any] | None,
    ) -> None:
        self._settings = settings
        self._entries: list[_Entry] = []
        for index, image in enumerate(images):
            # Checked now, taken apart at its turn, so that a long list never rests in memory as
            # floats.
            shape = picture_shape(image)
            mask = None if masks is None else masks[index]
            layouts = _lay_out_rows(shape, mask, settings)
            prompt = settings.prompt if prompts is None else prompts[index]
            self._entries.append(_Entry(image, mask, prompt, layouts))
        rows = [
            (e, row) for e, entry in enumerate(self._entries) for row in range(len(entry.layouts))
        ]
        self._places = [_Place(entry, row, number) for number, (entry, row) in enumerate(rows)]
        layouts = [self._layout(place) for place in self._places]
        self._total = settings.steps * sum(len(x.boxes) for x in layouts if x is not None)
        self._done = 0

    def run(self, stages: Stages, cache: PromptCache, tell: ProgressCallback) -> list[Any]:
        """Refine everything.

        Args:
            stages: Over a loaded checkpoint.
            cache: Conditioning by prompts; filled here, kept by the caller.
            tell: Called with every event.

        Returns:
            One result per entry, of the entry's kind.
        """
        results: list[Any] = []
        rows: list[Tensor] = []
        for group in self._groups():
            sources = {e: to_planes(self._entries[e].image) for e in {p.entry for p in group}}
            jobs = [self._prepare(place, sources[place.entry], stages) for place in group]
            self._encode_prompts(group, jobs, stages, cache, tell)
            refined = iter(self._run_stages(group, jobs, stages, cache, tell))
            for place, job in zip(group, jobs, strict=True):
                source = sources[place.entry]
                unchanged = source.composite[place.row : place.row + 1]
                row = unchanged if job is None else next(refined)
                rows.append(restore_transparency(source, row, place.row))
                if len(rows) == len(self._entries[place.entry].layouts):
                    results.append(self._restore(place.entry, source, torch.cat(rows)))
                    rows = []
        return results

    def _layout(self, place: _Place) -> Layout | None:
        return self._entries[place.entry].layouts[place.row]

    def _groups(self) -> Iterator[list[_Place]]:
        group: list[_Place] = []
        pixels = 0
        for place in self._places:
            layout = self._layout(place)
            own = 0 if layout is None else layout.size.height * layout.size.width
            if group and pixels + own > MAX_GROUP_PIXELS:
                yield group
                group, pixels = [], 0
            group.append(place)
            pixels += own
        if group:
            yield group

    def _prepare(self, place: _Place, source: Source, stages: Stages) -> Job | None:
        entry = self._entries[place.entry]
        layout = self._layout(place)
        if layout is None:
            return None
        one = slice(place.row, place.row + 1)
        mask = None
        if entry.mask is not None:
            mask = read_mask(entry.mask, *_row_shape(source.rgb))[one]
        seed = (self._settings.seed + place.number) % _SEEDS
        dtype = stages.components.dtypes["unet"]
        return crop_and_tile(source.composite[one], mask, layout, seed, dtype)

    def _encode_prompts(
        self,
        group: list[_Place],
        jobs: list[Job | None],
        stages: Stages,
        cache: PromptCache,
        tell: ProgressCallback,
    ) -> None:
        """Fill the cache with the prompts of a group, each once."""
        wanted: dict[tuple[str, str | None], _Place] = {}
        for place, job in zip(group, jobs, strict=True):
            if job is not None:
                wanted.setdefault(self._prompt_key(place), place)
        for key in [key for key in cache if key not in wanted][: len(wanted)]:
            if len(cache) + len(wanted) > MAX_CACHED_PROMPTS:
                del cache[key]
        for key, place in wanted.items():
            if key not in cache:
                tell(self._event("prompt", place))
                cache[key] = stages.encode_prompts(*key)

    def _prompt_key(self, place: _Place) -> tuple[str, str | None]:
        negative = self._settings.negative_prompt if self._settings.guided_steps else None
        return self._entries[place.entry].prompt, negative

    def _run_stages(
        self,
        group: list[_Place],
        jobs: list[Job | None],
        stages: Stages,
        cache: PromptCache,
        tell: ProgressCallback,
    ) -> list[Tensor]:
        """Return the finished images of those jobs that are not None."""
        work = [
            (place, job, index)
            for place, job in zip(group, jobs, strict=True)
            if job is not None
            for index in range(len(job.tiles))
        ]
        if not work:
            return []
        tiles = [job.tiles[index] for _, job, index in work]

        def announce(stage: Stage) -> Callable[[int], None]:
            return lambda n: tell(self._event(stage, work[n][0], work[n][2], work[n][1]))

        def on_step(number: int, step: int, clean: Tensor) -> None:
            place, job, index = work[number]
            self._done += step > 0
            tell(self._event("refine", place, index, job, step, clean))

        stages.encode(tiles, announce("encode"))
        conditionings = [cache[self._prompt_key(place)] for place, _, _ in work]
        stages.refine(tiles, conditionings, self._settings, on_step)
        refined = iter(stages.decode(tiles, announce("decode")))
        return [
            stitch(job, [next(refined) for _ in job.tiles], self._settings)
            for job in jobs
            if job is not None
        ]

    def _event(
        self,
        stage: Stage,
        place: _Place,
        index: int = 0,
        job: Job | None = None,
        step: int = 0,
        clean: Tensor | None = None,
    ) -> Progress:
        settings = self._settings
        render = None
        if job is not None and clean is not None:
            render = partial(job.preview, index, clean)
        return Progress(
            stage=stage,
            image=place.number + 1,
            images=len(self._places),
            tile=index + 1,
            tiles=1 if job is None else len(job.tiles),
            step=step,
            steps=settings.steps,
            done=self._done,
            total=self._total,
            formula=f"{settings.num_inference_steps} x {settings.strength:g}",
            render_preview=render,
        )

    def _restore(self, index: int, source: Source, rgb: Tensor) -> Any:
        entry = self._entries[index]
        alpha = source.alpha
        if alpha is not None:
            alpha = blend.resize(alpha, Size(*rgb.shape[-2:])).clamp(0, 1)
        kept = None
        if entry.mask is not None:
            kept = read_mask(entry.mask, *_row_shape(source.rgb)) == 0
        return source.restore(rgb, alpha, kept)


def _lay_out_rows(
    shape: tuple[int, int, int], mask: Any, settings: RefineSettings
) -> list[Layout | None]:
    count, height, width = shape
    if mask is None:
        return [plan_work(height, width, None, settings)] * count
    marks = read_mask(mask, count, height, width)
    return [plan_work(height, width, marks[row : row + 1], settings) for row in range(count)]


def _row_shape(rgb: Tensor) -> tuple[int, int, int]:
    return rgb.shape[0], rgb.shape[2], rgb.shape[3]
