"""The examples in the nodes' help pages: each runs, and its picture is seen in the page's panel.

With SCREENSHOTS=FOLDER it writes screenshots there; tools/place_screenshots.py puts them in place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_refinery.texts import ready_instructions
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
SEEN = (
    "A young raccoon with gray fur and a black mask climbs through long green leaves in daylight."
)
WRITTEN = "close-up of a young raccoon among long green leaves, detailed gray fur, soft daylight"
PHOTO: dict[str, Any] = {"type": "LoadImage", "values": {"image": "raccoon.png"}}
SHOW = "RefineryDisplayAnything"


def shows(slot: int, title: str, of: int = 1) -> dict[str, Any]:
    """Display Anything below the example, with what the node number `of` gives."""
    return {"type": SHOW, "title": title, "links": {"value": [of, slot]}, "tall": 150}


def example(node: str, *then: dict[str, Any], values: Any = None, links: Any = None) -> list[Any]:
    """A hidden Load Image, the node, and what comes after it."""
    return [PHOTO, {"type": node, "values": values or {}, "links": links or {}}, *then]


EXAMPLES: dict[str, list[Any]] = {
    "RefineryLLMImageRefine": example(
        "RefineryLLMImageRefine",
        shows(1, "description"),
        shows(2, "refined_output"),
        values={"user_instructions": "Rewrite this description as a prompt for SDXL."},
        links={"image": [0, 0]},
    ),
    "RefineryLLMDescribe": example(
        "RefineryLLMDescribe", shows(1, "description"), links={"image": [0, 0]}
    ),
    "RefineryOllamaProcess": example(
        "RefineryOllamaProcess",
        shows(0, "text"),
        values={"text": SEEN, "instructions": "Rewrite this as a prompt for SDXL."},
    ),
    "RefineryOllamaOptions": example(
        "RefineryOllamaOptions",
        {
            "type": "RefineryOllamaProcess",
            "values": {"text": SEEN, "instructions": "List what is there."},
            "links": {"options": [1, 0]},
            "hidden": True,
        },
        shows(0, "what the model answers", of=2),
        values={
            "num_predict": 200,
            "format": '{"type": "object", "properties": {"tags": {"type": "array", "items": '
            '{"type": "string"}}}, "required": ["tags"]}',
        },
    ),
    "RefineryReadyInstructions": example(
        "RefineryReadyInstructions",
        shows(0, "instructions"),
        values={
            "pick": "Comic panel",
            "text": ready_instructions([ROOT / "instructions"])["Comic panel"],
        },
    ),
    "RefineryWildcardProcessor": example(
        "RefineryWildcardProcessor",
        shows(0, "processed text"),
        values={
            "text": "a house with a __colour__ door in __season__, {watercolour|oil painting}",
            "seed": 7,
        },
    ),
    "RefineryDisplayAnything": [PHOTO, {**shows(0, "Display Anything", of=0), "tall": 340}],
    "RefineryFreeMemory": example(
        "RefineryFreeMemory",
        {"type": "PreviewImage", "links": {"images": [1, 0]}, "hidden": True},
        links={"value": [0, 0]},
    ),
    "RefineryLoadFolder": example(
        "RefineryLoadFolder",
        {**shows(0, "images"), "tall": 350},
        shows(1, "names"),
        values={"folder": "raccoons"},
    ),
    "RefinerySaveCaption": example(
        "RefinerySaveCaption",
        shows(1, "file"),
        values={
            "name": "raccoons/1.png",
            "text": SEEN,
            "prefix": "ohwx, ",
            "existing": "overwrite",
        },
    ),
    "RefineryTextToFilename": example(
        "RefineryTextToFilename",
        shows(0, "filename"),
        values={"text": "A red ball: on snow / at night.", "folder": "captions"},
    ),
    "RefineryCheckSetup": [PHOTO, {"type": "RefineryCheckSetup", "tall": 340}],
    "RefineryDescribeTiles": example(
        "RefineryDescribeTiles",
        shows(0, "texts"),
        links={"image": [0, 0]},
        values={"tile_size": 256, "working_size": "keep size"},
    ),
    "RefineryCaptionFolder": [
        PHOTO,
        {
            "type": "RefineryCaptionFolder",
            "values": {"folder": "raccoons", "instructions": "", "existing": "overwrite"},
        },
        {**shows(1, "texts"), "tall": 200},
        {**shows(2, "report"), "tall": 150},
    ],
    "RefineryRefineFolder": [
        PHOTO,
        {
            "type": "RefineryRefineFolder",
            "values": {
                "folder": "drawings",
                "checkpoint": "tiny_refiner.safetensors",
                "working_size": "keep size",
            },
            "tall": 900,
        },
        shows(2, "report"),
    ],
    # It wants weights that are not here: its example is drawn, not run.
    "RefinerySDXLRefiner": [
        {**PHOTO, "shown": True, "tall": 300},
        {
            "type": "RefinerySDXLRefiner",
            "values": {"prompt": WRITTEN, "negative_prompt": "blurry, noise"},
            "links": {"image": [0, 0]},
        },
        {"type": "SaveImage", "links": {"images": [1, 0]}, "hidden": True},
    ],
    "RefineryRefineWithModel": [
        {**PHOTO, "shown": True, "tall": 300},
        {
            "type": "RefineryRefineWithModel",
            "values": {"positive": WRITTEN, "negative": "blurry, noise"},
            "links": {"image": [0, 0]},
        },
        {"type": "SaveImage", "links": {"images": [1, 0]}, "hidden": True},
    ],
    "RefinerySplat": [
        {**PHOTO, "type": "File3DToSplat", "values": {}},
        {
            "type": "RefinerySplat",
            "values": {"prompt": "a worn leather armchair"},
            "links": {"splat": [0, 0]},
        },
        {"type": "SplatToFile3D", "links": {"splat": [1, 0]}},
        {"type": "PreviewImage", "links": {"images": [1, 1]}, "hidden": True},
    ],
}
NOT_RUN = {"RefinerySDXLRefiner", "RefineryRefineWithModel", "RefinerySplat"}

BUILD = """([steps, first]) => {
  app.graph.clear();
  // Newer pages remember values by a node's number, which clear() gives out again.
  app.graph.last_node_id = first;
  const nodes = [];
  for (const [index, step] of steps.entries()) {
    const node = LiteGraph.createNode(step.type);
    app.graph.add(node);
    nodes.push(node);
    node.pos = [-700, 60 + 500 * index];
    if (step.title) node.title = step.title;
    for (const [name, value] of Object.entries(step.values ?? {})) {
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
    for (const [name, [from, slot]] of Object.entries(step.links ?? {})) {
      nodes[from].connect(slot, node, node.inputs.findIndex((i) => i.name === name));
    }
    node.setSize([320, Math.max(step.tall ?? 0, node.computeSize()[1])]);
  }
  return nodes.filter((_, i) => steps[i].shown ?? (i > 0 && !steps[i].hidden)).map((n) => n.id);
}"""
STACK = """(ids) => {
  let y = 120;
  for (const id of ids) {
    const node = app.graph.getNodeById(id);
    node.setSize([320, Math.max(node.size[1], node.computeSize()[1])]);
    node.pos = [300, y];
    y += node.size[1] + 50;
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.deselectAll?.();
  app.graph.setDirtyCanvas(true, true);
  return y - 50;
}"""
STACK_NODES_2 = """(ids) => {
  let y = 120;
  for (const id of ids) {
    const box = document.querySelector(`[data-node-id="${id}"]`).getBoundingClientRect();
    app.graph.getNodeById(id).pos = [300, y];
    y += box.height + 20;
  }
  return y - 50;
}"""
PICTURE = """(type) => {
  const [image] = [...document.querySelectorAll("img")].filter(
    (one) => one.src.endsWith(`/docs/images/${type}.png`));
  if (!image?.complete || !image.naturalWidth) return null;
  const box = image.getBoundingClientRect();
  return {natural: image.naturalWidth, width: box.width, alt: image.alt,
    panel: image.closest("[class*=overflow], .node-help-content, div").clientWidth};
}"""


def prepare(comfyui: Any, server: FaultyOllama) -> None:
    from faulty_ollama import text_model, vision_model

    server.models = {
        "llava:latest": vision_model(answer=SEEN),
        "llama3.2:latest": text_model(answer=WRITTEN),
    }
    weights, checkpoints = ROOT / "tools/tiny_refiner/weights", comfyui.base / "models/checkpoints"
    shutil.copytree(weights / "tiny_refiner", checkpoints / "tiny_refiner", dirs_exist_ok=True)
    shutil.copy2(weights / "tiny_refiner.safetensors", checkpoints)
    photo = Image.open(ROOT / "examples" / "photo.jpg").convert("RGB").resize((512, 512))
    comfyui.save_input(photo, "raccoon.png")
    folder = comfyui.base / "input" / "raccoons"
    folder.mkdir(exist_ok=True)
    drawings = comfyui.base / "input" / "drawings"  # the tiny refiner can refine no other images
    drawings.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "examples" / "scene-damaged.jpg", drawings / "1.jpg")
    shutil.copy2(ROOT / "examples" / "scene.png", drawings / "2.png")
    for index in range(3):
        photo.crop((0, 60 * index, 384, 60 * index + 256)).save(folder / f"{index + 1}.png")


def test_every_example_of_the_help_pages_runs(
    page: Any, comfyui: Any, scripted: FaultyOllama, use_nodes_2: Callable[[bool], bool]
) -> None:
    from faulty_ollama import text_model

    prepare(comfyui, scripted)
    ours = {name for name in comfyui.object_info() if name.startswith("Refinery")}
    assert set(EXAMPLES) - ({"RefinerySplat"} - ours) == ours, "ComfyUI 0.3.64 has no splats"
    page.set_viewport_size({"width": 1100, "height": 1500})
    page.keyboard.press("r")  # lists the folder of pictures
    page.wait_for_timeout(1500)
    page.evaluate(
        """async () => { await app.extensionManager.setting.set(
             "Comfy.NodeBadge.NodeSourceBadgeMode", "None"); }"""
    )
    for index, (node, steps) in enumerate(EXAMPLES.items(), start=1):
        if node not in ours:
            continue
        if node == "RefineryOllamaOptions":
            tags = '{"tags": ["raccoon", "gray fur", "leaves", "daylight"]}'
            scripted.models["llama3.2:latest"] = text_model(answer=tags)
        drawn = page.evaluate(BUILD, [steps, 1000 * index])
        if node not in NOT_RUN:
            before = set(comfyui.get("/history"))
            page.evaluate("async () => { await app.queuePrompt(0, 1); }")
            run = comfyui.new_run(before)
            status = run["status"]
            assert status["status_str"] == "success", (node, status["messages"][-1])
            # A failure that is given as a message is a success too.
            assert '"Error' not in json.dumps(run["outputs"]), (node, run["outputs"])
        page.wait_for_timeout(900)
        if folder := os.environ.get("SCREENSHOTS"):
            bottom = page.evaluate(STACK, drawn)
            page.wait_for_timeout(900)
            Path(folder).mkdir(parents=True, exist_ok=True)
            clip = {"x": 284, "y": 76, "width": 352, "height": min(bottom + 14, 1500) - 76}
            page.screenshot(path=Path(folder) / f"help-{node}.png", clip=clip)
            if use_nodes_2(True):
                page.wait_for_timeout(900)
                bottom = page.evaluate(STACK_NODES_2, drawn)
                page.wait_for_timeout(600)
                clip["height"] = min(bottom + 14, 1500) - 76
                page.screenshot(path=Path(folder) / f"node-{node}.png", clip=clip)
                use_nodes_2(False)


def test_the_help_panel_shows_each_page_s_picture(
    page: Any, comfyui: Any, open_help: Callable[[str], None]
) -> None:
    for node in EXAMPLES.keys() & comfyui.object_info().keys():
        open_help(node)
        page.wait_for_function(f"(type) => ({PICTURE})(type) !== null", arg=node, timeout=10_000)
        found = page.evaluate(PICTURE, node)
        assert found["natural"] >= 300 and found["alt"], (node, found)
        assert 150 < found["width"] < found["panel"] + 1, f"{node} is cut off: {found}"
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.evaluate(
                "(type) => document.querySelector(`img[src$='/docs/images/${type}.png']`)"
                ".scrollIntoView()",
                node,
            )
            page.wait_for_timeout(300)
            page.screenshot(path=Path(folder) / f"panel-{node}.png")
