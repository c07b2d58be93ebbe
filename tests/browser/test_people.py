"""What people do in the page: search, help, cancel, reload, models of strangers, named servers."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
OURS = """() => Object.values(LiteGraph.registered_node_types)
  .filter((type) => /^Refinery/.test(type.comfyClass ?? ""))
  .map((type) => [type.comfyClass, type.title])"""
LOAD = "async (graph) => { await app.loadGraphData(graph); }"
SAVE = "() => app.graph.serialize()"
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
COMMAND = "async (id) => { await app.extensionManager.command.execute(id); }"
CHOICES = """([id, name]) => {
  const values = app.graph.getNodeById(id).widgets.find((w) => w.name === name).options.values;
  return typeof values === "function" ? values() : values;
}"""
VALUE = """([id, name]) =>
  app.graph.getNodeById(id).widgets.find((w) => w.name === name).value"""
TEXTS = """() => [...document.querySelectorAll("textarea, p, span, div")]
  .map((e) => e.value ?? e.textContent ?? "").join("\\n")"""


def basic() -> dict[str, Any]:
    file = ROOT / "example_workflows" / "Describe and rewrite.json"
    return json.loads(file.read_text(encoding="utf-8"))


def node_of(graph: dict[str, Any], type: str) -> dict[str, Any]:
    return next(node for node in graph["nodes"] if node["type"] == type)


def put_example(comfyui: Any, colour: str = "teal") -> None:
    comfyui.save_input(Image.new("RGB", (256, 256), colour), "example.png")


def until(look: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """What `look` gives as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} within {timeout_s} s")


def test_every_node_is_found_by_search_and_added(page: Any, renderer: str) -> None:
    ours = page.evaluate(OURS)
    assert len(ours) >= 11
    for node, title in ours:
        added: list[str] = []
        for wait_ms in (500, 1500, 4000):  # a busy machine's page is slow to list what fits
            page.evaluate("() => app.graph.clear()")
            page.mouse.dblclick(750, 650)
            page.wait_for_timeout(wait_ms)
            page.keyboard.type(title)
            page.wait_for_timeout(wait_ms)
            page.keyboard.press("Enter")
            page.wait_for_timeout(wait_ms)
            page.mouse.click(750, 900)  # newer pages leave it at the pointer until a click
            page.wait_for_timeout(200)
            if added := page.evaluate("() => app.graph.nodes.map((n) => n.type)"):
                break
            page.keyboard.press("Escape")
        assert added == [node], f'searching "{title}" added {added}'


def test_the_help_panel_opens_for_every_node(
    page: Any, comfyui: Any, open_help: Callable[[str], None]
) -> None:
    info = comfyui.object_info()
    for node, title in page.evaluate(OURS):
        open_help(node)
        inputs = {
            **info[node]["input"].get("required", {}),
            **info[node]["input"].get("optional", {}),
        }
        # Check Setup has no inputs.
        first, about = next(iter(inputs.items()), (title, ()))
        label = (about[1] if len(about) > 1 else {}).get("display_name") or first
        page.wait_for_function(
            """([title, name]) => [...document.querySelectorAll("div")].some((panel) =>
                 panel.textContent.includes(title) && panel.textContent.includes(name)
                 && panel.querySelector("table, h1, h2, h3"))""",
            arg=[title, label],
            timeout=10_000,
        )


def slow_batch(page: Any, comfyui: Any, scripted: FaultyOllama) -> tuple[int, set[str]]:
    """Queue three pictures through both models, slowly; the node, and the history before."""
    from faulty_ollama import Reply, text_model, vision_model

    scripted.models = {
        "llava:latest": vision_model(answer="One two three four five six seven eight nine ten."),
        "llama3.2:latest": text_model(answer="Ten nine eight seven six five four three two one."),
    }
    scripted.always("chat", Reply(token_s=0.12))
    folder = comfyui.base / "input" / f"three-{time.monotonic_ns()}"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        Image.new("RGB", (128, 128), colour).save(folder / f"{name}.png")
    file = ROOT / "example_workflows" / "Tag a folder with two models.json"
    graph = json.loads(file.read_text(encoding="utf-8"))
    node_of(graph, "RefineryLoadFolder")["widgets_values"][0] = folder.name
    page.evaluate(LOAD, graph)
    page.wait_for_timeout(500)
    before = set(comfyui.get("/history"))
    page.evaluate(
        """() => { window.seen = {progress: [], text: []};
          const api = window.comfyAPI.api.api;
          api.addEventListener("progress", (e) => seen.progress.push(e.detail));
          api.addEventListener("progress_text", (e) => seen.text.push(e.detail.text)); }"""
    )
    page.evaluate(QUEUE)
    return node_of(graph, "RefineryLLMImageRefine")["id"], before


