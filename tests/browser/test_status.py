"""What a node shows of its run, in both renderers: its status in full, and a run that failed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

# Load Image -> LLM Describe -> Display Anything
BUILD_GRAPH = """([file, onError]) => {
  app.graph.clear();
  const [load, describe, show] = ["LoadImage", "RefineryLLMDescribe", "RefineryDisplayAnything"]
    .map((type, index) => {
      const node = LiteGraph.createNode(type);
      node.pos = [30 + 450 * index, 110];
      app.graph.add(node);
      node.setSize([400, node.computeSize()[1]]);
      return node;
    });
  const set = (node, values) => {
    for (const widget of node.widgets) widget.value = values[widget.name] ?? widget.value;
  };
  const { values } = describe.widgets.find((w) => w.name === "on_error").options;
  set(load, { image: file });
  set(describe, { vision_model: "llava:latest", on_error: values[onError],
    custom_vision_prompt: "Write a caption.\\nName the colors." });
  load.connect(0, describe, describe.inputs.findIndex((i) => i.name === "image"));
  describe.connect(1, show, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [60, 0];
  app.graph.setDirtyCanvas(true, true);
  return [describe.id, show.id];
}"""
NODE = """(id) => {
  const node = app.graph.getNodeById(id);
  const box = node.widgets.find((w) => w.name === "custom_vision_prompt");
  return { failed: !!node.has_errors, box: box.computedHeight, height: node.size[1] };
}"""
SHOWN = """(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "held_text").value"""
QUEUE = "async () => { await app.queuePrompt(0, 1); }"
# Where the status stands, and how much of it is cut off by an element around it.
STATUS = """() => {
  const found = [...document.querySelectorAll(".refinery-status, .comfy-markdown-content")]
    .find((element) => element.innerText.includes("failed after"));
  if (!found) return null;
  let cut = 0;
  for (let one = found; one && one !== document.body; one = one.parentElement) {
    if (getComputedStyle(one).overflowY !== "visible" || one.matches(".dom-widget")) {
      cut = Math.max(cut, one.scrollHeight - one.clientHeight);
    }
  }
  return { text: found.innerText, cut };
}"""
TOAST = (
    """() => [...document.querySelectorAll(".p-toast-message")].map((e) => e.innerText).join()"""
)


def run(page: Any, comfyui: Any) -> dict[str, Any]:
    before = set(comfyui.get("/history"))
    page.evaluate(QUEUE)
    history = comfyui.new_run(before)
    page.wait_for_timeout(700)
    return history


def build(page: Any, comfyui: Any, color: str, *, stops: bool) -> list[int]:
    file = comfyui.save_input(Image.new("RGB", (64, 64), color))
    found = page.evaluate(BUILD_GRAPH, [file, int(stops)])
    page.wait_for_timeout(700)
    return found


def test_a_run_without_a_result_is_marked_and_readable(
    page: Any, comfyui: Any, scripted: Any, renderer: str
) -> None:
    models = scripted.models
    scripted.models = {}
    describe, _ = build(page, comfyui, "orange", stops=False)
    page.wait_for_function(f"(id) => ({NODE})(id).box > 0", arg=describe)
    before = page.evaluate(NODE, describe)
    assert run(page, comfyui)["status"]["status_str"] == "success", "the message is the result"
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"status-{renderer.replace(' ', '')}.png")
    after, status = page.evaluate(NODE, describe), page.evaluate(STATUS)
    assert after["failed"]
    assert "1 of 1 failed" in page.evaluate(TOAST)
    first, second = (line.strip() for line in status["text"].strip().splitlines()[:2])
    assert first.startswith("1 of 1 failed after ") and second.startswith("Error: The model")
    assert status["cut"] <= 1, "the whole message is seen"
    assert after["box"] >= min(before["box"], 90), "the node grows, not the text box shrinks"

    scripted.models = models
    run(page, comfyui)
    assert not page.evaluate(NODE, describe)["failed"]
    assert page.evaluate(NODE, describe)["height"] <= after["height"], "it does not grow each run"


def test_a_run_that_ends_early_takes_the_text_of_the_run_before(
    page: Any, comfyui: Any, scripted: Any
) -> None:
    describe, show = build(page, comfyui, "gold", stops=True)
    run(page, comfyui)
    assert page.evaluate(SHOWN, show)
    scripted.models = {}
    page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'seed').value = 5; }",
        describe,
    )
    assert run(page, comfyui)["status"]["status_str"] == "error"
    assert page.evaluate(SHOWN, show) == ""
