"""Inputs of all nodes: advanced ones, labels, and values of old workflows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

MAX_VISIBLE_WIDGETS = 9
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
RENAMED = [
    ("batch_mode", "each image", "one text per image"),
    ("batch_mode", "all images in one question", "one text for all images"),
    ("on_error", "give the message", "output error text"),
    ("on_error", "pass the image on", "return original image"),
    ("working_size", "as it is", "keep size"),
]


@pytest.fixture
def nodes(comfy: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every node of the pack by its id."""
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")  # nobody is asked for models
    from image_refinery.nodes import ImageRefineryExtension

    listed = asyncio.run(ImageRefineryExtension().get_node_list())
    return {node.define_schema().node_id: node for node in listed}


def visible_widgets(node: Any) -> list[str]:
    """What Nodes 2.0 shows while advanced inputs are hidden."""
    shown: list[str] = []
    for one in node.define_schema().inputs:
        settings = one.as_dict()
        hidden = settings.get("advanced") or settings.get("forceInput")
        if WIDGETS & set(one.get_io_type().split(",")) and not hidden:
            shown.append(one.id)
            if settings.get("control_after_generate"):
                shown.append("control_after_generate")
    return shown


def test_a_node_shows_at_most_nine_widgets(nodes: dict[str, Any]) -> None:
    counts = {name: len(visible_widgets(node)) for name, node in nodes.items()}
    assert {name: n for name, n in counts.items() if n > MAX_VISIBLE_WIDGETS} == {}
    assert counts["RefineryLLMImageRefine"] == counts["RefinerySDXLRefiner"] == 9


def test_what_most_runs_need_is_visible(nodes: dict[str, Any]) -> None:
    assert visible_widgets(nodes["RefineryLLMImageRefine"]) == [
        *("vision_model", "text_model", "user_instructions", "custom_vision_prompt"),
        *("vision_temperature", "text_temperature", "seed", "control_after_generate"),
        "batch_mode",
    ]
    assert visible_widgets(nodes["RefinerySDXLRefiner"]) == [
        *("checkpoint", "prompt", "negative_prompt", "strength", "num_inference_steps"),
        *("guidance_scale", "seed", "control_after_generate", "output_size"),
    ]


def test_labels_are_unique_in_a_node(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        labels = [one.display_name or one.id for one in node.define_schema().inputs]
        assert len(set(labels)) == len(labels), name


@pytest.mark.parametrize(("id", "old", "new"), RENAMED)
def test_old_values_can_be_queued_and_mean_the_new_ones(
    nodes: dict[str, Any], id: str, old: str, new: str
) -> None:
    from image_refinery.nodes import llm_image_refine, refiner_inputs
    from image_refinery.nodes.host import read

    found = 0
    for node in nodes.values():
        options = {one.id: one.as_dict().get("options", ()) for one in node.define_schema().inputs}
        if new in options.get(id, ()):
            assert old not in options[id]
            assert node.validate_inputs(**{id: [old]}) is True
            assert node.validate_inputs(**{id: [None]}) is True, "a linked value"
            found += 1
    assert found
    for inputs in (llm_image_refine.Inputs, refiner_inputs.Inputs):
        options = (
            inputs.__dataclass_fields__[id].metadata["options"]
            if (id in inputs.__dataclass_fields__)
            else ()
        )
        if new in options:
            given, problem = read(inputs, {"image": [], id: [old]})
            assert (getattr(given, id), problem) == (new, None)


def test_other_values_are_refused_before_and_in_a_run(nodes: dict[str, Any]) -> None:
    from image_refinery.nodes.host import read
    from image_refinery.nodes.refiner_inputs import Inputs

    said = 'working_size is "huge", but must be one of "auto", "keep size". (R501)'
    assert nodes["RefinerySDXLRefiner"].validate_inputs(working_size=["huge"]) == said
    given, problem = read(Inputs, {"image": [], "working_size": ["huge"]})
    assert f"{problem} (R501)" == said and given.working_size == "auto"
    _, problem = read(Inputs, {"image": [], "on_error": ["give the message"]})
    assert "on_error" in str(problem), "that was a value of the LLM nodes only"
