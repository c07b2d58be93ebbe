"""What the stand-in vision model says of scenes that are not in its training data, as nodes use it.

It is what lets tests check meaning: swapped channels, mirrored images and mixed-up batches show.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from image_refinery.captioning.job import Job, Stage
from image_refinery.captioning.run import run
from image_refinery.llm.llamacpp.backend import EmbeddedEngine
from image_refinery.llm.llamacpp.registry import Registry

pytestmark = pytest.mark.embedded

TARGET = 0.95
FEW = 30  # enough to tell the target from chance

Pixels = Any


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    registry = Registry()
    yield EmbeddedEngine(registry=registry)
    registry.close()


def shares(
    engine: EmbeddedEngine,
    scenes: ModuleType,
    count: int,
    change: Callable[[Pixels], Pixels] = lambda pixels: pixels,
) -> tuple[float, float]:
    """Of all objects: the share with color and shape right, and the share in the right place."""
    drawn = [scenes.draw_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:count]]
    pictures = [np.ascontiguousarray(change(np.asarray(image))) for image, _ in drawn]
    job = Job(vision=Stage(model="toy-vision", options={"temperature": 0, "num_predict": 80}))
    results = run(engine, [lambda picture=picture: picture for picture in pictures], job)
    scores = []
    for result, (_, scene) in zip(results, drawn, strict=True):
        assert result.description.answer, result.description
        scores += scenes.score(result.description.text, scene)
    seen = sum(score.color_and_shape for score in scores) / len(scores)
    placed = sum(score.place for score in scores) / len(scores)
    return seen, placed


def test_it_sees_a_hundred_scenes(engine: EmbeddedEngine, scenes: ModuleType) -> None:
    seen, placed = shares(engine, scenes, 100)
    assert seen >= TARGET and placed >= TARGET, f"color and shape {seen:.1%}, place {placed:.1%}"


def test_red_and_blue_exchanged_do_not_pass(engine: EmbeddedEngine, scenes: ModuleType) -> None:
    seen, placed = shares(engine, scenes, FEW, lambda pixels: pixels[:, :, ::-1])
    assert seen < TARGET
    assert placed > seen + 0.3, "the colors are wrong, the places are not"


def test_a_mirrored_image_does_not_pass(engine: EmbeddedEngine, scenes: ModuleType) -> None:
    seen, placed = shares(engine, scenes, FEW, lambda pixels: pixels[:, ::-1])
    assert placed < TARGET
    assert seen > placed + 0.3, "the places are wrong, colors and shapes are not"


def test_it_answers_the_same_whatever_it_is_asked(
    engine: EmbeddedEngine, scenes: ModuleType
) -> None:
    image, _ = scenes.draw_scene(scenes.HELD_OUT_SEEDS[0])
    pixels = np.asarray(image)

    def ask(prompt: str) -> str:
        job = Job(
            vision=Stage(model="toy-vision", options={"temperature": 0}), custom_prompts=[prompt]
        )
        (result,) = run(engine, [lambda: pixels], job)
        assert result.description.answer, result.description
        return result.description.text

    assert ask("") == ask("Count the legs of the table.")


def test_two_nodes_at_a_time_do_not_mix_up_their_images(
    engine: EmbeddedEngine, scenes: ModuleType
) -> None:
    drawn = [scenes.draw_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:10]]
    images = [np.asarray(image) for image, _ in drawn]
    job = Job(vision=Stage(model="toy-vision", options={"temperature": 0, "num_predict": 80}))

    def texts(chosen: list[Pixels]) -> list[str]:
        captions = run(engine, [lambda image=image: image for image in chosen], job)
        return [caption.final.text for caption in captions]

    expected = texts(images)
    assert len(set(expected)) == len(images)
    answered: dict[int, list[str]] = {}

    def node(number: int) -> None:
        answered[number] = texts(images[number::2])

    nodes = [threading.Thread(target=node, args=(number,)) for number in range(2)]
    for thread in nodes:
        thread.start()
    for thread in nodes:
        thread.join()
    assert answered == {0: expected[::2], 1: expected[1::2]}
