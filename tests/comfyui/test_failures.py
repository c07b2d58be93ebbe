"""A failure in one node of a graph costs that node alone."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from faulty_ollama import FaultyOllama, vision_model
from host import ComfyHost, Graph, Refused, node
from PIL import Image

WEIGHTS = Path(__file__).resolve().parents[2] / "tools" / "tiny_refiner" / "weights"
COUNT = itertools.count()


@pytest.fixture
def graph(comfyui: ComfyHost) -> Graph:
    """Two LLM nodes of different models and a refiner, each shown, on an image of their own."""
    checkpoints = comfyui.base / "models" / "checkpoints"
    shutil.copytree(WEIGHTS, checkpoints, dirs_exist_ok=True)
    image = comfyui.save_input(Image.new("RGB", (64, 48), (next(COUNT) % 256, 140, 90)))

    def describe(model: str) -> dict[str, object]:
        return node(
            "RefineryLLMDescribe",
            image=["1", 0],
            vision_model=model,
            custom_vision_prompt="",
            on_error="output error text",
        )

    return {
        "1": node("LoadImage", image=image),
        "2": describe("llava"),
        "3": describe("bakllava"),
        "4": node(
            "RefinerySDXLRefiner",
            image=["1", 0],
            checkpoint="tiny_refiner.safetensors",
            prompt="",
            negative_prompt="",
            strength=0.3,
            num_inference_steps=20,
            guidance_scale=7.5,
            seed=0,
            working_size="keep size",
        ),
        "12": node("PreviewAny", source=["2", 0]),
        "13": node("PreviewAny", source=["3", 1]),
        "14": node("SaveImage", images=["4", 0], filename_prefix="failures"),
    }


def test_one_failing_node_runs_again_alone_and_so_it_does_when_it_works(
    comfyui: ComfyHost, ollama: FaultyOllama, graph: Graph
) -> None:
    first = comfyui.run(graph, timeout_s=300)
    assert first.ok, first.error["exception_message"]
    assert first.texts("13")[0].startswith("Error: ")

    again = comfyui.run(graph)
    assert again.ok, again.error
    assert {"1", "2", "4"} <= set(again.cached)
    assert again.order == ["3", "13"], "the failed node, and what shows its text"
    assert len(ollama.of("chat")) == 1, "llava was asked in the first run only"

    ollama.models["bakllava:latest"] = vision_model("bakllava", answer="A plain field.")
    works = comfyui.run(graph)
    assert works.order == ["3", "13"]
    assert works.texts("13") == ["A plain field."]

    kept = comfyui.run(graph)
    assert kept.order == []


def test_a_missing_input_is_named_by_comfyui(
    comfyui: ComfyHost, ollama: FaultyOllama, graph: Graph
) -> None:
    del graph["2"]["inputs"]["vision_model"]
    graph = {id: graph[id] for id in ("1", "2", "12")}
    with pytest.raises(Refused) as refused:
        comfyui.queue(graph)
    (error,) = refused.value.answer["node_errors"]["2"]["errors"]
    assert (error["type"], error["details"]) == ("required_input_missing", "vision_model")


def test_nothing_linked_is_shown_and_ends_no_run(comfyui: ComfyHost) -> None:
    """Bypassing the node before Display Anything takes its link away."""
    image = comfyui.save_input(Image.new("RGB", (8, 8), (next(COUNT) % 256, 1, 2)))
    run = comfyui.run({
        "1": node("LoadImage", image=image),
        "2": node("PreviewImage", images=["1", 0]),
        "3": node("RefineryDisplayAnything", hold=False, held_text=""),
        "4": node("PreviewAny", source=["3", 1]),
    })  # fmt: skip
    assert run.ok, run.error
    (shown,) = run.of("progress_text", node="3")
    assert shown.data["text"] == "Nothing is connected to value."
    assert run.texts("4") == [""]


def test_save_captions_own_refusal_comes_before_the_model_runs(
    comfyui: ComfyHost, ollama: FaultyOllama, graph: Graph
) -> None:
    describe = {id: graph[id] for id in ("1", "2")}
    caption = node("RefinerySaveCaption", name="", text=["2", 1], place="input")
    with pytest.raises(Refused, match="name is empty"):
        comfyui.queue(describe | {"3": caption})
    caption["inputs"]["name"] = "/data/one.png"
    run = comfyui.run(describe | {"3": caption})
    assert run.error["node_id"] == "3" and "cannot be used" in run.error["exception_message"]
    assert [event.data["text"][:7] for event in run.of("progress_text", node="3")] == ["Error: "]
    assert ollama.of("chat") == []
