"""The example workflows in the page of a real ComfyUI, as somebody opens them who has no model.

With SCREENSHOTS=FOLDER it writes screenshots there; tools/place_screenshots.py puts them in place.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "example_workflows").glob("*.json"))
NAMES = [file.stem for file in FILES]
TITLE_PX = 30

LOAD = """async (graph) => {
  await app.loadGraphData(graph, true, true, null, {openSource: "template"}); }"""
SAVE = "() => app.graph.serialize()"
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
SIZES = """() => app.graph.nodes.map((n) =>
  ({id: n.id, type: n.type, pos: [...n.pos], size: [...n.size], least: [...n.computeSize()],
    collapsed: !!n.flags.collapsed}))"""
LINKS_BEHIND_NODES = """() => {
  const box = (n) => n.boundingRect ?? n.getBounding();
  const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
  const behind = [];
  for (const link of [...app.graph.links.values()].filter(Boolean)) {
    const from = app.graph.getNodeById(link.origin_id);
    const to = app.graph.getNodeById(link.target_id);
    const a = from.getConnectionPos(false, link.origin_slot);
    const b = to.getConnectionPos(true, link.target_slot);
    const bend = far(a, b) / 4;  // the curve that the page draws
    const x = [a[0], a[0] + bend, b[0] - bend, b[0]], y = [a[1], a[1], b[1], b[1]];
    const at = (p, t) => (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1]
      + 3 * (1 - t) * t * t * p[2] + t ** 3 * p[3];
    for (let t = 0; t < 1; t += 0.02) {
      const spot = [at(x, t), at(y, t)];
      if (Math.min(far(spot, a), far(spot, b)) < 16) continue;  // slots lie within their nodes
      const over = app.graph.nodes.find((n) => {
        const [left, top, width, height] = box(n);
        return spot[0] > left + 6 && spot[0] < left + width - 6
          && spot[1] > top + 2 && spot[1] < top + height - 2;
      });
      if (over) { behind.push(`${from.title} to ${to.title} behind ${over.title}`); break; }
    }
  }
  return behind;
}"""
NO_BADGES = """async () => {
  await app.extensionManager.setting.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None"); }"""
FIRST_APPS = (0, 33, 0)
LAPTOP = {"width": 1440, "height": 900}
BELOW_CARD = """([left, bottom]) => app.graph.nodes.filter((n) => {
  const {scale, offset} = app.canvas.ds, [x, y, width] = n.boundingRect ?? n.getBounding();
  return (x + width + offset[0]) * scale > left && (y + offset[1]) * scale < bottom;
}).map((n) => n.title)"""
BOXES = """() => [...document.querySelectorAll("[data-node-id]")].map((element) => {
  const box = element.getBoundingClientRect();
  const scale = app.canvas.ds.scale;
  return [box.left / scale, box.top / scale, box.width / scale, box.height / scale];
})"""
FIT = """([width, height, right_of = 0, below = 0]) => {
  const nodes = app.graph.nodes;
  const left = Math.min(...nodes.map((n) => n.pos[0]));
  const top = Math.min(...nodes.map((n) => n.pos[1])) - 30;
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const scale = Math.min(1, (width - 40) / (right - left), (height - 40) / (bottom - top));
  for (const node of nodes) node.has_errors = false;
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [(20 + right_of) / scale - left, (20 + below) / scale - top];
  app.graph.setDirtyCanvas(true, true);
  return [(right - left) * scale + 40, (bottom - top) * scale + 40];
}"""


def graph_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def workflow(name: str) -> dict[str, Any]:
    return graph_of(ROOT / "example_workflows" / f"{name}.json")


def unknown_types(comfyui: Any, graph: dict[str, Any]) -> set[str]:
    """The node types of a workflow that this ComfyUI does not have."""
    inner = graph.get("definitions", {}).get("subgraphs", [])
    has = {*comfyui.object_info(), "MarkdownNote", *(one["id"] for one in inner)}
    return {node["type"] for one in (graph, *inner) for node in one["nodes"]} - has


def usable(comfyui: Any) -> list[str]:
    """The workflows that this ComfyUI is new enough for, by what their notes say."""
    names = []
    for name in NAMES:
        graph = workflow(name)
        note = next(n for n in graph["nodes"] if n["type"] == "MarkdownNote")["widgets_values"][0]
        if unknown := unknown_types(comfyui, graph):
            assert "Needs ComfyUI 0.3.64" not in note, f"{name} needs {unknown}"
        else:
            names.append(name)
    assert len(names) >= 7
    return names


def load(page: Any, comfyui: Any, name: str) -> dict[str, Any]:
    """Open a workflow in the page, with the picture that every ComfyUI has."""
    graph = workflow(name)
    graph["extra"].pop("linearMode", None)  # an app opens without its graph
    open_graph(page, comfyui, graph)
    return graph


def open_graph(page: Any, comfyui: Any, graph: dict[str, Any]) -> None:
    photo = ROOT / "examples" / "photo.jpg"
    (comfyui.base / "input" / "my images").mkdir(exist_ok=True)
    for file in ("example.png", "my images/example.png"):
        comfyui.save_input(Image.open(photo).convert("RGB").resize((512, 512)), file)
    page.evaluate(LOAD, graph)
    page.wait_for_timeout(800)


def values(graph: dict[str, Any]) -> dict[int, list[Any]]:
    return {node["id"]: node.get("widgets_values") or [] for node in graph["nodes"]}


def test_a_laptop_shows_every_text_and_every_link(page: Any, comfyui: Any) -> None:
    """In the classic renderer, which draws no text below 57 %."""
    page.set_viewport_size(LAPTOP)
    page.wait_for_timeout(500)
    for name in usable(comfyui):
        graph = workflow(name)
        graph["extra"].pop("linearMode", None)  # an app opens without its graph
        page.evaluate(LOAD, graph)
        page.wait_for_timeout(800)
        if '"models": [' in json.dumps(graph) and comfyui.found.version >= FIRST_APPS:
            page.wait_for_selector("[data-testid=error-overlay]")
            page.wait_for_timeout(500)  # it moves in
        zoom = page.evaluate("() => app.canvas.ds.scale")
        assert zoom >= 0.6, (name, zoom)
        card = page.evaluate(
            """() => { const box = document.querySelector("[data-testid=error-overlay]")
              ?.getBoundingClientRect(); return [box?.left ?? 1070, box?.bottom ?? 216]; }"""
        )
        assert page.evaluate(BELOW_CARD, card) == [], name
        assert page.evaluate(LINKS_BEHIND_NODES) == [], name
        graph_picture(page, name)


def test_every_workflow_opens_whole_on_a_machine_without_its_models(
    page: Any, comfyui: Any, renderer: str
) -> None:
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for name in usable(comfyui):
        opens_whole(page, load(page, comfyui, name), name, renderer)
        assert complaints == [], name


def opens_whole(page: Any, graph: dict[str, Any], name: str, renderer: str) -> None:
    """What the page holds is what the file says, and nothing lies over anything else."""
    saved = page.evaluate(SAVE)
    for id, ours in values(graph).items():
        # The page adds a widget of its own for 3D viewers; ours come first.
        assert values(saved)[id][: len(ours)] == ours, (name, id)
    assert sorted(map(str, saved["links"])) == sorted(map(str, graph["links"]))
    inputs = {node["id"]: [put["name"] for put in node["inputs"]] for node in graph["nodes"]}
    for node in saved["nodes"]:
        names = [put["name"] for put in node["inputs"] if put["name"] in inputs[node["id"]]]
        assert names == inputs[node["id"]]
    if renderer == "classic":
        boxes = []
        for node in page.evaluate(SIZES):
            if node["collapsed"]:
                continue
            assert node["size"][0] >= node["least"][0], (name, node)
            assert node["size"][1] >= node["least"][1], (name, node)
            boxes.append((node["pos"][0], node["pos"][1] - TITLE_PX, *node["size"]))
    else:
        page.evaluate(FIT, [1500, 950])
        page.wait_for_timeout(800)
        boxes = [tuple(box) for box in page.evaluate(BOXES)]
        assert len(boxes) == len(graph["nodes"])
    for one, other in combinations(boxes, 2):
        apart = (
            one[0] + one[2] <= other[0]
            or other[0] + other[2] <= one[0]
            or one[1] + one[3] <= other[1]
            or other[1] + other[3] <= one[1]
        )
        assert apart, f"{name}: nodes lie over each other: {one}, {other}"


@pytest.fixture
def all_models(comfyui: Any) -> Iterator[None]:
    """The files that the workflows name, empty."""
    files = [
        comfyui.base / "models" / entry["directory"] / entry["name"]
        for file in FILES
        for entry in model_entries(graph_of(file))
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    yield
    for file in set(files):
        file.unlink()


def model_entries(value: Any) -> Iterator[dict[str, str]]:
    """What a workflow says about the files that it needs, also within its subgraphs."""
    if isinstance(value, dict):
        if {"name", "url", "directory"} <= value.keys():
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from model_entries(one)


@pytest.mark.usefixtures("all_models")
def test_a_workflow_whose_models_are_here_opens_without_a_complaint(
    page: Any, comfyui: Any, renderer: str
) -> None:
    open_graph(page, comfyui, workflow(NAMES[0]))  # with the image that the page is to list
    page.evaluate("async () => { await app.refreshComboInNodes(); }")
    page.evaluate(NO_BADGES)
    for name in usable(comfyui):
        load(page, comfyui, name)
        page.wait_for_timeout(500)
        complaint = page.locator("[data-testid=error-overlay]")
        assert complaint.count() == 0, (name, complaint.inner_text())
        width, height = page.evaluate(FIT, [1400, 830, 60, 90])
        page.wait_for_timeout(800)
        if folder := os.environ.get("SCREENSHOTS"):
            clip = {"x": 60, "y": 90, "width": width, "height": height}
            page.screenshot(path=Path(folder) / f"template-{name}-{renderer}.png", clip=clip)


def test_the_template_browser_lists_them_with_pictures(comfyui: Any) -> None:
    listed = comfyui.get("/workflow_templates")
    folder = comfyui.pack_folder.name
    assert sorted(listed[folder]) == sorted(NAMES)
    for name in NAMES:
        place = f"{comfyui.url}/api/workflow_templates/{folder}/{name}"
        assert requests.get(f"{place}.json", timeout=30).json()["version"] == 0.4
        assert requests.get(f"{place}.jpg", timeout=30).content.startswith(b"\xff\xd8\xff")


def script(server: FaultyOllama) -> None:
    """Answers that fit the example picture."""
    from faulty_ollama import Reply, text_model, vision_model

    server.models = {
        "llava:latest": vision_model(
            answer="A raccoon looks out between green leaves: gray fur, a black mask around bright "
            "eyes, white whiskers and pointed ears, in soft daylight."
        ),
        "llama3.2:latest": text_model(
            answer="curious raccoon in green leaves, black mask, bright eyes, white whiskers, gray "
            "fur, soft daylight"
        ),
    }
    server.always("chat", Reply(token_s=0.03))


def shown(page: Any, title: str) -> str:
    return page.evaluate(
        """(title) => String(app.graph.nodes.find((n) => n.title === title)
             ?.widgets.find((w) => w.name === "held_text").value ?? "")""",
        title,
    )


def graph_picture(page: Any, name: str) -> None:
    """Leave a screenshot of the graph where SCREENSHOTS says, to be looked at."""
    if not (folder := os.environ.get("SCREENSHOTS")):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(folder) / f"graph-{name}.png")


RUNS = ("Describe and rewrite", "Two servers", "Caption a folder", "Tag a folder with two models")
"""Need nothing but Ollama."""


def test_every_workflow_is_queued_from_the_page(
    page: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    script(scripted)
    captions = comfyui.base / "input" / "my images" / "example.txt"
    captions.unlink(missing_ok=True)  # the template keeps one that an earlier test left
    for name in usable(comfyui):
        load(page, comfyui, name)
        if name in RUNS:
            before = set(comfyui.get("/history"))
            page.evaluate(QUEUE)
            assert comfyui.new_run(before)["status"]["status_str"] == "success", name
            page.wait_for_timeout(800)
        else:
            # The files of core's loaders are not here: what would be sent must still be ours.
            sent = page.evaluate("async () => (await app.graphToPrompt()).output")
            written = ROOT / "tests" / "workflows" / "api" / f"{name}.json"
            prompt = json.loads(written.read_text(encoding="utf-8"))
            assert set(sent) == set(prompt), name
            for id, entry in prompt.items():
                for key, value in entry["inputs"].items():
                    assert sent[id]["inputs"][key] == value, (name, id, key)
    assert captions.read_text(encoding="utf-8").startswith("curious raccoon")
    tags = comfyui.base / "output" / "tags" / "my images" / "example.txt"
    assert tags.read_text(encoding="utf-8").startswith("curious raccoon")


RELEASED_RUNS = ("llm-image-refine-basic", "caption-a-folder", "two-models-batch")
RELEASED = sorted((ROOT / "tests" / "released").glob("*/*.json"))


def linked(graph: dict[str, Any]) -> list[str]:
    """Each link by the names of its ends: a new socket before it changes only its number."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    return [
        f"{source}.{nodes[source]['outputs'][out]['name']} {nodes[target]['inputs'][to]['name']}"
        f" of {target} {kind}"
        for _, source, out, target, to, kind in graph["links"]
    ]


def test_workflows_of_a_release_open_with_every_value_and_run(
    page: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    script(scripted)
    opened = [file for file in RELEASED if not unknown_types(comfyui, graph_of(file))]
    assert len(opened) >= 7
    for file in opened:
        graph = graph_of(file)
        open_graph(page, comfyui, graph)
        saved = page.evaluate(SAVE)
        for id, ours in values(graph).items():
            assert values(saved)[id][: len(ours)] == ours, (file.stem, id)
        assert sorted(linked(saved)) == sorted(linked(graph))
        if file.stem in RELEASED_RUNS:
            before = set(comfyui.get("/history"))
            page.evaluate(QUEUE)
            assert comfyui.new_run(before)["status"]["status_str"] == "success", file.stem


def test_the_basic_workflow_shows_its_texts_and_saves_under_a_name_made_of_them(
    page: Any, comfyui: Any, scripted: FaultyOllama, renderer: str
) -> None:
    script(scripted)
    graph = load(page, comfyui, "Describe and rewrite")
    # Else the second run of this test would find everything cached.
    refine = next(n for n in graph["nodes"] if n["type"] == "RefineryLLMImageRefine")["id"]
    page.evaluate(
        """([id, seed]) => { app.graph.getNodeById(id).widgets
             .find((w) => w.name === "seed").value = seed; }""",
        [refine, len(renderer)],
    )
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    assert comfyui.new_run(before)["status"]["status_str"] == "success"
    page.wait_for_timeout(800)
    assert "raccoon looks out" in shown(page, "description")
    assert "curious raccoon" in shown(page, "refined_output")
    files = [file.name for file in (comfyui.base / "output" / "refinery").iterdir()]
    assert any(name.startswith("curious raccoon") for name in files), files


OPEN_APP = """async ([graph, name]) => {
  await app.loadGraphData(graph, true, true, name, {openSource: "template"}); }"""


def open_app(page: Any, comfyui: Any, name: str) -> None:
    """Open a workflow as the template browser does, and close ComfyUI's tour."""
    if comfyui.found.version < FIRST_APPS:
        pytest.skip("this ComfyUI has no App mode for it")
    photo = Image.open(ROOT / "examples" / "photo.jpg").convert("RGB")
    comfyui.save_input(photo.resize((512, 512)), "example.png")
    page.evaluate(OPEN_APP, [workflow(name), name])
    page.wait_for_timeout(1500)
    tour = page.get_by_role("button", name="Skip")
    if tour.is_visible():
        tour.click()


def run_app(page: Any, comfyui: Any) -> None:
    before = set(comfyui.get("/history"))
    page.get_by_role("button", name="Run", exact=True).last.click()
    status = comfyui.new_run(before, timeout_s=120)["status"]
    assert status["status_str"] == "success", status["messages"][-1]


def test_the_app_of_words_shows_its_text(page: Any, comfyui: Any, scripted: FaultyOllama) -> None:
    script(scripted)
    open_app(page, comfyui, "Image to words.app")
    run_app(page, comfyui)
    page.wait_for_function(
        "() => document.body.innerText.includes('curious raccoon in green leaves')"
    )
    graph_picture(page, "Image to words.app, run")


def test_the_app_of_images_shows_its_image(page: Any, comfyui: Any) -> None:
    open_app(page, comfyui, "Better image.app")
    sys.modules["host"].put_tiny(comfyui)
    page.evaluate(
        """() => { for (const node of app.graph.nodes) for (const widget of node.widgets ?? []) {
          if (widget.name === "checkpoint") widget.value = "tiny_refiner.safetensors";
          if (widget.name === "working_size") widget.value = "keep size";
        } }"""
    )
    run_app(page, comfyui)
    page.wait_for_function(
        """() => [...document.querySelectorAll("img")].some(
             (image) => image.src.includes("better_") && image.naturalWidth > 64)"""
    )
    graph_picture(page, "Better image.app, run")
