"""The workflow in a PNG: saved by each template, dropped on a new page, and compared."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
REFINER = "sd_xl_refiner_1.0"
WEIGHTS = {"CheckpointLoaderSimple", "UNETLoader", "RefinerySDXLRefiner", "RefineryRefineFolder"}
REFINED = "Refine an image"
"""The one that runs with the tiny refiner: a minute of a CPU each is enough."""

READY = """() => window.app?.graph && window.app.extensionManager
  && window.LiteGraph?.registered_node_types?.RefineryLLMImageRefine"""
OPEN = """async ([graph, name]) => {
  await app.loadGraphData(graph, true, true, name, {openSource: "template"}); }"""
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
SENT = "async () => (await app.graphToPrompt()).workflow"
OPENED = "() => (app.rootGraph ?? app.graph).serialize()"
# On the canvas's right edge: a file on Load Image would become its image.
DROP = """async (data) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "saved.png", {type: "image/png"}));
  const canvas = app.canvas.canvas;
  const {right, bottom} = canvas.getBoundingClientRect();
  const at = {clientX: right - 5, clientY: bottom - 5};
  for (const kind of ["dragenter", "dragover", "drop"]) {
    canvas.dispatchEvent(
      new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true, ...at}));
  }
}"""
HAS = "(count) => app.graph.nodes.length === count"


@pytest.fixture(scope="module")
def browser(chromium: Any) -> Iterator[Any]:
    """A browser that forgets everything but ComfyUI's own files."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script("localStorage.clear()")
    yield context
    context.close()


@pytest.fixture
def new_page(browser: Any, comfyui: Any) -> Iterator[Callable[[], Any]]:
    """Opens a page that knows nothing of those before."""
    pages: list[Any] = []

    def open_page() -> Any:
        for page in pages:
            page.close()
        pages[:] = [page := browser.new_page()]
        page.goto(comfyui.url)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(1500)  # the page opens its own first workflow
        return page

    yield open_page
    for page in pages:
        page.close()


def prepare(comfyui: Any, server: FaultyOllama) -> None:
    """Everything that a template without large weights needs: its image, texts, a refiner."""
    from faulty_ollama import text_model, vision_model

    server.models = {
        "llava:latest": vision_model(answer="A raccoon between green leaves."),
        "llama3.2:latest": text_model(answer="a curious raccoon, green leaves"),
    }
    photo = Image.open(ROOT / "examples" / "photo.jpg").convert("RGB").resize((256, 256))
    (comfyui.base / "input" / "my images").mkdir(exist_ok=True)
    for file in ("example.png", "my images/example.png"):
        comfyui.save_input(photo, file)
    weights, checkpoints = ROOT / "tools/tiny_refiner/weights", comfyui.base / "models/checkpoints"
    shutil.copytree(weights / "tiny_refiner", checkpoints / REFINER, dirs_exist_ok=True)
    shutil.copy2(weights / "tiny_refiner.safetensors", checkpoints / f"{REFINER}.safetensors")


def runs(comfyui: Any, graph: dict[str, Any]) -> bool:
    """Whether this ComfyUI has all nodes, and the files that they load."""
    inner = (graph.get("definitions") or {}).get("subgraphs", [])
    types = {node["type"] for one in (graph, *inner) for node in one["nodes"]}
    known = {*comfyui.object_info(), "MarkdownNote", *(one["id"] for one in inner)}
    return types <= known and not types & WEIGHTS


def saved_by_run(page: Any, comfyui: Any, name: str) -> bytes | None:
    """Run what the page shows; return the PNG that its Save Image wrote, if it has one."""
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    run = comfyui.new_run(before, timeout_s=300)
    status = run["status"]
    assert status["status_str"] == "success", (name, status["messages"][-1])
    page.wait_for_timeout(1000)
    for output in run["outputs"].values():
        for one in output.get("images", ()):
            if one["type"] == "output" and one["filename"].endswith(".png"):
                return (comfyui.base / "output" / one["subfolder"] / one["filename"]).read_bytes()
    return None