def test_live_text_and_a_progress_bar_arrive(
    page: Any, comfyui: Any, scripted: FaultyOllama, renderer: str
) -> None:
    node, before = slow_batch(page, comfyui, scripted)
    page.wait_for_function(
        "(id) => { const p = app.graph.getNodeById(id).progress; return p > 0 && p < 1; }",
        arg=node,
        timeout=30_000,
    )
    page.wait_for_function(f"() => ({TEXTS})().includes('One two three')", timeout=30_000)
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"running-{renderer.replace(' ', '')}.png")
    assert comfyui.new_run(before)["status"]["status_str"] == "success"
    texts = page.evaluate("() => seen.text")
    assert any("2 of 3" in text for text in texts), texts
    assert any(text.endswith("One two three") for text in texts), "tokens came one by one"
    until(lambda: "Ten nine" in page.evaluate(TEXTS), "the result is shown")


def test_cancel_stops_within_a_second_and_leaves_nothing_running(
    page: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    _, before = slow_batch(page, comfyui, scripted)
    page.wait_for_function(f"() => ({TEXTS})().includes('One two')", timeout=30_000)
    began = time.monotonic()
    page.evaluate(COMMAND, "Comfy.Interrupt")
    history = comfyui.new_run(before)
    assert time.monotonic() - began < 2.0, "one second, and what the page and this test take"
    kinds = [kind for kind, _ in history["status"]["messages"]]
    assert "execution_interrupted" in kinds
    until(lambda: not scripted.loaded, "Ollama has unloaded the model")


def test_the_refiner_s_steps_and_previews_arrive(page: Any, comfyui: Any, renderer: str) -> None:
    tiny = ROOT / "tools" / "tiny_refiner" / "weights"
    if not (tiny / "tiny_refiner.safetensors").is_file():
        pytest.skip("the tiny refiner's weights are not in this checkout")
    checkpoints = comfyui.base / "models" / "checkpoints"
    if not (checkpoints / "tiny_refiner").exists():
        shutil.copytree(tiny / "tiny_refiner", checkpoints / "tiny_refiner")
        shutil.copy2(tiny / "tiny_refiner.safetensors", checkpoints)
    put_example(comfyui, "sienna")
    file = ROOT / "example_workflows" / "Refine an image.json"
    graph = json.loads(file.read_text(encoding="utf-8"))
    refiner = node_of(graph, "RefinerySDXLRefiner")["id"]
    page.evaluate(LOAD, graph)
    page.evaluate(
        """([id, seed]) => {
          const values = {checkpoint: "tiny_refiner.safetensors", working_size: "keep size", seed};
          for (const widget of app.graph.getNodeById(id).widgets) {
            if (widget.name in values) widget.value = values[widget.name];
          }
          window.seen = {text: [], previews: 0};
          const api = window.comfyAPI.api.api;
          api.addEventListener("progress_text", (e) => seen.text.push(e.detail.text));
          for (const kind of ["b_preview", "b_preview_with_metadata"]) {
            api.addEventListener(kind, () => { seen.previews += 1; });
          }
        }""",
        [refiner, len(renderer)],
    )
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    history = comfyui.new_run(before, timeout_s=120)
    assert history["status"]["status_str"] == "success", history["status"]["messages"][-1]
    until(lambda: page.evaluate("() => seen.previews") > 0, "a preview arrives")
    assert any("step" in text for text in page.evaluate("() => seen.text"))


def test_a_reloaded_page_has_the_values(page: Any, comfyui: Any) -> None:
    put_example(comfyui)
    graph = basic()
    values = node_of(graph, "RefineryLLMImageRefine")["widgets_values"]
    values[0], values[2] = "hf.co/org/seer:Q4_K_M", "Haiku, please."
    page.evaluate(LOAD, graph)
    # The page keeps its graph a moment after a change.
    page.evaluate("() => { app.graph.setDirtyCanvas(true, true); app.canvas.emitAfterChange?.(); }")
    page.wait_for_timeout(2500)
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes?.length >= 7", timeout=120_000)
    saved = page.evaluate(SAVE)
    assert node_of(saved, "RefineryLLMImageRefine")["widgets_values"] == values


def test_a_strangers_models_stay_and_a_run_says_what_to_pull(
    page: Any, comfyui: Any, scripted: FaultyOllama, renderer: str
) -> None:
    from faulty_ollama import vision_model

    put_example(comfyui, "olive")
    scripted.models = {"only-c:latest": vision_model("only-c")}
    graph = basic()
    refine = node_of(graph, "RefineryLLMImageRefine")
    refine["widgets_values"][0] = "hf.co/org/a-seer:Q4_K_M"
    refine["widgets_values"][1] = f"b-writer:{len(renderer)}b"
    file = copy.deepcopy(graph)
    page.evaluate(LOAD, graph)
    page.evaluate(COMMAND, "Comfy.RefreshNodeDefinitions")
    page.wait_for_timeout(1500)
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    (failed,) = [
        told
        for kind, told in comfyui.new_run(before)["status"]["messages"]
        if kind == "execution_error"
    ]
    sentence = failed["exception_message"].strip()
    assert sentence.count("ollama pull hf.co/org/a-seer:Q4_K_M") == 1, sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    until(lambda: sentence in page.evaluate(TEXTS), "the page shows the sentence")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"not-installed-{renderer.replace(' ', '')}.png")
    saved = page.evaluate(SAVE)
    for node in saved["nodes"]:
        if node["type"] != "RefineryDisplayAnything":
            ours = next(one for one in file["nodes"] if one["id"] == node["id"])
            # ComfyUI 0.3.64's page saves its own live text behind the widgets of a node.
            kept = (node.get("widgets_values") or [])[: len(ours["widgets_values"])]
            assert kept == ours["widgets_values"], node["type"]


