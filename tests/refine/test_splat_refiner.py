"""SplatRefiner with the tiny refiner: better views, one noise, progress, cancel, bad settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from image_refinery.refine import ImageRefiner, Progress, RefineCancelled, SettingsError
from image_refinery.refine.splats import (
    Splat,
    SplatRefiner,
    ViewWeights,
    frame,
    ring,
    splat_refiner,
    view_weights,
)
from PIL import Image
from torch import Tensor

pytestmark = pytest.mark.usefixtures("sixteenth_megapixel")
Draw = Callable[..., Splat]
SIZE = 96
QUICK: dict[str, Any] = {"views": 2, "size": 64, "num_inference_steps": 4, "passes": 1}


def views_of(splat: Splat) -> list[ViewWeights]:
    """Views that no refinement uses."""
    return [view_weights(splat, camera) for camera in ring(frame(splat), 3, 10.0, SIZE)]


def psnr(images: list[Tensor], others: list[Tensor]) -> list[float]:
    errors = [
        (left - right)[(left[..., 3] > 0.5) & (right[..., 3] > 0.5)][:, :3].square().mean()
        for left, right in zip(images, others, strict=True)
    ]
    return [float(-10 * error.log10()) for error in errors]


def shown(splat: Splat, views: list[ViewWeights]) -> list[Tensor]:
    return [splat_refiner.straight_image(splat, view) for view in views]


@pytest.fixture
def painted(draw_splat: Draw, draw: Callable[..., Image.Image]) -> Draw:
    """painted(count, noise=0.0): a sphere with a drawn scene on its front and back."""
    return partial(sys.modules["drawn_splats"].painted, scene=draw(0, (256, 256)))


def pooled(psnrs: list[float]) -> float:
    """The PSNR of several views of one size together."""
    return float(-10 * np.log10(np.mean(np.power(10.0, -np.array(psnrs) / 10))))


def test_noise_in_the_colors_is_reduced_and_clean_colors_stay(
    trained_refiner: ImageRefiner, painted: Draw
) -> None:
    clean, fine = painted(1000), painted(30000)
    views = views_of(clean)
    texture = shown(fine, [view_weights(fine, one) for one in ring(frame(clean), 3, 10.0, SIZE)])
    refiner = SplatRefiner(trained_refiner)
    settings: dict[str, Any] = {"views": 8, "size": SIZE, "seed": 1, "num_inference_steps": 10}
    noisy = painted(1000, noise=0.1)
    better = refiner.refine(noisy, **settings)
    before, after = (psnr(shown(one, views), texture) for one in (noisy, better.splat))
    assert min(np.subtract(after, before)) > 0.5, "each view is better"
    same = refiner.refine(clean, **settings)
    before, after = (pooled(psnr(shown(one, views), texture)) for one in (clean, same.splat))
    assert abs(after - before) < 0.5, "without agreement() it loses 0.6"
    for name in ("positions", "scales", "rotations", "opacities"):
        assert torch.equal(getattr(better.splat, name), getattr(noisy, name))
    assert len(better.before) == len(better.after) == 8
    assert better.after[0].shape == (SIZE, SIZE, 4)
    assert np.array_equal(better.before[0][..., 3], better.after[0][..., 3])


def test_all_views_get_one_noise(
    refiner: ImageRefiner, draw_splat: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    refine_batch = ImageRefiner.refine_batch

    def noted(self: ImageRefiner, images: Any, settings: Any, **more: Any) -> Any:
        assert len(images) == 1
        seeds.append(settings.seed)
        return refine_batch(self, images, settings, **more)

    monkeypatch.setattr(ImageRefiner, "refine_batch", noted)
    SplatRefiner(refiner).refine(draw_splat(300), seed=7, **QUICK)
    assert seeds == [7, 7]


def test_progress_counts_views_and_never_goes_back(refiner: ImageRefiner, draw_splat: Draw) -> None:
    events: list[Progress] = []
    SplatRefiner(refiner).refine(draw_splat(300), on_progress=events.append, **QUICK)
    assert [event.stage for event in events][:2] == ["render", "render"]
    assert events[-1].stage == "fit" and events[-1].text == "fitting the colors"
    assert events[-1].done == events[-1].total == 2
    done = [event.done for event in events]
    assert done == sorted(done)
    assert {event.images for event in events if event.stage != "fit"} == {2}
    assert "image 2 of 2, rendering" in {event.text for event in events}


@pytest.mark.parametrize("stage", ["render", "encode", "fit"])
def test_a_cancel_ends_the_work_in_every_stage(
    refiner: ImageRefiner, draw_splat: Draw, stage: str
) -> None:
    seen: list[str] = []
    with pytest.raises(RefineCancelled):
        SplatRefiner(refiner).refine(
            draw_splat(300),
            on_progress=lambda event: seen.append(event.stage),
            should_stop=lambda: stage in seen,
            **QUICK,
        )
    assert seen[-1] == stage


def test_views_that_are_not_kept_give_the_same_splat(
    refiner: ImageRefiner, draw_splat: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    splat = draw_splat(300)
    kept = SplatRefiner(refiner).refine(splat, **QUICK).splat
    monkeypatch.setattr(splat_refiner, "MAX_KEPT_BYTES", 0)
    assert torch.equal(SplatRefiner(refiner).refine(splat, **QUICK).splat.sh, kept.sh)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"views": 0}, "views must be from 1 to 256, not 0"),
        ({"passes": 101}, "passes must be from 1 to 100, not 101"),
        ({"size": 32}, "size must be from 64 to 2048, not 32"),
        ({"strength": 2.0}, "strength"),
    ],
)
def test_settings_out_of_range_are_refused(
    refiner: ImageRefiner, draw_splat: Draw, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        SplatRefiner(refiner).refine(draw_splat(10), **settings)