def saved_with(comfyui: Any, workflow: dict[str, Any]) -> bytes:
    """Return a PNG by Save Image with what the page sends along with a run."""
    prompt = {
        "1": {"class_type": "EmptyImage",
              "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": len(str(workflow))}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "own"}},
    }  # fmt: skip
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    answer = comfyui.post("/prompt", body)
    answer.raise_for_status()
    run = comfyui.wait(answer.json()["prompt_id"])
    (image,) = run["outputs"]["2"]["images"]
    return (comfyui.base / "output" / image["filename"]).read_bytes()


def content(graph: dict[str, Any]) -> dict[str, Any]:
    """What a reader of a workflow has: nodes, values, links, groups, titles, and the app."""
    inner = (graph.get("definitions") or {}).get("subgraphs", [])
    names = {one["id"]: one["name"] for one in inner}
    return {
        "nodes": [nodes_of(one, names) for one in (graph, *by_name(inner))],
        "links": [links_of(one) for one in (graph, *by_name(inner))],
        "groups": sorted((one["title"], tuple(one["bounding"])) for one in graph["groups"]),
        "app": graph["extra"].get("linearData"),
    }


def by_name(subgraphs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(subgraphs, key=lambda one: one["name"])


def nodes_of(graph: dict[str, Any], names: dict[str, str]) -> dict[int, Any]:
    return {
        node["id"]: {
            "type": node["type"],
            "title": node.get("title") or names.get(node["type"]),
            "values": node.get("widgets_values") or [],
            "size": [*map(round, node["size"])],
            "pos": [*map(round, node["pos"])],
        }
        for node in graph["nodes"]
    }


def links_of(graph: dict[str, Any]) -> list[Any]:
    ends = ("origin_id", "origin_slot", "target_id", "target_slot", "type")
    if isinstance(graph["links"][0], dict):
        return sorted(str([link[end] for end in ends]) for link in graph["links"])
    return sorted(str(link[1:]) for link in graph["links"])


def differences(template: dict[str, Any], back: dict[str, Any]) -> list[str]:
    """One line for each thing that is not as in the template."""
    ours, theirs = content(template), content(back)
    found = [f"{key}: {theirs[key]}" for key in ("links", "groups", "app")
             if theirs[key] != ours[key]]  # fmt: skip
    for before, after in zip(ours["nodes"], theirs["nodes"], strict=True):
        if before.keys() != after.keys():
            found.append(f"nodes {sorted(after)} for {sorted(before)}")
            continue
        for id, node in before.items():
            # A page adds values of its own behind ours: a 3D viewer's, or its live text.
            after[id]["values"] = after[id]["values"][: len(node["values"])]
            if before[id]["size"][1] == 0:  # a collapsed node's, which the page fills in
                after[id]["size"] = node["size"]
            if node["title"] is None:  # the page then writes the type's own
                after[id]["title"] = None
            found += [
                f"{node['type']} {key}: {after[id][key]} for {node[key]}"
                for key in node
                if after[id][key] != node[key]
            ]
    return found


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_a_template_comes_back_from_its_image(
    new_page: Callable[[], Any], comfyui: Any, scripted: FaultyOllama, file: Path
) -> None:
    prepare(comfyui, scripted)
    template = json.loads(file.read_text(encoding="utf-8"))
    page = new_page()
    page.evaluate(OPEN, [template, file.stem])
    page.wait_for_function(HAS, arg=len(template["nodes"]))
    page.wait_for_timeout(1000)
    run = file.stem == REFINED or runs(comfyui, template)
    image = saved_by_run(page, comfyui, file.stem) if run else None
    if image is None:  # after a run the page holds its texts, and must not save them
        image = saved_with(comfyui, page.evaluate(SENT))

    page = new_page()
    page.evaluate(DROP, base64.b64encode(image).decode())
    page.wait_for_function(HAS, arg=len(template["nodes"]))
    page.wait_for_timeout(1000)
    assert differences(template, page.evaluate(OPENED)) == []
