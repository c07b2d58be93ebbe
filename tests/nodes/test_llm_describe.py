"""LLM Describe over the stub: one stage, one model load, the error rules of LLM Image Refine."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from image_refinery.captioning.options import StageOptions
from image_refinery.llm.errors import LLMError

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
    images, descriptions = execute(node, first, second, batch_mode="one text for all images")
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
    from image_refinery.llm.errors import NoVision

    with pytest.raises(NoVision, match="does not take images"):
        execute(node, image(), vision_model="llama3.2", on_error="stop the workflow")


def test_any_model_name_passes_validation(node: Any) -> None:
    assert {"vision_model", "server"} <= set(inspect.signature(node.validate_inputs).parameters)
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


@pytest.mark.parametrize("on_error", ["output error text", "stop the workflow"])
def test_the_last_word_on_the_node_is_the_error(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    from server import PromptServer

    ollama.models = {}
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "9"}))
    with suppress(LLMError):
        execute(node, image(), on_error=on_error)
    said = [text for id, text in PromptServer.instance.sent_texts if id == "9"]
    assert 'Error: The model "llava" is not installed' in said[-1]


def test_a_failure_changes_the_fingerprint_of_its_own_node_only(
    node: Any, ollama: FaultyOllama
) -> None:
    from comfy_execution.utils import CurrentNodeContext

    def fingerprint(id: str) -> Any:
        with CurrentNodeContext("prompt", id):
            return node.fingerprint_inputs()

    before = {id: fingerprint(id) for id in ("3", "4")}
    ollama.script("chat", "empty")
    with CurrentNodeContext("prompt", "3"):
        execute(node, image())
    assert fingerprint("3") != before["3"]
    assert fingerprint("4") == before["4"]


def said(node: Any, monkeypatch: pytest.MonkeyPatch, *batches: Any, **inputs: Any) -> str:
    """Run the node and return the last text on it."""
    from server import PromptServer

    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "31"}))
    PromptServer.instance.sent_texts.clear()
    execute(node, *batches, **inputs)
    return [text for id, text in PromptServer.instance.sent_texts if id == "31"][-1]


def test_the_node_ends_with_what_it_did(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch(r"described 1 image in \d+\.\d s\.", said(node, monkeypatch, image()))
    both = said(node, monkeypatch, image(batch=2), batch_mode="one text for all images")
    assert both.startswith("described 1 set of images in ")
    cut = StageOptions(model_options={"num_predict": 3})
    first, second = said(node, monkeypatch, image(batch=2), options=cut).splitlines()
    assert first.startswith("described 2 images in ")
    assert second == "The answer was cut at num_predict. Raise it in Ollama Options."


def test_the_node_ends_with_how_many_failed_and_why(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama.script("chat", "empty")
    first, second = said(node, monkeypatch, image(batch=3)).splitlines()
    assert first.startswith("described 2 of 3 images in ")
    assert second.startswith("Error: Empty response from model")
    ollama.models = {}
    first, second = said(node, monkeypatch, image(batch=6)).splitlines()
    assert first.startswith("6 of 6 failed after ")
    assert "is not installed" in second
    ui = node.execute(image=[image(batch=6)], vision_model=["llava"]).ui
    assert ui["failed"][0].startswith("6 of 6 failed") and "is not installed" in ui["failed"][1]


def test_a_cancelled_node_says_how_far_it_came(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    from faulty_ollama import Reply
    from server import PromptServer

    ollama.script("chat", Reply(), lambda _: management.interrupt_current_processing() or Reply())
    with pytest.raises(management.InterruptProcessingException):
        said(node, monkeypatch, image(batch=6))
    assert PromptServer.instance.sent_texts[-1][1] == "describe with llava: cancelled after 1 of 6"


def test_placeholders_know_the_size_and_say_what_they_do_not_know(
    node: Any, ollama: FaultyOllama
) -> None:
    from server import PromptServer

    PromptServer.instance.sent_texts.clear()
    hidden = type("Hidden", (), {"unique_id": "44"})
    running = type(node.__name__, (node,), {"hidden": hidden})
    running.execute(
        image=[torch.rand(1, 40, 60, 3)],
        vision_model=["llava"],
        custom_vision_prompt=["{width} x {height} of {name}"],
    )
    (chat,) = ollama.of("chat")
    assert chat.body["messages"][-1]["content"] == "60 x 40 of {name}"
    shown = PromptServer.instance.sent_texts[-1][1]
    assert "{name} was left as it is: connect names to fill it in." in shown


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["../secret.png"], "names: "),
        (["missing.png"], "names: "),
        (["a.png", "b.png"], "names has 2 entries for 1 images"),
    ],
)
def test_names_that_are_no_files_of_ours_are_one_sentence(
    node: Any, ollama: FaultyOllama, names: list[str], says: str
) -> None:
    output = node.execute(
        image=[torch.rand(1, 40, 60, 3)],
        vision_model=["llava"],
        custom_vision_prompt=["{tags}"],
        names=names,
    )
    (text,) = output.result[1]
    assert text.startswith(f"Error: {says}") and not ollama.of("chat")
