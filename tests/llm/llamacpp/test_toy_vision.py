"""What the toy vision model says of scenes it has never seen, asked as the node asks: over HTTP.

It is what lets tests check meaning: swapped channels, mirrored pictures and mixed-up batches show.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from image_refinery.captioning.job import Job, Stage
from image_refinery.captioning.run import run
from image_refinery.llm.errors import UnexpectedResponse
from image_refinery.llm.llamacpp import EmbeddedServer, why_unavailable
from image_refinery.ollama_client import Message, OllamaClient, Server, collect

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "the engine is here"),
]

SCENES_FILE = Path(__file__).resolve().parents[3] / "tools" / "toy_vision" / "scenes.py"
TARGET = 0.95
FEW = 60  # enough to tell the target from chance

Pixels = Any


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    name = "toy_vision_scenes"
    spec = importlib.util.spec_from_file_location(name, SCENES_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client() -> Iterator[OllamaClient]:
    with EmbeddedServer() as server, OllamaClient(Server(url=server.url)) as client:
        yield client


def shares(
    client: OllamaClient,
    scenes: ModuleType,
    count: int,
    change: Callable[[Pixels], Pixels] = lambda pixels: pixels,
) -> tuple[float, float]:
    """Of all objects: the share with colour and shape right, and the share in the right place."""
    drawn = [scenes.draw_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:count]]
    pictures = [np.ascontiguousarray(change(np.asarray(image))) for image, _ in drawn]
    job = Job(vision=Stage(model="toy-vision", options={"temperature": 0, "num_predict": 80}))
    results = run(client, [lambda picture=picture: picture for picture in pictures], job)
    scores = []
    for result, (_, scene) in zip(results, drawn, strict=True):
        assert result.description.answer, result.description
        scores += scenes.score(result.description.text, scene)
    seen = sum(score.colour_and_shape for score in scores) / len(scores)
    placed = sum(score.place for score in scores) / len(scores)
    return seen, placed


def test_it_sees_a_hundred_scenes(client: OllamaClient, scenes: ModuleType) -> None:
    seen, placed = shares(client, scenes, 100)
    assert seen >= TARGET and placed >= TARGET, f"colour and shape {seen:.1%}, place {placed:.1%}"


def test_red_and_blue_exchanged_do_not_pass(client: OllamaClient, scenes: ModuleType) -> None:
    seen, placed = shares(client, scenes, FEW, lambda pixels: pixels[:, :, ::-1])
    assert seen < TARGET
    assert placed > seen + 0.3, "the colours are wrong, the places are not"


def test_a_mirrored_picture_does_not_pass(client: OllamaClient, scenes: ModuleType) -> None:
    seen, placed = shares(client, scenes, FEW, lambda pixels: pixels[:, ::-1])
    assert placed < TARGET
    assert seen > placed + 0.3, "the places are wrong, colours and shapes are not"


def test_it_answers_the_same_whatever_it_is_asked(client: OllamaClient, scenes: ModuleType) -> None:
    image, _ = scenes.draw_scene(scenes.HELD_OUT_SEEDS[0])
    pixels = np.asarray(image)

    def ask(prompt: str) -> str:
        job = Job(
            vision=Stage(model="toy-vision", options={"temperature": 0}), custom_prompts=[prompt]
        )
        (result,) = run(client, [lambda: pixels], job)
        assert result.description.answer, result.description
        return result.description.text

    assert ask("") == ask("Count the legs of the table.")


def test_without_a_picture_it_says_to_choose_a_text_model(client: OllamaClient) -> None:
    question: Message = {"role": "user", "content": "Shorten: a red circle."}
    with pytest.raises(UnexpectedResponse, match="choose a text model"):
        collect(client.chat("toy-vision", [question]))
    client.load("toy-vision")
