"""LLM Image Refine over the stub: its inputs to the letter, its outputs, its error rules."""

from __future__ import annotations

import inspect
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from image_refinery.captioning.options import StageOptions

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    """The node class, talking to the scripted server."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.llm_image_refine import LLMImageRefine

    return LLMImageRefine


def execute(node: Any, *batches: torch.Tensor, **inputs: Any) -> tuple[list[Any], ...]:
    """Call the node as ComfyUI does with an input list; return its three output lists."""
    named = {
        "vision_model": "llava",
        "text_model": "llama3.2",
        "user_instructions": "Shorten it.",
    } | inputs
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    return node.execute(image=list(batches), **lists).result


def image(height: int = 64, width: int = 96, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels)


# name, type, and the spec's range and default
SPEC_INPUTS = [
    ("image", "IMAGE", {}),
    ("vision_model", "COMBO,STRING", {}),
    ("text_model", "COMBO,STRING", {}),
    ("user_instructions", "STRING", {"multiline": True}),
    ("custom_vision_prompt", "STRING", {"multiline": True}),
    ("vision_temperature", "FLOAT", {"default": 0.3, "min": 0.0, "max": 2.0}),
    ("vision_top_p", "FLOAT", {"default": 0.95, "min": 0.0, "max": 1.0}),
    ("vision_top_k", "INT", {"default": 40, "min": 1, "max": 100}),
    ("text_temperature", "FLOAT", {"default": 0.7, "min": 0.0, "max": 2.0}),
    ("text_presence_penalty", "FLOAT", {"default": 0.0, "min": -2.0, "max": 2.0}),
    ("text_frequency_penalty", "FLOAT", {"default": 0.0, "min": -2.0, "max": 2.0}),
    ("text_top_p", "FLOAT", {"default": 0.95, "min": 0.0, "max": 1.0}),
    ("text_top_k", "INT", {"default": 40, "min": 1, "max": 100}),
]
OWN_INPUTS = [
    "seed",
    "batch_mode",
    "keep_loaded_minutes",
    "on_error",
    "clean_output",
    "server",
    "vision_options",
    "text_options",
    "use_recorded_words",
    "names",
]


def test_the_inputs_are_the_specs_to_the_letter_and_in_its_order(node: Any) -> None:
    inputs = node.define_schema().inputs
    assert [i.id for i in inputs] == [name for name, _, _ in SPEC_INPUTS] + OWN_INPUTS
    assert [i.id for i in inputs if not i.optional] == [n for n, _, _ in SPEC_INPUTS[:4]]
    for given, (name, kind, wanted) in zip(inputs, SPEC_INPUTS, strict=False):
        assert given.get_io_type() == kind, name
        fields = given.as_dict()
        assert {key: fields[key] for key in wanted} == wanted, name
    assert all(i.tooltip for i in inputs)


def test_the_outputs_are_the_specs(node: Any) -> None:
    outputs = node.define_schema().outputs
    assert [(o.display_name, o.get_io_type()) for o in outputs] == [
        ("image", "IMAGE"),
        ("description", "STRING"),
        ("refined_output", "STRING"),
    ]
    assert all(o.is_output_list and o.tooltip for o in outputs)


def test_the_model_lists_hold_what_the_server_has_and_the_usual_names(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import vision_model
    from image_refinery.nodes import host
    from image_refinery.nodes.host import servers
    from image_refinery.nodes.host.model_lists import ModelListCache, Source

    ollama.models = {"bakllava:latest": vision_model("bakllava")}
    lists = ModelListCache(lambda: [Source("", lambda: host.open_backend(""))])
    monkeypatch.setattr(servers, "model_lists", lists)
    lists.names("vision")
    lists._look.join(timeout=10)
    inputs = {i.id: i.as_dict() for i in node.define_schema().inputs}
    assert inputs["vision_model"]["options"] == ["auto", "bakllava:latest", "llava:latest"]
    assert inputs["text_model"]["options"] == ["auto", "bakllava:latest", "llama3.2:latest"]
    assert inputs["vision_model"]["default"] == inputs["text_model"]["default"] == "auto"


def test_any_model_name_passes_validation(node: Any) -> None:
    names = set(inspect.signature(node.validate_inputs).parameters)
    assert names >= {"vision_model", "text_model", "server"}
    assert node.validate_inputs("hf.co/org/x:Q4_K_M", "not/here:1b", "studio") is True


def test_one_image_comes_out_as_the_very_same_object(node: Any) -> None:
    picture = image()
    images, descriptions, refined = execute(node, picture)
    assert images[0] is picture and len(images) == 1
    assert descriptions == ["A red circle on a white background."]
    assert refined == ["A crimson disc floats on snow."]


def test_a_batch_becomes_views_and_a_list_stays_aligned(node: Any, ollama: FaultyOllama) -> None:
    from faulty_ollama import vision_model

    ollama.models["llava:latest"] = vision_model(answer=lambda r: f"size {r.image_sizes[0]}")
    batch, single = image(batch=4), image(40, 50)
    images, descriptions, refined = execute(node, batch, single)
    assert len(images) == len(descriptions) == len(refined) == 5
    assert images[4] is single
    for index in range(4):
        assert images[index].shape == (1, 64, 96, 3)
        assert images[index].data_ptr() == batch[index].data_ptr(), "a view, not a copy"
    assert descriptions == ["size (96, 64)"] * 4 + ["size (50, 40)"]
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 1}


def test_rgba_and_odd_values_are_sent(node: Any, ollama: FaultyOllama) -> None:
    picture = image(channels=4)
    picture[0, 0, 0] = float("nan")
    picture[0, 0, 1] = float("inf")
    images, descriptions, _ = execute(node, picture)
    assert images[0] is picture
    assert descriptions == ["A red circle on a white background."]


def test_all_images_in_one_question_leave_the_images_as_they_came(node: Any) -> None:
    batch, single = image(batch=2), image(40, 50)
    images, descriptions, refined = execute(
        node, batch, single, batch_mode="one text for all images"
    )
    assert [a is b for a, b in zip(images, (batch, single), strict=True)] == [True, True]
    assert len(descriptions) == len(refined) == 1


def test_the_widgets_reach_the_requests(node: Any, ollama: FaultyOllama) -> None:
    execute(
        node,
        image(),
        vision_temperature=0.1,
        vision_top_k=7,
        text_presence_penalty=-1.5,
        text_top_p=0.5,
        seed=2**64 - 1,
        vision_options=StageOptions(model_options={"num_predict": 99, "num_ctx": 2048}),
        keep_loaded_minutes=3,
    )
    seen, written = (r for r in ollama.requests if r.kind == "chat")
    assert seen.options["temperature"] == 0.1
    assert seen.options["top_k"] == 7
    assert seen.options["num_predict"] == 99
    assert seen.options["num_ctx"] == 2048
    assert seen.options["repeat_penalty"] == 1.1
    assert 0 <= seen.options["seed"] < 2**31
    assert written.options["presence_penalty"] == -1.5
    assert written.options["frequency_penalty"] == 0.0
    assert written.options["top_p"] == 0.5
    assert written.options["num_predict"] == 1024
    assert written.body["keep_alive"] == 180.0
    assert "think" not in written.body


def test_empty_instructions_pass_the_description_on(node: Any, ollama: FaultyOllama) -> None:
    _, descriptions, refined = execute(node, image(), user_instructions="")
    assert refined == descriptions
    assert ollama.loads == {"llava:latest": 1}


ERRORS = [
    ("no_done", "broke off"),
    ("empty", "Empty response from model"),
    ("thinking_only", "thinking"),
    ("oom", "not have enough memory"),
    ("not_found", "ollama pull llava"),
    ("forbidden", "403"),
    ("html", "OLLAMA_BASE_URL"),
]


@pytest.mark.parametrize(("fault", "words"), ERRORS, ids=[row[0] for row in ERRORS])
def test_a_failed_description_is_the_message_in_both_texts(
    node: Any, ollama: FaultyOllama, fault: str, words: str
) -> None:
    before = node.fingerprint_inputs()
    ollama.script("chat", fault)
    picture = image()
    images, descriptions, refined = execute(node, picture)
    assert images[0] is picture
    assert descriptions == refined
    assert descriptions[0].startswith("Error: ") and words in descriptions[0]
    assert node.fingerprint_inputs() != before, "a run that ended in a message is not cached"


def test_a_failed_rewrite_keeps_the_description(node: Any, ollama: FaultyOllama) -> None:
    _, descriptions, refined = execute(node, image(), text_model="mistral")
    assert descriptions == ["A red circle on a white background."]
    assert refined[0].startswith('Error: The model "mistral" is not installed')
    assert refined[0].endswith("ollama pull mistral (R201)")


def test_a_good_run_keeps_the_fingerprint(node: Any) -> None:
    before = node.fingerprint_inputs()
    execute(node, image())
    assert node.fingerprint_inputs() == before


def test_an_answer_that_begins_with_error_is_an_answer(node: Any, ollama: FaultyOllama) -> None:
    from faulty_ollama import vision_model

    ollama.models["llava:latest"] = vision_model(answer="Error: a sign that says 404.")
    _, descriptions, refined = execute(node, image())
    assert descriptions == ["Error: a sign that says 404."]
    assert refined == ["A crimson disc floats on snow."]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"vision_temperature": 3.0}, "vision_temperature is 3.0"),
        ({"text_top_k": 0}, "text_top_k is 0"),
        ({"vision_model": "  "}, "vision_model is empty"),
        ({"text_model": ["a", "b"]}, "text_model got a list of different values"),
        ({"server": "elsewhere"}, 'no server named "elsewhere"'),
        ({"vision_model": "llama3.2"}, "does not take images"),
    ],
)
def test_bad_input_is_one_sentence(node: Any, inputs: dict[str, Any], words: str) -> None:
    picture = image()
    images, descriptions, refined = execute(node, picture, **inputs)
    assert images[0] is picture
    assert words in descriptions[0] and descriptions == refined


def test_stop_the_workflow_raises_the_message(node: Any, ollama: FaultyOllama) -> None:
    from image_refinery.llm.errors import EmptyAnswer, ServerConfigError

    ollama.script("chat", "empty")
    with pytest.raises(EmptyAnswer, match="Empty response from model"):
        execute(node, image(), on_error="stop the workflow")
    with pytest.raises(ServerConfigError):
        execute(node, image(), on_error="stop the workflow", server="elsewhere")


def test_nothing_answers_at_all(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    images, descriptions, _ = execute(node, image(batch=3))
    assert len(images) == len(descriptions) == 3
    assert "ollama serve" in descriptions[0]


def test_cancel_ends_the_node_at_once_and_clears_the_flag(node: Any, ollama: FaultyOllama) -> None:
    import comfy.model_management as management
    from faulty_ollama import Reply

    ollama.script("chat", Reply(prompt_s=30.0))
    pressed: list[float] = []

    def press() -> None:
        ollama.wait_for("chat")  # so the model is loaded
        pressed.append(time.monotonic())
        management.interrupt_current_processing()

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(management.InterruptProcessingException):
        execute(node, image())
    thread.join()
    assert time.monotonic() - pressed[0] < 5, "0.1 s is usual, and the answer would take 30 s"
    assert not management.processing_interrupted()
    _, _, refined = execute(node, image())
    assert refined == ["A crimson disc floats on snow."]
    assert ollama.unloads["llava:latest"] == 2


@pytest.mark.usefixtures("nothing_is_kept")
def test_progress_and_tokens_are_shown_on_the_node(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils
    from faulty_ollama import Reply
    from server import PromptServer

    ollama.always("chat", Reply(token_s=0.12))
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "17"}))
    steps: list[tuple[int, int, str]] = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: steps.append((value, total, node_id))
    )
    PromptServer.instance.sent_texts.clear()
    try:
        execute(node, image(batch=2))
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert {(total, id) for _, total, id in steps} == {(400, "17")}, "two stages of two images"
    values = [value for value, _, _ in steps]
    assert values == sorted(values) and {0, 100, 200, 300, 400} <= {*values}
    assert set(values) & set(range(201, 300)), "tokens move the bar"
    shown = [text for id, text in PromptServer.instance.sent_texts if id == "17"]
    assert any("A red circle" in text and "white background." not in text for text in shown)
    assert any(text.startswith("rewrite with llama3.2: 2 of 2  \n") for text in shown)
    assert re.fullmatch(r"described and rewrote 2 images in \d+\.\d s\.", shown[-1])


def test_a_second_try_and_a_cut_answer_are_said_on_the_node(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    ollama.script("chat", "busy")
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "18"}))
    PromptServer.instance.sent_texts.clear()
    cut = StageOptions(model_options={"num_predict": 3})
    _, descriptions, _ = execute(node, image(), user_instructions="", vision_options=cut)
    assert descriptions == ["A red circle"]
    shown = [text for id, text in PromptServer.instance.sent_texts if id == "18"]
    assert "describe with llava: the server is busy, trying again in 0.5 s" in shown
    assert any("The answer was cut at num_predict." in text for text in shown)
    cut_first = execute(node, image(), vision_options=cut) and PromptServer.instance.sent_texts[-1]
    assert (
        cut_first[1].splitlines()[1]
        == "The answer was cut at num_predict. Raise it in Ollama Options."
    )


def test_without_instructions_the_node_does_not_say_that_it_rewrote(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "19"}))
    ollama.script("chat", "empty")
    execute(node, image(batch=3), user_instructions="")
    last = PromptServer.instance.sent_texts[-1][1].splitlines()[0]
    assert last.startswith("described 2 of 3 images in ")