def test_a_linked_name_with_colon_and_slash_is_the_model_that_is_asked(
    page: Any, comfyui: Any, scripted: FaultyOllama
) -> None:
    from faulty_ollama import vision_model

    put_example(comfyui, "navy")
    name = "hf.co/org/model:Q4_K_M"
    scripted.models = {name: vision_model(name, answer="A navy square.")}
    page.evaluate(
        """(name) => {
          app.graph.clear();
          const make = (type) => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            return node;
          };
          const [image, text, node, shown] =
            ["LoadImage", "PrimitiveString", "RefineryLLMDescribe", "PreviewAny"].map(make);
          image.widgets.find((w) => w.name === "image").value = "example.png";
          text.widgets[0].value = name;
          image.connect(0, node, node.inputs.findIndex((i) => i.name === "image"));
          text.connect(0, node, node.inputs.findIndex((i) => i.name === "vision_model"));
          node.connect(1, shown, 0);
        }""",
        name,
    )
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    assert comfyui.new_run(before)["status"]["status_str"] == "success"
    asked = {request.model for request in scripted.requests if request.kind == "chat"}
    assert asked == {name}


def test_two_hundred_models_and_r(page: Any, comfyui: Any, scripted: FaultyOllama) -> None:
    from faulty_ollama import text_model, vision_model

    names = [f"hf.co/org/model-{index:03}:Q4_K_M" for index in range(200)]
    models = [vision_model(one) if i % 10 == 0 else text_model(one) for i, one in enumerate(names)]
    scripted.models = {model.key: model for model in models}
    time.sleep(1.1)
    node = page.evaluate(
        """() => { const node = LiteGraph.createNode("RefineryLLMImageRefine");
             app.graph.add(node); return node.id; }"""
    )
    before = page.evaluate(VALUE, [node, "vision_model"])
    for _ in range(2):  # the first look may be the one that starts
        page.keyboard.press("r")
        page.wait_for_timeout(2500)
    choices = page.evaluate(CHOICES, [node, "vision_model"])
    assert set(names) <= set(choices)
    seeing = [name for name in choices if name in names][:20]
    assert seeing == names[::10], "those that can see come first"
    assert page.evaluate(VALUE, [node, "vision_model"]) == before, "the choice stays"
    put_example(comfyui, "maroon")
    graph = basic()
    values = node_of(graph, "RefineryLLMImageRefine")["widgets_values"]
    values[0], values[1] = names[190], names[7]
    page.evaluate(LOAD, graph)
    history = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    assert comfyui.new_run(history)["status"]["status_str"] == "success"
    asked = [request.model for request in scripted.requests if request.kind == "chat"]
    assert asked == [names[190], names[7]]


