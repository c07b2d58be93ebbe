"""Progress, previews and cancelling."""

from collections.abc import Callable

import numpy as np
import pytest
from image_refinery.refine import ImageRefiner, Progress, RefineCancelled, RefineSettings
from PIL import Image

Draw = Callable[[int, tuple[int, int]], Image.Image]
SMALL = {"working_size": "keep size"}


def test_events_tell_every_stage_and_step(refiner: ImageRefiner, draw: Draw) -> None:
    events: list[Progress] = []
    images = [draw(i, (64, 64)) for i in range(2)]
    refiner.load()
    settings = RefineSettings(prompt="events", num_inference_steps=10, **SMALL)
    refiner.refine_batch(images, settings, on_progress=events.append)
    assert [event.text for event in events] == [
        "image 1 of 2, encoding the prompt",
        "image 1 of 2, encoding",
        "image 2 of 2, encoding",
        *(f"image 1 of 2, step {step} of 3 (10 x 0.3)" for step in range(4)),
        *(f"image 2 of 2, step {step} of 3 (10 x 0.3)" for step in range(4)),
        "image 1 of 2, decoding",
        "image 2 of 2, decoding",
    ]
    assert [event.done for event in events if event.stage == "refine"] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert {event.total for event in events} == {6}


def test_a_preview_shows_the_picture(trained_refiner: ImageRefiner, draw: Draw) -> None:
    image = draw(0, (256, 192))
    seen: list[Image.Image] = []

    def look(progress: Progress) -> None:
        preview = progress.preview()
        assert (preview is None) == (progress.stage != "refine")
        if progress.step == progress.steps and preview is not None:
            seen.append(preview)

    refined = trained_refiner.refine(image, on_progress=look, **SMALL)
    small = np.asarray(refined.reduce(8), np.float32)
    assert len(seen) == 1
    assert np.abs(np.asarray(seen[0], np.float32) - small).mean() < 12


def test_a_large_picture_tells_its_tiles(refiner: ImageRefiner, draw: Draw) -> None:
    events: list[Progress] = []
    image = draw(0, (2112, 64))
    refiner.refine(image, num_inference_steps=4, on_progress=events.append, **SMALL)
    texts = [event.text for event in events if event.step == 1]
    assert texts == [f"tile {n} of 3, step 1 of 1 (4 x 0.3)" for n in (1, 2, 3)]
    last = [event for event in events if event.stage == "refine"][-1].preview()
    assert last is not None
    assert last.size == (264, 8)


def test_an_exception_from_the_callback_reaches_the_caller(
    refiner: ImageRefiner, draw: Draw
) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise Enough

    image = draw(0, (64, 64))
    with pytest.raises(Enough):
        refiner.refine(image, on_progress=stop, **SMALL)
    assert refiner.refine(image, **SMALL).size == (64, 64)


def test_cancelling_ends_the_work_inside_a_step(refiner: ImageRefiner, draw: Draw) -> None:
    steps: list[int | None] = []
    asked = 0

    def note(progress: Progress) -> None:
        if progress.stage == "refine":
            steps.append(progress.step)

    def stop() -> bool:
        nonlocal asked
        asked += bool(steps)
        return asked == 20

    with pytest.raises(RefineCancelled, match="cancelled"):
        refiner.refine(draw(0, (256, 192)), 1.0, on_progress=note, should_stop=stop, **SMALL)
    # Layers ask, not steps: the twentieth is in the first step, and none comes after it.
    assert asked == 20
    assert steps == [0]
    # Nothing is left behind: the next run neither stops nor asks.
    assert refiner.refine(draw(0, (64, 64)), **SMALL).size == (64, 64)


def test_a_refiner_that_is_cancelled_at_once_loads_nothing() -> None:
    refiner = ImageRefiner("cpu", model="nobody/nothing", local_files_only=True)
    with pytest.raises(RefineCancelled):
        refiner.refine(Image.new("RGB", (8, 8)), should_stop=lambda: True)
