"""The companion nodes in a real ComfyUI: lists, lazy inputs, files, and what graphs give."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from faulty_ollama import FaultyOllama, text_model, vision_model
from host import ComfyHost, Graph, Refused, Run, node
from PIL import Image

COUNT = itertools.count()
IDS = [
    *("RefineryLLMDescribe", "RefineryOllamaProcess", "RefineryOllamaOptions"),
    *("RefineryReadyInstructions", "RefineryWildcardProcessor", "RefineryDisplayAnything"),
    *("RefineryFreeMemory", "RefineryLoadFolder", "RefinerySaveCaption"),
    *("RefineryTextToFilename", "RefineryCheckSetup", "RefineryCaptionFolder"),
    "RefineryRefineFolder",
    "RefineryDescribeTiles",
]


@pytest.fixture
def folder(comfyui: ComfyHost) -> str:
    """A new folder of the input folder with pictures of two sizes, and one that is damaged."""
    name = f"set{next(COUNT)}"
    place = comfyui.base / "input" / name
    place.mkdir()
    for file, size in (("10.png", (60, 40)), ("2.png", (40, 60)), ("1.png", (30, 30))):
        Image.new("RGB", size, (next(COUNT) % 256, 90, 120)).save(place / file)
    (place / "1.png").write_bytes(b"no picture")
    return name


def ran(host: ComfyHost, graph: Graph) -> Run:
    run = host.run(graph)
    assert run.ok, run.error
    return run


def display(source: list[Any], **inputs: Any) -> dict[str, Any]:
    return node("RefineryDisplayAnything", **({"hold": False, "held_text": ""} | inputs),
                value=source)  # fmt: skip


@pytest.mark.parametrize("node_id", IDS)
def test_the_host_knows_each_node_with_all_its_tooltips(comfyui: ComfyHost, node_id: str) -> None:
    info = comfyui.object_info(node_id)
    given = info["input"].get("required", {}) | info["input"].get("optional", {})
    assert [name for name, (_, options) in given.items() if not options.get("tooltip")] == []
    assert all(info["output_tooltips"]) and info["description"]
    assert info["category"].startswith("Image Refinery/")


def test_a_folder_is_described_and_captioned(
    comfyui: ComfyHost, ollama: FaultyOllama, folder: str
) -> None:
    ollama.models["llava:latest"] = vision_model(answer=lambda r: f"size {r.image_sizes[0]}")
    run = ran(comfyui, {
        "1": node("RefineryLoadFolder", folder=folder),
        "2": node("RefineryLLMDescribe", image=["1", 0], vision_model="llava"),
        "3": node("RefinerySaveCaption", name=["1", 1], text=["2", 1], place="input",
                  prefix="ohwx, "),
        "4": display(["1", 0]),
    })  # fmt: skip
    place = comfyui.base / "input" / folder
    assert (place / "2.txt").read_text() == "ohwx, size (40, 60)"
    assert (place / "10.txt").read_text() == "ohwx, size (60, 40)"
    assert ollama.loads == {"llava:latest": 1}
    shown = run.outputs["4"]
    assert "[1 of 2] Tensor 1 x 60 x 40 x 3" in shown["text"][0] and len(shown["images"]) == 2


def test_a_text_is_processed_and_named(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    ollama.models["llama3.2:latest"] = text_model(answer="A ball: {red|red} / snow")
    picture = comfyui.save_input(Image.new("RGB", (20, 20), (1, 2, next(COUNT))))
    run = ran(comfyui, {
        "1": node("RefineryReadyInstructions", pick="Tag list", text=""),
        "2": node("RefineryOllamaProcess", text="Ein Ball", instructions=["1", 0],
                  text_model="llama3.2", seed=next(COUNT)),
        "3": node("RefineryWildcardProcessor", text=["2", 0], seed=1),
        "4": node("RefineryTextToFilename", text=["3", 0]),
        "5": node("LoadImage", image=picture),
        "6": node("SaveImage", images=["5", 0], filename_prefix=["4", 0]),
        "7": display(["3", 0]),
    })  # fmt: skip
    assert run.texts("7") == ["A ball: red / snow"]
    (saved,) = comfyui.saved(run, "6")
    assert saved.name.startswith("A ball red snow_") and saved.is_file()
    asked = next(r for r in ollama.requests if r.kind == "chat").body["messages"][-1]["content"]
    assert "tags separated by commas" in asked


def test_a_preset_s_options_reach_the_server_below_those_that_are_connected(
    comfyui: ComfyHost, ollama: FaultyOllama
) -> None:
    ran(comfyui, {
        "1": node("RefineryOllamaOptions", num_predict=-1, num_ctx=8192, format=""),
        "2": node("RefineryReadyInstructions", pick="Tag list as JSON", text="Tags.",
                  options=["1", 0]),
        "3": node("RefineryOllamaProcess", text="A ball", instructions=["2", 0],
                  options=["2", 1], text_model="llama3.2", seed=next(COUNT)),
        "4": display(["3", 0]),
    })  # fmt: skip
    body = next(r for r in ollama.requests if r.kind == "chat").body
    assert body["messages"][-1]["content"].endswith("Instructions: Tags.")
    assert body["options"]["num_predict"] == 900 and body["options"]["num_ctx"] == 8192
    assert body["format"]["required"] == ["tags"]


def test_nothing_runs_before_a_text_that_is_held(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    graph = {
        "1": node("RefineryOllamaProcess", text="x", instructions="y", text_model="llama3.2",
                  seed=next(COUNT)),
        "2": display(["1", 0], hold=True, held_text="mine"),
        "3": display(["2", 1]),
    }  # fmt: skip
    run = ran(comfyui, graph)
    assert run.texts("3") == ["mine"] and "1" not in run.order
    assert not [r for r in ollama.requests if r.kind in ("load", "chat")]
    graph["2"]["inputs"]["hold"] = False
    assert ran(comfyui, graph).texts("3") == ["A crimson disc floats on snow."]


def test_an_error_is_shown_and_no_caption(
    comfyui: ComfyHost, ollama: FaultyOllama, folder: str
) -> None:
    ollama.always("chat", "oom")
    run = ran(comfyui, {
        "1": node("RefineryLoadFolder", folder=folder, limit=2),
        "2": node("RefineryLLMDescribe", image=["1", 0], vision_model="llava"),
        "3": node("RefinerySaveCaption", name=["1", 1], text=["2", 1], place="input"),
    })  # fmt: skip
    assert "was not written" in run.texts("3")[0]
    assert not list((comfyui.base / "input" / folder).glob("*.txt"))


def test_free_memory_passes_a_value_on(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    picture = comfyui.save_input(Image.new("RGB", (20, 20), (7, 7, next(COUNT))))
    run = ran(comfyui, {
        "1": node("LoadImage", image=picture),
        "2": node("RefineryFreeMemory", value=["1", 0], comfyui_models=True, cuda_cache=True,
                  ollama_models=True),
        "3": display(["2", 0]),
    })  # fmt: skip
    assert "Ollama had no models loaded" in run.texts("2")
    assert "Tensor 1 x 20 x 20 x 3" in run.texts("3")[0]


def test_an_edited_wildcard_file_is_read_again(comfyui: ComfyHost) -> None:
    place = comfyui.base / "user" / "image-refinery" / "wildcards"
    place.mkdir(parents=True, exist_ok=True)
    graph = {
        "1": node("RefineryWildcardProcessor", text="__mine__ __nowhere__", seed=0),
        "2": display(["1", 0]),
    }
    for word in ("first", "second"):
        (place / "mine.txt").write_text(word)
        assert ran(comfyui, graph).texts("2") == [f"{word} __nowhere__"]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (node("RefineryLoadFolder", folder="../.."), "cannot be used"),
        (node("RefineryLoadFolder", folder="not here"), "There is no folder"),
    ],
)
def test_a_bad_folder_queues_and_ends_in_one_sentence(
    comfyui: ComfyHost, broken: dict[str, Any], words: str
) -> None:
    run = comfyui.run({"1": broken, "2": display(["1", 0])})
    assert words in run.error["exception_message"]


def test_a_bad_schema_ends_before_any_request(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    run = comfyui.run({
        "1": node("RefineryOllamaOptions", format='{"type": "objekt"}'),
        "2": node("RefineryOllamaProcess", text="x", instructions="y", text_model="llama3.2",
                  options=["1", 0]),
        "3": display(["2", 0]),
    })  # fmt: skip
    assert 'format: type is "objekt"' in run.error["exception_message"]
    assert not [r for r in ollama.requests if r.kind in ("load", "chat")]


def test_a_place_that_does_not_exist_is_never_written_to(comfyui: ComfyHost) -> None:
    caption = node("RefinerySaveCaption", name="a.png", text="x", place="root")
    try:
        run = comfyui.run({"1": caption})
    except Refused as refused:  # newer hosts look at lists before a run
        assert "value_not_in_list" in str(refused)
    else:
        assert 'save to is "root"' in run.error["exception_message"]
    assert not list(comfyui.base.rglob("a.txt"))


def test_help_pages_are_served(comfyui: ComfyHost) -> None:
    from host import PACK_FOLDER

    for node_id in IDS:
        page = comfyui.get_text(f"/extensions/{PACK_FOLDER}/docs/{node_id}.md")
        assert page.startswith("# ") and len(page) > 300
    assert Path(comfyui.pack_folder, "web", "docs").is_dir()
