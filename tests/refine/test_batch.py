"""One bad image costs only itself, where the caller wants that."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from image_refinery.refine import Batch, ImageRefiner, RefineError, RefineSettings, SettingsError
from PIL import Image

Draw = Callable[[int, tuple[int, int]], Image.Image]
SMALL = {"num_inference_steps": 4, "working_size": "keep size"}


def test_a_bad_row_comes_back_as_it_is_and_the_others_are_refined(refiner: ImageRefiner) -> None:
    images = torch.rand(3, 64, 64, 3)
    images[1, 0, 0, 0] = float("nan")
    errors: list[tuple[int, str]] = []
    settings = RefineSettings(seed=5, **SMALL)
    batch = Batch(
        [images, "no image"],
        settings,
        on_image_error=lambda number, error: errors.append((number, str(error))),
    )
    refined, other = refiner.refine_items(batch)
    assert [number for number, _ in errors] == [1, 3]
    assert "NaN" in errors[0][1] and "not str" in errors[1][1]
    assert other == "no image"
    assert torch.equal(refined[1].isnan(), images[1].isnan())
    alone = refiner.refine(images[2:], seed=7, **SMALL)
    assert torch.equal(refined[2:], alone), "the seed is that of its place"


def test_what_fails_while_the_model_works_costs_only_its_image(
    refiner: ImageRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.refine import NotFiniteError
    from image_refinery.refine.stages import Stages

    images = [torch.rand(1, 64, 64, 3) for _ in range(3)]
    encode, calls, errors = Stages.encode, [], []

    def fail_once(self: Stages, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise NotFiniteError("broken")
        encode(self, *arguments)

    monkeypatch.setattr(Stages, "encode", fail_once)
    done: list[int] = []
    batch = Batch(
        images, RefineSettings(**SMALL), on_image_error=lambda number, _: errors.append(number)
    )
    results = refiner.refine_items(batch, on_progress=lambda event: done.append(event.done))
    assert errors == [1]
    assert [result is image for result, image in zip(results, images, strict=True)] == [
        *(False, True, False)
    ]
    assert done[-1] == 3, "the steps of the image that failed count as done"


def test_a_batch_of_none_is_a_batch_of_none(refiner: ImageRefiner) -> None:
    none = np.zeros((0, 8, 8, 3), np.float32)
    assert refiner.refine_batch([none])[0] is none


@pytest.mark.usefixtures("quarter_megapixel")
def test_an_image_that_was_not_refined_gets_the_size_of_its_batch(refiner: ImageRefiner) -> None:
    images = torch.rand(2, 48, 64, 3)
    images[0, 0, 0, 0] = float("inf")
    settings = RefineSettings(output_size="working", num_inference_steps=4)
    batch = Batch([images], settings, on_image_error=lambda *_: None)
    (refined,) = refiner.refine_items(batch)
    assert refined.shape == (2, 443, 591, 3)


def test_each_row_of_a_batch_may_have_its_own_prompt(refiner: ImageRefiner) -> None:
    images = torch.rand(2, 64, 64, 3)
    settings = RefineSettings(**SMALL)
    (both,) = refiner.refine_batch([images], settings, prompts=[["red", "blue"]])
    singles = refiner.refine_batch(list(images.split(1)), settings, prompts=["red", "blue"])
    assert torch.equal(both, torch.cat(singles))
    for prompts in (["red"], [3, "blue"], 3):
        with pytest.raises(SettingsError, match=r"prompts:|A prompt must be a text"):
            Batch([images], settings, prompts=[prompts])


def test_everything_is_checked_when_the_batch_is_made() -> None:
    with pytest.raises(RefineError, match="The mask is 4 x 4 px"):
        Batch([torch.zeros(8, 8, 3)], RefineSettings(), masks=[torch.ones(4, 4)])
