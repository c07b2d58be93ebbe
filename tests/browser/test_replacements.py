"""Workflow files of basify and comfyui-ollama V1: the page swaps their nodes, and they run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

FIRST_WITH_REPLACEMENTS = (0, 14)
LOAD = "async (graph) => { await app.loadGraphData(graph); }"
SAVE = "() => app.graph.serialize()"
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
SENT = "async () => (await app.graphToPrompt()).output"
ADDRESS = "http://192.0.2.1:11434"
PHOTO = "moved.png"


def graph(nodes: list[dict[str, Any]], links: list[list[Any]]) -> dict[str, Any]:
    """A workflow file, with sizes as the old packs' nodes have them."""
    for order, entry in enumerate(nodes):
        entry |= {"flags": {}, "order": order, "mode": 0}
        entry["properties"] = {"Node name for S&R": entry["type"]}
    return {
        "last_node_id": max(entry["id"] for entry in nodes),
        "last_link_id": max(link[0] for link in links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def put(name: str, kind: str, link: int | None) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link}


def out(name: str, kind: str, *links: int) -> dict[str, Any]:
    return {"name": name, "type": kind, "links": list(links)}


def load_image(*links: int) -> dict[str, Any]:
    return {
        "id": 1, "type": "LoadImage", "pos": [40, 130], "size": [320, 340], "inputs": [],
        "outputs": [out("IMAGE", "IMAGE", *links), out("MASK", "MASK")],
        "widgets_values": [PHOTO, "image"],
    }  # fmt: skip


def preview(id: int, link: int, pos: list[int]) -> dict[str, Any]:
    return {
        "id": id, "type": "PreviewAny", "pos": pos, "size": [300, 180],
        "inputs": [put("source", "*", link)], "outputs": [out("STRING", "STRING")],
        "widgets_values": [],
    }  # fmt: skip


def ollama_v1() -> dict[str, Any]:
    """An image is described, the description rewritten, and the rewrite turned into a title.

    The second model's memory goes on to the third node, as comfyui-ollama's own example has it.
    """
    vision = {
        "id": 2, "type": "OllamaVision", "pos": [420, 130], "size": [400, 240],
        "inputs": [put("images", "IMAGE", 1)],
        "outputs": [out("description", "STRING", 2, 3)],
        "widgets_values": [
            "describe the image shortly", "enable", ADDRESS, "llava:latest", -1, "text", 123,
            "randomize",
        ],
    }  # fmt: skip
    advance = {
        "id": 3, "type": "OllamaGenerateAdvance", "pos": [880, 130], "size": [485, 434],
        "inputs": [
            put("prompt", "STRING", 2) | {"widget": {"name": "prompt"}},
            put("context", "STRING", None),
        ],
        "outputs": [out("response", "STRING", 4), out("context", "STRING", 6)],
        "widgets_values": [
            "What is Art?", False, ADDRESS, "llama3.2:latest", "Make it a prompt.", 456, "fixed",
            33, 0.65, 0.25, 128, 1, 5, False, "text", True,
        ],
    }  # fmt: skip
    titles = {
        "id": 4, "type": "OllamaGenerateAdvance", "pos": [1440, 130], "size": [485, 434],
        "inputs": [put("context", "STRING", 6)],
        "outputs": [out("response", "STRING", 5), out("context", "STRING")],
        "widgets_values": [
            "A title, please.", False, ADDRESS, "llama3.2:latest", "", 789, "fixed", 40, 0.9, 0.8,
            128, 1, 5, False, "text", True,
        ],
    }  # fmt: skip
    plain = {
        "id": 5, "type": "OllamaGenerate", "pos": [1440, 660], "size": [402, 240],
        "inputs": [], "outputs": [out("response", "STRING", 7)],
        "widgets_values": [
            "What is Art?", "enable", ADDRESS, "llama3.2:latest", 5, "text", True,
        ],
    }  # fmt: skip
    return graph(
        [
            load_image(1), vision, advance, titles, plain,
            preview(6, 3, [420, 660]), preview(7, 4, [880, 660]), preview(8, 5, [2000, 130]),
            preview(9, 7, [2000, 660]),
        ],
        [
            [1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "STRING"], [3, 2, 0, 6, 0, "STRING"],
            [4, 3, 0, 7, 0, "STRING"], [5, 4, 0, 8, 0, "STRING"], [6, 3, 1, 4, 0, "STRING"],
            [7, 5, 0, 9, 0, "STRING"],
        ],
    )  # fmt: skip


def basify() -> dict[str, Any]:
    """Both nodes that describe, a text with wildcards for one of them, and texts shown."""
    wildcards = {
        "id": 2, "type": "BasifyWildcardProcessor", "pos": [40, 540], "size": [320, 260],
        "inputs": [put("clip", "CLIP", None)],
        "outputs": [
            out("processed_text", "STRING", 2), out("original_text", "STRING"),
            out("conditioning", "CONDITIONING"),
        ],
        "widgets_values": [
            "# a note\nMake it {vivid|vivid}.", "", True, "/AI/wildcards", False, False,
        ],
    }  # fmt: skip
    refine = {
        "id": 3, "type": "BasifyImageRefine", "pos": [420, 130], "size": [400, 460],
        "inputs": [
            put("image", "IMAGE", 1),
            put("text_instructions", "STRING", 2) | {"widget": {"name": "text_instructions"}},
        ],
        "outputs": [
            out("image", "IMAGE", 3), out("description", "STRING", 4),
            out("refined_output", "STRING", 5),
        ],
        "widgets_values": [
            "llava:latest", "List the shapes.", "llama3.2:latest", "Unused.", 0.05, 0.6, 11, 1.5,
            -1, 2, 0.7, 22,
        ],
    }  # fmt: skip
    describe = {
        "id": 4, "type": "BasifyDescribeImage", "pos": [880, 130], "size": [320, 200],
        "inputs": [put("image", "IMAGE", 3)],
        "outputs": [out("image", "IMAGE"), out("description", "STRING", 6)],
        "widgets_values": ["llava:latest", f"{ADDRESS}/api/generate", 0.45, 90],
    }  # fmt: skip
    shown = {
        "id": 5, "type": "BasifyDisplayAnythingAsText", "pos": [880, 540], "size": [320, 200],
        "inputs": [put("value", "*", 5)], "outputs": [out("value", "*", 7)],
        "widgets_values": ["An old text."],
    }  # fmt: skip
    return graph(
        [
            load_image(1), wildcards, refine, describe, shown,
            preview(6, 4, [1300, 540]), preview(7, 6, [1300, 130]), preview(8, 7, [1300, 800]),
        ],
        [
            [1, 1, 0, 3, 0, "IMAGE"], [2, 2, 0, 3, 1, "STRING"], [3, 3, 0, 4, 0, "IMAGE"],
            [4, 3, 1, 6, 0, "STRING"], [5, 3, 2, 5, 0, "STRING"], [6, 4, 1, 7, 0, "STRING"],
            [7, 5, 0, 8, 0, "*"],
        ],
    )  # fmt: skip


def picture(page: Any, name: str) -> None:
    """Leave a screenshot where SCREENSHOTS says."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(700)
        page.screenshot(path=Path(folder) / f"{name}.png")


TEXTS = """() => [...document.querySelectorAll("textarea")]
  .filter((box) => box.checkVisibility()).map((box) => box.value)"""


@pytest.fixture
def swapping(page: Any, comfyui: Any, scripted: FaultyOllama) -> Any:
    """The page, where it can swap nodes, with an image and models for the workflows above."""
    from faulty_ollama import text_model, vision_model

    if comfyui.found.version < FIRST_WITH_REPLACEMENTS:
        pytest.skip("this ComfyUI cannot replace nodes")
    for model in (vision_model(answer="A red square."), text_model(answer="A crimson square.")):
        scripted.models[model.key] = model
    comfyui.save_input(Image.new("RGB", (96, 64), "red"), PHOTO)
    return page


def swap(page: Any, made: dict[str, Any], name: str) -> tuple[str, dict[int, dict[str, Any]]]:
    """Open a file, press what a user presses, and return what was offered and what came of it."""
    page.evaluate(LOAD, made)
    page.get_by_role("button", name="View details").click()
    offer = page.get_by_test_id("error-group-swap-nodes")
    offer.wait_for()
    offered = offer.inner_text()
    picture(page, f"{name}-offered")
    offer.get_by_role("button", name="Replace All").click()
    offer.wait_for(state="hidden")
    page.wait_for_timeout(500)
    picture(page, f"{name}-swapped")
    return offered, {entry["id"]: entry for entry in page.evaluate(SAVE)["nodes"]}


def sent_by(page: Any) -> dict[str, dict[str, Any]]:
    return {id: entry["inputs"] for id, entry in page.evaluate(SENT).items()}


def run(page: Any, comfyui: Any) -> dict[str, Any]:
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    ended = comfyui.new_run(before)
    assert ended["status"]["status_str"] == "success"
    return ended["outputs"]


def test_a_workflow_of_comfyui_ollama_is_swapped_and_runs(
    swapping: Any, comfyui: Any, scripted: FaultyOllama, renderer: str
) -> None:
    page = swapping
    offered, nodes = swap(page, ollama_v1(), f"ollama-{renderer}")
    for old in ("OllamaVision", "OllamaGenerate", "OllamaGenerateAdvance"):
        assert old in offered
    assert {nodes[id]["type"] for id in (3, 4, 5)} == {"RefineryOllamaProcess"}
    assert nodes[2]["type"] == "RefineryLLMDescribe"
    sent = sent_by(page)
    expected = {
        "2": {
            "image": ["1", 0], "vision_model": "llava:latest",
            "custom_vision_prompt": "describe the image shortly", "seed": 123, "temperature": 0.8,
            "top_p": 0.9, "batch_mode": "one text for all images", "keep_loaded_minutes": 0,
            "on_error": "stop the workflow", "server": "default",
        },
        "3": {
            "text": ["2", 1], "instructions": "Make it a prompt.", "text_model": "llama3.2:latest",
            "seed": 456, "top_k": 33, "top_p": 0.65, "temperature": 0.25, "clean_output": False,
            "on_error": "stop the workflow", "keep_loaded_minutes": 0, "server": "default",
        },
        "4": {"text": "A title, please.", "instructions": "", "seed": 789, "top_k": 40},
        "5": {"text": "What is Art?", "instructions": "", "temperature": 0.8, "top_p": 0.9},
        "6": {"source": ["2", 1]},
        "7": {"source": ["3", 0]},
    }  # fmt: skip
    for id, values in expected.items():
        assert values.items() <= sent[id].items(), id
    assert ADDRESS not in str(page.evaluate(SAVE))
    visible = page.evaluate(TEXTS)
    assert {"describe the image shortly", "Make it a prompt.", "What is Art?"} <= set(visible)
    outputs = run(page, comfyui)
    if renderer == "classic":  # later runs of the same graph come from ComfyUI's cache
        assert outputs["7"]["text"] == ["A crimson square."]
        assert {request.model for request in scripted.of("chat")} == {
            "llava:latest",
            "llama3.2:latest",
        }
    picture(page, f"ollama-{renderer}-run")
    # The link between the old nodes' memories has no ends now: it must do no harm when reopened.
    page.evaluate(LOAD, page.evaluate(SAVE))
    page.wait_for_timeout(800)
    assert sent_by(page) == sent
    run(page, comfyui)


def test_a_workflow_of_basify_is_swapped_and_runs(
    swapping: Any, comfyui: Any, renderer: str
) -> None:
    page = swapping
    offered, nodes = swap(page, basify(), f"basify-{renderer}")
    swapped = {
        2: ("BasifyWildcardProcessor", "RefineryWildcardProcessor"),
        3: ("BasifyImageRefine", "RefineryLLMImageRefine"),
        4: ("BasifyDescribeImage", "RefineryLLMDescribe"),
        5: ("BasifyDisplayAnythingAsText", "RefineryDisplayAnything"),
    }
    for id, (old, new) in swapped.items():
        assert old in offered and new in offered
        assert nodes[id]["type"] == new
    sent = sent_by(page)
    expected = {
        "2": {"text": "# a note\nMake it {vivid|vivid}.", "strip_comments": True},
        "3": {
            "image": ["1", 0], "vision_model": "llava:latest", "text_model": "llama3.2:latest",
            "custom_vision_prompt": "List the shapes.", "user_instructions": ["2", 0],
            "vision_temperature": 0.05, "vision_top_p": 0.6, "vision_top_k": 11,
            "text_temperature": 1.5, "text_presence_penalty": -1, "text_frequency_penalty": 2,
            "text_top_p": 0.7, "text_top_k": 22, "clean_output": False,
        },
        "4": {
            "image": ["3", 0], "vision_model": "llava:latest", "temperature": 0.45, "top_p": 0.9,
            "custom_vision_prompt": "Describe this image in detail, in one sentence.",
        },
        "5": {"value": ["3", 2], "hold": False, "held_text": ""},
        "6": {"source": ["3", 1]},
        "7": {"source": ["4", 1]},
        "8": {"source": ["5", 0]},
    }  # fmt: skip
    for id, values in expected.items():
        assert values.items() <= sent[id].items(), id
    assert "randomize" in nodes[2]["widgets_values"]
    assert ADDRESS not in str(page.evaluate(SAVE))
    assert {"List the shapes.", "# a note\nMake it {vivid|vivid}."} <= set(page.evaluate(TEXTS))
    outputs = run(page, comfyui)
    assert outputs["5"]["text"] == ["A crimson square."]
    picture(page, f"basify-{renderer}-run")
