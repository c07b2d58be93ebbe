"""SplatRefiner, which refines the colors of a splat by refining views of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingsError
from ..image_refiner import ImageRefiner
from ..progress import Progress, ProgressCallback, ignore, raise_if
from ..settings import RefineSettings, settings_from
from .cameras import Camera, even_sphere, frame
from .colors import to_linear, to_srgb
from .rasterizer import ViewWeights, view_weights
from .solver import agreement, fit_colors
from .splat import Splat

MIN_COVERAGE = 0.5
"""Pixels that the splat covers less than this do not count: the background would bleed in."""
MAX_KEPT_BYTES = 2 * 2**30
"""The weights of views are kept in RAM up to this size, and computed again in each pass above it.

On a GPU, where that takes little time and the refiner needs the memory, none are kept.
"""
MAX_VIEWS, MAX_PASSES, MIN_SIZE_PX, MAX_SIZE_PX = 256, 100, 64, 2048
_BYTES_PER_WEIGHT = 16
_GRAY = 0.5


class RefinedSplat(NamedTuple):
    """What a refinement returns.

    Attributes:
        splat: The splat with its new colors.
        before: The views as they were rendered: (H, W, 4) each, float32, sRGB with the coverage.
        after: The same views refined, which the new colors come close to.
    """

    splat: Splat
    before: list[np.ndarray]
    after: list[np.ndarray]


class SplatRefiner:
    """Refines the colors of splats; shape, opacity and view-dependent harmonics stay.

    Args:
        refiner: Refines the views. It may be shared, and is neither loaded nor closed here.
    """

    def __init__(self, refiner: ImageRefiner) -> None:
        self.refiner = refiner

    def refine(
        self,
        splat: Splat,
        views: int = 16,
        strength: float = 0.25,
        passes: int = 4,
        *,
        size: int = 512,
        on_progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
        **more: Any,
    ) -> RefinedSplat:
        """Refine one splat: an object, which cameras can see from all around.

        Args:
            splat: Views are rendered, and colors solved, on its device: CPU or CUDA.
            views: 1 to 256 cameras around the splat.
            strength: See RefineSettings. Views agree less the higher it is. With 0 the splat itself
                comes back.
            passes: 1 to 100; how often the colors are compared with all views. More follow the
                views closer, also where they disagree.
            size: 64 to 2048; width and height of a view in pixels.
            on_progress: Called with a Progress at every stage and step; its images are the views.
            should_stop: Called often; True ends the work with RefineCancelled.
            **more: Any other setting of RefineSettings, by name, such as prompt and seed. The
                seed is the same for all views, so that they get the same noise.

        Raises:
            RefineError: one of its subclasses; see errors.py.
            RefineCancelled: `should_stop` returned True.
            TypeError: a keyword is not the name of a setting.
        """
        _check_range("views", views, 1, MAX_VIEWS)
        _check_range("passes", passes, 1, MAX_PASSES)
        _check_range("size", size, MIN_SIZE_PX, MAX_SIZE_PX)
        settings = settings_from(more, strength=strength)
        report, check = on_progress or ignore, raise_if(should_stop)
        with torch.no_grad():
            rendered = _Views(splat, even_sphere(frame(splat), views, size), check)
            images: list[Tensor] = []
            for number, weights in enumerate(rendered.all()):
                report(Progress(stage="render", image=number + 1, images=views))
                images.append(straight_image(splat, weights))
        if settings.strength == 0:
            return RefinedSplat(splat, *[[one.cpu().numpy() for one in images]] * 2)
        refined = [
            self._refine_view(image, settings, number, views, report, should_stop)
            for number, image in enumerate(images)
        ]
        steps = settings.steps * views
        with torch.no_grad():

            def on_view(_: int = 0) -> None:
                check()
                report(Progress(stage="fit", done=steps, total=steps))

            targets = [_only_covered(image) for image in refined]
            agreed = agreement(splat, rendered.getters(), targets, on_view)
            solved = fit_colors(splat, rendered.getters(), targets, passes, on_view)
            solved = splat.with_changed_colors((solved.colors - splat.colors) * agreed)
        return RefinedSplat(
            solved, *([one.cpu().numpy() for one in some] for some in (images, refined))
        )

    def _refine_view(
        self,
        image: Tensor,
        settings: RefineSettings,
        number: int,
        views: int,
        report: ProgressCallback,
        should_stop: Callable[[], bool] | None,
    ) -> Tensor:
        """Return a view (H, W, 4) refined: over gray, as its last channel is its transparency."""

        def as_one_of_many(event: Progress) -> None:
            report(replace(event.part_of(number, views), image=number + 1, images=views))

        # One by one: in a batch each image has another seed.
        (refined,) = self.refiner.refine_batch(
            [image], settings, on_progress=as_one_of_many, should_stop=should_stop
        )
        return refined


class _Views:
    """The weights of a splat's views, kept as far as memory allows."""

    def __init__(self, splat: Splat, cameras: list[Camera], check: Callable[[], None]) -> None:
        self._splat = splat
        self._cameras = cameras
        self._check = check
        self._kept: dict[int, ViewWeights] = {}
        self._bytes = 0

    def all(self) -> Iterator[ViewWeights]:
        return (get() for get in self.getters())

    def getters(self) -> list[Callable[[], ViewWeights]]:
        return [lambda number=number: self._get(number) for number in range(len(self._cameras))]

    def _get(self, number: int) -> ViewWeights:
        if number in self._kept:
            return self._kept[number]
        weights = view_weights(self._splat, self._cameras[number], self._check)
        needed = _BYTES_PER_WEIGHT * len(weights.rows.values)
        on_cpu = weights.rows.values.device.type == "cpu"
        if on_cpu and self._bytes + needed <= MAX_KEPT_BYTES:
            self._kept[number] = weights
            self._bytes += needed
        return weights


def straight_image(splat: Splat, weights: ViewWeights) -> Tensor:
    """Return a view (H, W, 4), sRGB; the last channel is the coverage, not multiplied in."""
    light = weights.render(to_linear(splat.colors.clamp(0, 1)))
    coverage = weights.coverage.clamp(0, 1)
    return torch.cat([to_srgb(light / coverage.clamp_min(1e-4)).clamp(0, 1), coverage], dim=-1)


def over_gray(view: Tensor) -> Tensor:
    """Return a view (H, W, 4), or several, over gray: (H, W, 3)."""
    return view[..., :3] * view[..., 3:] + _GRAY * (1 - view[..., 3:])


def _only_covered(image: Tensor) -> Tensor:
    """Return a view in which only pixels count that the splat covers; see `fit_colors`."""
    counts = (image[..., 3:] >= MIN_COVERAGE).to(image.dtype)
    return torch.cat([image[..., :3].clamp(0, 1), counts], dim=-1)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SettingsError(f"{name} must be from {low} to {high}, not {value}.")