def test_the_server_widget_lists_the_names_of_the_file(page: Any, comfyui: Any) -> None:
    file = comfyui.base / "user" / "image-refinery.toml"
    node = page.evaluate(
        """() => { const node = LiteGraph.createNode("RefineryLLMImageRefine");
             app.graph.add(node); return node.id; }"""
    )
    engine = page.evaluate(CHOICES, [node, "server"])[1:]  # where the host has xllamacpp
    assert page.evaluate(CHOICES, [node, "server"]) == ["default", *engine]
    assert engine in ([], ["embedded"])
    file.write_text('[servers.studio]\nurl = "http://192.0.2.1:11434"\nkey = "secret"\n'
                    '[servers.attic]\nurl = "http://192.0.2.2"\n', encoding="utf-8")  # fmt: skip
    try:
        page.keyboard.press("r")
        page.wait_for_timeout(2500)
        names = page.evaluate(CHOICES, [node, "server"])
        assert names == ["default", "attic", "studio", *engine]
        everything = json.dumps(comfyui.object_info("RefineryLLMImageRefine"))
        assert "192.0.2" not in everything and "secret" not in everything
    finally:
        file.unlink()


def test_pictures_of_every_node(page: Any, renderer: str) -> None:
    """Leaves a picture of each node where SCREENSHOTS says; always: no label is cut off."""
    for id, (node, _) in enumerate(page.evaluate(OURS), start=1000):
        box = page.evaluate(
            """([type, id]) => {
              app.graph.clear();
              // Newer pages remember values by a node's number, which clear() gives out again.
              app.graph.last_node_id = id;
              const node = LiteGraph.createNode(type);
              app.graph.add(node);
              const least = node.computeSize();
              node.pos = [420, 120];
              node.setSize([Math.max(400, least[0]), least[1]]);
              app.canvas.ds.scale = 1;
              app.canvas.ds.offset = [0, 0];
              app.canvas.deselectAll?.();
              app.graph.setDirtyCanvas(true, true);
              return [node.pos[0], node.pos[1], ...node.size];
            }""",
            [node, id],
        )
        page.wait_for_timeout(700)
        if renderer != "classic":
            cut = page.evaluate(
                """() => [...document.querySelectorAll("[data-node-id] *")]
                     .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
                       && getComputedStyle(e).overflowX === "hidden"
                       && !/input|textarea/i.test(e.tagName) && e.children.length === 0
                       && !e.closest('[data-testid="widget-select-default-trigger"]'))
                     .map((e) => e.textContent.slice(0, 60)).filter(Boolean)"""
            )
            assert cut == [], f"{node}: cut off in Nodes 2.0: {cut}"
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.evaluate(
                """async () => { await app.extensionManager.setting.set(
                     "Comfy.NodeBadge.NodeSourceBadgeMode", "None"); }"""
            )
            page.wait_for_timeout(300)
            name = f"node-{node}" + ("" if renderer == "classic" else "-2.0")
            element = page.query_selector("[data-node-id]") if renderer != "classic" else None
            if element:
                found = element.bounding_box()
                box = [found["x"], found["y"] + 30, found["width"], found["height"] - 30]
            clip = {"x": box[0] - 16, "y": box[1] - 56, "width": box[2] + 32}
            clip["height"] = min(box[3] + 76, 950 - clip["y"])
            page.screenshot(path=Path(folder) / f"{name}.png", clip=clip)
