"""The blueprints in subgraphs/: found by a search on the page, put there, and run."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(file.stem for file in (ROOT / "subgraphs").glob("*.json"))
FIRST = (0, 33, 0)
COMMAND = "async (id) => { await app.extensionManager.command.execute(id); }"
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
SOURCES_AND_RESULTS = """() => {
  const [blueprint] = app.graph.nodes;
  blueprint.pos = [400, 100];
  const make = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  if (blueprint.inputs.some((input) => input.name === "image")) {
    const image = make("LoadImage", 0, 100);
    image.widgets.find((widget) => widget.name === "image").value = "example.png";
    image.connect(0, blueprint, blueprint.inputs.findIndex((input) => input.name === "image"));
  }
  blueprint.outputs.forEach((output, slot) => {
    const shown = make("RefineryDisplayAnything", 900, 100 + 330 * slot);
    shown.title = output.name;
    blueprint.connect(slot, shown, 0);
  });
  app.canvas.ds.scale = 0.7;
  app.canvas.ds.offset = [150, 50];
}"""
# Load Checkpoint for the blueprint, and in it the mask of an image in place of the detector.
DRAWN_MASK = """([checkpoint, file]) => {
  const [blueprint] = app.graph.nodes;
  const loader = LiteGraph.createNode("CheckpointLoaderSimple");
  loader.pos = [0, 520];
  app.graph.add(loader);
  loader.widgets.find((widget) => widget.name === "ckpt_name").value = checkpoint;
  ["model", "clip", "vae"].forEach((name, slot) => loader.connect(
    slot, blueprint, blueprint.inputs.findIndex((input) => input.name === name)));
  const inner = blueprint.subgraph;
  const of = (type) => inner.nodes.find((node) => node.type === type);
  const set = (node, values) => Object.entries(values).forEach(([name, value]) => {
    node.widgets.find((widget) => widget.name === name).value = value; });
  for (const node of inner.nodes.filter((node) => node.type.includes("MediaPipe"))) {
    inner.remove(node);
  }
  const mask = LiteGraph.createNode("LoadImage");
  inner.add(mask);
  set(mask, {image: file});
  const tiles = of("RefineryDescribeTiles"), refine = of("RefineryRefineWithModel");
  for (const node of [tiles, refine]) {
    mask.connect(1, node, node.inputs.findIndex((input) => input.name === "mask"));
  }
  set(tiles, {tile_size: 256});
  set(refine, {steps: 2});
}"""
SET = """(values) => {
  for (const widget of app.graph.nodes[0].widgets) {
    if (widget.name in values) widget.value = values[widget.name];
  }
}"""
SAVED_RESULT = """() => {
  const save = LiteGraph.createNode("SaveImage");
  save.pos = [1300, 100];
  app.graph.add(save);
  save.widgets.find((widget) => widget.name === "filename_prefix").value = "faces";
  app.graph.nodes[0].connect(0, save, 0);
}"""
SHOWN = """(title) => String(app.graph.nodes.find((node) => node.title === title)
  .widgets.find((widget) => widget.name === "held_text").value)"""


@pytest.fixture
def with_blueprints(page: Any, comfyui: Any) -> Any:
    if comfyui.found.version < FIRST:
        pytest.skip("this ComfyUI lists no blueprints of packs")
    page.wait_for_timeout(6000)  # the page reads ComfyUI's own, and then ours
    return page


def insert(page: Any, name: str) -> None:
    """Search as a user does, and take the hit of that name.

    By its name: ComfyUI 0.33 reads no search aliases from the blueprints of packs.
    """
    page.evaluate("() => app.graph.clear()")
    page.evaluate(COMMAND, "Workspace.SearchBox.Toggle")
    page.wait_for_timeout(800)
    page.keyboard.type(name.lower(), delay=20)
    page.wait_for_timeout(1200)
    screenshot(page, f"search-{name}")
    page.get_by_text(name, exact=True).first.click()
    page.wait_for_function("() => app.graph.nodes.length === 1")
    page.mouse.click(700, 400)
    assert page.evaluate("() => app.graph.nodes[0].title") == name


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"blueprint-{name}.png")


def script(server: FaultyOllama) -> None:
    from faulty_ollama import text_model, vision_model

    server.models = {
        "llava:latest": vision_model(answer="A raccoon between green leaves."),
        "llama3.2:latest": text_model(answer="a curious raccoon, green leaves"),
    }


def put_example(comfyui: Any) -> None:
    photo = Image.open(ROOT / "examples" / "photo.jpg").convert("RGB").resize((256, 256))
    (comfyui.base / "input" / "my images").mkdir(exist_ok=True)
    for file in ("example.png", "my images/example.png"):
        comfyui.save_input(photo, file)


def run(page: Any, comfyui: Any) -> None:
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    status = comfyui.new_run(before, timeout_s=400)["status"]
    assert status["status_str"] == "success", status["messages"][-1]
    page.wait_for_timeout(1000)


def core_checkpoint() -> Any:
    """Return the module that writes a checkpoint of random weights."""
    file = ROOT / "tests" / "comfyui" / "core_checkpoint.py"
    spec = importlib.util.spec_from_file_location("core_checkpoint", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comfyui_lists_them(comfyui: Any) -> None:
    if comfyui.found.version < FIRST:
        pytest.skip("this ComfyUI lists no blueprints")
    listed = comfyui.get("/global_subgraphs").values()
    ours = [one["name"] for one in listed if one["info"]["node_pack"].endswith("some-folder-name")]
    assert sorted(ours) == NAMES


def test_describe_and_rewrite(with_blueprints: Any, comfyui: Any, scripted: FaultyOllama) -> None:
    page = with_blueprints
    script(scripted)
    put_example(comfyui)
    insert(page, "Describe and rewrite")
    page.evaluate(SOURCES_AND_RESULTS)
    run(page, comfyui)
    assert page.evaluate(SHOWN, "description") == "A raccoon between green leaves."
    assert page.evaluate(SHOWN, "refined_output") == "a curious raccoon, green leaves"
    screenshot(page, "Describe and rewrite")


def test_refine_with_its_own_description(
    with_blueprints: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    import sys

    page = with_blueprints
    script(scripted)
    put_example(comfyui)
    sys.modules["host"].put_tiny(comfyui)
    insert(page, "Refine with its own description")
    page.evaluate(SOURCES_AND_RESULTS)
    page.evaluate(SET, {"checkpoint": "tiny_refiner.safetensors"})
    run(page, comfyui)
    assert page.evaluate(SHOWN, "prompt") == "a curious raccoon, green leaves"
    screenshot(page, "Refine with its own description")


def test_caption_a_folder(with_blueprints: Any, comfyui: Any, scripted: FaultyOllama) -> None:
    page = with_blueprints
    script(scripted)
    put_example(comfyui)
    insert(page, "Caption a folder")
    page.evaluate(SOURCES_AND_RESULTS)
    page.evaluate(SET, {"existing": "overwrite"})
    run(page, comfyui)
    file = comfyui.base / "input" / "my images" / "example.txt"
    assert file.read_text(encoding="utf-8").strip() == "a curious raccoon, green leaves"
    screenshot(page, "Caption a folder")


def test_refine_faces_is_sent_as_it_is_written(with_blueprints: Any, comfyui: Any) -> None:
    page = with_blueprints
    insert(page, "Refine faces")
    sent = page.evaluate("async () => (await app.graphToPrompt()).output")
    types = [entry["class_type"] for entry in sent.values()]
    assert sorted(types) == [
        "LoadMediaPipeFaceLandmarker", "MediaPipeFaceLandmarker", "MediaPipeFaceMask",
        "RefineryDescribeTiles", "RefineryRefineWithModel",
    ]  # fmt: skip
    file = ROOT / "subgraphs" / "Refine faces.json"
    inner = json.loads(file.read_text(encoding="utf-8"))["definitions"]["subgraphs"][0]
    for entry in sent.values():
        (node,) = [one for one in inner["nodes"] if one["type"] == entry["class_type"]]
        sockets = [put["name"] for put in node["inputs"] if not put.get("widget")]
        linked = [put for put in sockets if put in entry["inputs"]]
        assert set(linked) <= set(sockets)
    screenshot(page, "Refine faces")


def test_refine_faces_changes_what_is_masked_only(
    with_blueprints: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    """MediaPipe's weights are not here: a drawn mask is used in place of its own."""
    page = with_blueprints
    script(scripted)
    put_example(comfyui)
    checkpoint = comfyui.base / "models" / "checkpoints" / "core.safetensors"
    core_checkpoint().write_core_checkpoint(checkpoint)
    faces = Image.new("L", (256, 256), 255)  # what is transparent is masked
    ImageDraw.Draw(faces).ellipse((40, 40, 120, 130), fill=0)
    drawn = Image.open(comfyui.base / "input" / "example.png").convert("RGB")
    drawn.putalpha(faces)
    comfyui.save_input(drawn, "faces.png")
    try:
        insert(page, "Refine faces")
        page.evaluate(SOURCES_AND_RESULTS)
        page.evaluate(DRAWN_MASK, [checkpoint.name, "faces.png"])
        page.evaluate(SET, {"positive": "a face", "denoise": 0.5})
        page.evaluate(SAVED_RESULT)
        run(page, comfyui)
    finally:
        checkpoint.unlink()
    assert len([one for one in scripted.requests if one.kind == "chat"]) == 1
    (saved,) = (comfyui.base / "output").glob("faces_*.png")
    before, after = (np.asarray(Image.open(one).convert("RGB"), np.int16)
                     for one in (comfyui.base / "input" / "example.png", saved))  # fmt: skip
    changed = np.abs(after - before).max(axis=2) > 0
    masked = np.asarray(faces) == 0
    assert changed[masked].mean() > 0.5
    assert not changed[~masked].any(), "nothing outside of the mask changes"
    screenshot(page, "Refine faces, run")
