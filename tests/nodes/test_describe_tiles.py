"""Describe Tiles over the stub, and what SDXL Refiner does with its tile prompts."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from image_refinery.llm.errors import LLMError
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

TINY = "tiny_refiner.safetensors"


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.describe_tiles import DescribeTiles

    return DescribeTiles


def execute(node: Any, *batches: torch.Tensor, **inputs: Any) -> tuple[list[str], list[Any]]:
    named = {"vision_model": "llava"} | inputs
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    return node.execute(image=list(batches), **lists).result


def sent(ollama: FaultyOllama) -> list[Any]:
    return [request for request in ollama.requests if request.images]


def test_all_tiles_of_all_images_load_the_model_once(node: Any, ollama: FaultyOllama) -> None:
    batch = torch.rand(2, 100, 3000, 3)
    texts, prompts = execute(node, batch, torch.rand(1, 90, 70, 3), working_size="keep size")
    counts = [[len(region) for region in one.boxes] for one in prompts]
    assert counts == [[4], [4], [1]] and len(texts) == 9
    assert [one.size for one in prompts] == [(100, 3000), (100, 3000), (90, 70)]
    assert [text for one in prompts for region in one.texts for text in region] == texts
    assert len(sent(ollama)) == 9 and list(ollama.loads.values()) == [1]


def test_a_tile_shows_its_own_part_of_the_image(node: Any, ollama: FaultyOllama) -> None:
    image = torch.zeros(1, 100, 3000, 3)
    image[:, :, :300, 0] = 1
    image[:, :, :, 1] = torch.linspace(
        0, 1, 3000
    )  # no two tiles are equal: equal ones are asked once
    execute(node, image, working_size="keep size")
    shown = [
        np.asarray(Image.open(io.BytesIO(one.images[0])).convert("RGB"))[..., 0]
        for one in sent(ollama)
    ]
    assert len(shown) == 4
    (first,) = (picture for picture in shown if picture[50, 0] > 200)
    assert first[50, 290] > 200 > 50 > first[50, 310]
    assert sum(picture.max() > 50 for picture in shown) == 1


def test_regions_of_a_mask_have_a_text_each_in_reading_order(
    node: Any, ollama: FaultyOllama
) -> None:
    mask = torch.zeros(1, 300, 400)
    mask[:, 200:260, 320:380] = 1
    mask[:, 20:70, 10:60] = 1
    _, (prompts,) = execute(node, torch.rand(1, 300, 400, 3), mask=[mask])
    assert [region[0][:2] for region in prompts.boxes] == [(0, 0), (168, 288)]
    assert len(sent(ollama)) == 2
    texts, (prompts,) = execute(node, torch.rand(1, 300, 400, 3), mask=[mask * 0])
    assert (texts, prompts.boxes, prompts.texts) == ([], [], [])
    assert len(sent(ollama)) == 2, "nothing is asked"


def test_what_fails_has_an_error_and_no_prompt(node: Any, ollama: FaultyOllama) -> None:
    ollama.always("chat", "empty")
    image = torch.rand(1, 100, 3000, 3)
    texts, (prompts,) = execute(node, image, working_size="keep size")
    assert len(texts) == 4 and all(text.startswith("Error: ") for text in texts)
    assert [list(region) for region in prompts.texts] == [[""] * 4]
    with pytest.raises(LLMError):
        execute(node, image, working_size="keep size", on_error="stop the workflow")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tile_size": 100}, "Error: tile_size is 100. Use 256 or more, or 0"),
        ({"mask": [torch.zeros(2, 9, 9)]}, "Error: 2 masks are connected, but there are 1 images"),
        ({"vision_model": " "}, "Error: vision_model is empty."),
    ],
)
def test_what_cannot_be_used_is_said(node: Any, inputs: dict[str, Any], message: str) -> None:
    texts, _ = execute(node, torch.rand(1, 64, 64, 3), **inputs)
    assert len(texts) == 1 and texts[0].startswith(message)


def test_the_request_is_about_a_part_unless_it_is_replaced(node: Any, ollama: FaultyOllama) -> None:
    from image_refinery.captioning.prompts import TILE_REQUEST

    execute(node, torch.rand(1, 64, 64, 3))
    assert sent(ollama)[0].body["messages"][-1]["content"] == TILE_REQUEST
    execute(node, torch.rand(1, 64, 64, 3), custom_vision_prompt="Which colors?")
    assert sent(ollama)[1].body["messages"][-1]["content"] == "Which colors?"


@pytest.fixture
def refiner(checkpoints: Path, quick_loads: None) -> Iterator[Any]:
    from image_refinery.nodes.host.kept import free_refiner
    from image_refinery.nodes.sdxl_refiner import SDXLRefiner

    yield SDXLRefiner
    free_refiner()


def refine(refiner: Any, *batches: torch.Tensor, **inputs: Any) -> Any:
    named = {"checkpoint": TINY, "prompt": "sharp", "working_size": "keep size"} | inputs
    named["num_inference_steps"] = 4
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    with torch.inference_mode():
        return refiner.execute(image=list(batches), **lists)


def test_the_refiner_uses_each_text_for_its_tile(
    node: Any, refiner: Any, encoded: list[str]
) -> None:
    images = torch.rand(2, 90, 70, 3)
    _, prompts = execute(node, images, working_size="keep size")
    own = [replace(one, texts=[[f"part {index}"]]) for index, one in enumerate(prompts)]
    refine(refiner, images, tile_prompts=own)
    assert encoded == ["sharp, part 0", "sharp, part 1"]
    encoded.clear()
    refine(refiner, images, tile_prompts=own[:1], prompt="a {tile} here")
    assert encoded == ["a part 0 here"]


def test_tile_prompts_of_other_images_are_an_error(node: Any, refiner: Any) -> None:
    images = torch.rand(1, 90, 70, 3)
    _, prompts = execute(node, torch.rand(1, 90, 71, 3), working_size="keep size")
    with pytest.raises(ValueError, match="for an image of 71 x 90 px, and this one is 70 x 90 px"):
        refine(refiner, images, tile_prompts=prompts)
    with pytest.raises(ValueError, match="tile prompts of 2 images are connected, but there are 3"):
        refine(refiner, torch.rand(3, 90, 70, 3), tile_prompts=prompts * 2)
    original = refine(
        refiner, images, tile_prompts=prompts, on_error="return original image"
    ).result[0][0]
    assert original is images


def test_nothing_is_asked_for_that_is_not_used(refiner: Any) -> None:
    def wanted(**inputs: Any) -> list[str]:
        linked = dict.fromkeys(("prompt", "negative_prompt", "tile_prompts", "upscale_model"))
        return refiner.check_lazy_status(**linked, **{k: [v] for k, v in inputs.items()})

    assert wanted() == ["prompt", "negative_prompt", "tile_prompts"]
    assert wanted(strength=0.0, scale=2.0) == ["prompt", "negative_prompt", "upscale_model"]
    assert wanted(enabled=False, scale=2.0) == []


def test_scale_uses_the_upscale_model_of_comfyui(
    refiner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Upscale:
        @classmethod
        def execute(cls, model: Any, image: torch.Tensor) -> Any:
            asked.append((model, tuple(image.shape)))
            return SimpleNamespace(args=(image.repeat_interleave(4, 1).repeat_interleave(4, 2),))

    core = ModuleType("nodes")
    vars(core)["NODE_CLASS_MAPPINGS"] = {"ImageUpscaleWithModel": Upscale}
    monkeypatch.setitem(sys.modules, "nodes", core)
    images, mask = torch.rand(1, 40, 60, 3), torch.zeros(1, 40, 60)
    mask[:, 10:20, 10:20] = 1
    (refined,), (marked,) = refine(
        refiner, images, scale=2.0, upscale_model=["a model"], mask=[mask]
    ).result
    assert refined.shape == (1, 80, 120, 3) and asked == [("a model", (1, 40, 60, 3))]
    assert marked.shape == (1, 80, 120) and marked[0, 30, 30] == 1
    (plain,), _ = refine(refiner, images, scale=2.0, strength=0.0).result
    assert plain.shape == (1, 80, 120, 3) and len(asked) == 1
