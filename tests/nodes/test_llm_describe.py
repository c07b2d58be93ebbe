"""LLM Describe over the stub: one stage, one model load, the error rules of LLM Image Refine."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from image_refinery.ollama_client import StageOptions
from image_refinery.ollama_client.errors import OllamaError

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.llm_describe import LLMDescribe

    return LLMDescribe


def execute(node: Any, *batches: torch.Tensor, **inputs: Any) -> tuple[list[Any], list[str]]:
    named = {"vision_model": "llava"} | inputs
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    return node.execute(image=list(batches), **lists).result


def image(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 64, 96, 3)


def test_it_has_the_vision_inputs_of_llm_image_refine(node: Any) -> None:
    from image_refinery.nodes.llm_image_refine import LLMImageRefine

    own = {one.id: one.as_dict() for one in node.define_schema().inputs}
    whole = {one.id: one.as_dict() for one in LLMImageRefine.define_schema().inputs}
    for id in ("temperature", "top_p", "top_k"):
        assert own.pop(id) == whole[f"vision_{id}"]
    assert own.pop("options")["tooltip"]
    assert own == {id: whole[id] for id in own}


def test_only_the_vision_model_is_asked(node: Any, ollama: FaultyOllama) -> None:
    single, batch = image(), image(batch=2)
    images, descriptions = execute(node, single, batch, custom_vision_prompt="Name the shape.")
    assert images[0] is single and len(images) == 3
    assert descriptions == ["A red circle on a white background."] * 3
    assert ollama.loads == ollama.unloads == {"llava:latest": 1}
    asked = [r.body["messages"][-1]["content"] for r in ollama.requests if r.kind == "chat"]
    assert asked == ["Name the shape."] * 3


def test_widgets_and_options_reach_the_request(node: Any, ollama: FaultyOllama) -> None:
    options = StageOptions(model_options={"num_predict": 33})
    execute(node, image(), temperature=0.9, top_k=3, seed=5, options=options)
    (chat,) = [r for r in ollama.requests if r.kind == "chat"]
    given = {key: chat.options[key] for key in ("temperature", "top_k", "seed", "num_predict")}
    assert given == {"temperature": 0.9, "top_k": 3, "seed": 5, "num_predict": 33}


def test_all_images_in_one_question(node: Any, ollama: FaultyOllama) -> None:
    first, second = image(), image(batch=2)
    images, descriptions = execute(node, first, second, batch_mode="all images in one question")
    assert [a is b for a, b in zip(images, (first, second), strict=True)] == [True, True]
    assert len(descriptions) == 1
    (chat,) = [r for r in ollama.requests if r.kind == "chat"]
    assert len(chat.image_sizes) == 3


def test_an_error_is_the_description_and_is_not_cached(node: Any, ollama: FaultyOllama) -> None:
    ollama.script("chat", "empty")
    before = node.fingerprint_inputs()
    picture = image()
    images, descriptions = execute(node, picture)
    assert images[0] is picture
    assert descriptions[0].startswith('Error: Empty response from model "llava')
    assert node.fingerprint_inputs() != before


def test_a_run_that_cannot_begin_gives_one_message_per_image(node: Any) -> None:
    images, descriptions = execute(node, image(batch=2), server="elsewhere")
    assert len(images) == 2
    assert all('no server named "elsewhere"' in text for text in descriptions)
    assert len(descriptions) == 2


def test_stop_the_workflow_raises(node: Any) -> None:
    from image_refinery.ollama_client.errors import NoVision

    with pytest.raises(NoVision, match="cannot see images"):
        execute(node, image(), vision_model="llama3.2", on_error="stop the workflow")


def test_any_model_name_passes_validation(node: Any) -> None:
    assert set(inspect.signature(node.validate_inputs).parameters) == {"vision_model", "server"}
    assert node.validate_inputs("hf.co/org/x:Q4_K_M", "studio") is True


def test_half_a_character_while_it_streams_does_not_end_the_run(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import FAULTS
    from server import PromptServer

    ollama.script("chat", replace(FAULTS["half_characters"], token_s=0.15))
    PromptServer.instance.sent_texts.clear()
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "3"}))
    _, descriptions = execute(node, image())
    assert descriptions == ["A \U0001f600 and \ufffd alone"]
    assert any("\ufffd" in text for _, text in PromptServer.instance.sent_texts)


@pytest.mark.parametrize("on_error", ["give the message", "stop the workflow"])
def test_the_last_word_on_the_node_is_the_error(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    from server import PromptServer

    ollama.models = {}
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "9"}))
    with suppress(OllamaError):
        execute(node, image(), on_error=on_error)
    said = [text for id, text in PromptServer.instance.sent_texts if id == "9"]
    assert 'Error: The model "llava" is not installed' in said[-1]
