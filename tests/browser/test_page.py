"""What the page does with LLM Image Refine: lists of models, refresh, seeds, live text."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ADD_NODE = """() => {
  const node = LiteGraph.createNode("RefineryLLMImageRefine");
  app.graph.add(node);
  return node.id;
}"""
WIDGETS = """(id) => Object.fromEntries(
  app.graph.getNodeById(id).widgets.map((w) => [w.name, w.value]))"""
CHOICES = """([id, name]) => {
  const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === name);
  const values = widget.options.values;
  return typeof values === "function" ? values() : values;
}"""
# Load Image, LLM Image Refine, and core's text previews on both texts.
BUILD_GRAPH = """(picture) => {
  app.graph.clear();
  const make = (type, x, y, width, height) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    node.setSize([width, Math.max(height, node.computeSize()[1])]);
    return node;
  };
  const load = make("LoadImage", 30, 110, 290, 380);
  const refine = make("RefineryLLMImageRefine", 370, 110, 470, 780);
  const described = make("PreviewAny", 900, 110, 400, 230);
  const refined = make("PreviewAny", 900, 410, 400, 230);
  described.title = "description";
  refined.title = "refined_output";
  load.widgets.find((w) => w.name === "image").value = picture;
  load.widgets.find((w) => w.name === "image").callback?.(picture);
  load.connect(0, refine, 0);
  refine.connect(1, described, 0);
  refine.connect(2, refined, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [60, 40];
  app.graph.setDirtyCanvas(true, true);
  return refine.id;
}"""


def until(page: Any, expression: str, argument: Any = None, timeout_s: float = 30.0) -> None:
    page.wait_for_function(expression, arg=argument, timeout=timeout_s * 1000)


def test_r_shows_a_model_that_was_pulled_a_second_ago(page: Any, scripted: FaultyOllama) -> None:
    from faulty_ollama import vision_model

    node = page.evaluate(ADD_NODE)
    before = page.evaluate(CHOICES, [node, "vision_model"])
    assert "llava:latest" in before and "moondream:latest" not in before
    scripted.models["moondream:latest"] = vision_model("moondream")
    time.sleep(1.1)
    page.keyboard.press("r")
    until(
        page,
        "([id, name]) => { const v = app.graph.getNodeById(id).widgets"
        ".find((w) => w.name === name).options.values; "
        'return (typeof v === "function" ? v() : v).includes("moondream:latest"); }',
        [node, "vision_model"],
    )
    assert page.evaluate(WIDGETS, node)["vision_model"] == "llava:latest", "the choice stays"


def test_a_new_nodes_seed_stays_as_it_is(page: Any) -> None:
    widgets = page.evaluate(WIDGETS, page.evaluate(ADD_NODE))
    assert widgets["seed"] == 0
    assert widgets["control_after_generate"] == "fixed"


def test_saved_names_of_models_that_are_not_here_stay(page: Any) -> None:
    node = page.evaluate(ADD_NODE)
    saved = page.evaluate(
        """(id) => {
          const node = app.graph.getNodeById(id);
          const set = (name, value) => node.widgets.find((w) => w.name === name).value = value;
          set("vision_model", "hf.co/org/seer:Q4_K_M");
          set("text_model", "elsewhere:70b");
          set("control_after_generate", "increment");
          return app.graph.serialize();
        }""",
        node,
    )
    page.evaluate("async (saved) => { await app.loadGraphData(saved); }", saved)
    widgets = page.evaluate(WIDGETS, node)
    assert widgets["vision_model"] == "hf.co/org/seer:Q4_K_M"
    assert widgets["text_model"] == "elsewhere:70b"
    assert widgets["control_after_generate"] == "increment"


def test_a_run_shows_its_text_live_and_its_result(
    page: Any, comfyui: Any, scripted: FaultyOllama, tmp_path: Path
) -> None:
    from faulty_ollama import Reply, text_model, vision_model

    scripted.models = {
        "llava:latest": vision_model(
            answer="A large red circle at the top left and a small blue square at the bottom "
            "right, on a white background."
        ),
        "llama3.2:latest": text_model(
            answer="Minimalist geometric composition, a bold crimson disc high on the left, a "
            "tiny cobalt square low on the right, pure white ground, flat light, clean edges."
        ),
    }
    scripted.always("chat", Reply(token_s=0.08))
    example = Path(__file__).resolve().parents[2] / "examples" / "scene.png"
    if example.is_file():
        picture = comfyui.save_input(Image.open(example).convert("RGB"), "scene.png")
    else:
        picture = comfyui.save_input(Image.new("RGB", (512, 512), "red"), "scene.png")
    page.evaluate(BUILD_GRAPH, picture)
    page.wait_for_timeout(1500)
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    until(
        page,
        """() => [...document.querySelectorAll("textarea, p, span, div")].some((element) =>
             (element.value ?? element.textContent ?? "").includes("A large red circle"))
           || app.graph.nodes.some((node) => node.widgets?.some((w) =>
             String(w.value ?? "").includes("A large red")))""",
    )
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots / "running.png")
    until(
        page,
        """() => app.graph.nodes.filter((node) => node.type === "PreviewAny").every((node) =>
             node.widgets?.some((w) => String(w.value ?? "").includes("ottom right")
               || String(w.value ?? "").includes("clean edges")))""",
    )
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "llm-image-refine.png")
    assert (shots / "llm-image-refine.png").stat().st_size > 20_000


def test_the_page_serves_our_script(page: Any, comfyui: Any) -> None:
    scripts = [path for path in comfyui.get("/extensions") if path.endswith("/js/refinery.js")]
    assert len(scripts) == 1
    if pytest.importorskip("requests"):
        assert "imagerefinery.models" in comfyui.get_text(scripts[0])
