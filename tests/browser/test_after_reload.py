"""A reload of the page keeps what our nodes show, without another run."""

from __future__ import annotations

from typing import Any

from PIL import Image

# Load Image -> LLM Describe -> Display Anything
BUILD_GRAPH = """async (file) => {
  app.graph.clear();
  const [load, describe, show] = ["LoadImage", "RefineryLLMDescribe", "RefineryDisplayAnything"]
    .map((type, index) => {
      const node = LiteGraph.createNode(type);
      node.pos = [30 + 450 * index, 110];
      app.graph.add(node);
      return node;
    });
  load.widgets.find((w) => w.name === "image").value = file;
  describe.widgets.find((w) => w.name === "vision_model").value = "llava:latest";
  load.connect(0, describe, describe.inputs.findIndex((i) => i.name === "image"));
  describe.connect(1, show, 0);
  app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  return [describe.id, show.id];
}"""
READY = """() => window.app?.graph && window.app.extensionManager
  && window.LiteGraph?.registered_node_types?.RefineryLLMImageRefine"""
SHOWN = """([describe, show]) => {
  const value = (id, name) => String(app.graph.getNodeById(id)?.widgets
    ?.find((w) => w.name === name)?.value ?? "");
  return [value(describe, "$$node-text-preview"), value(show, "held_text")];
}"""


def queue(page: Any, comfyui: Any) -> dict[str, Any]:
    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    history = comfyui.new_run(before)
    page.wait_for_timeout(1500)  # the page writes its draft of the workflow a moment later
    return history


def reload(page: Any) -> None:
    page.reload()
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_timeout(3000)


def test_texts_are_there_after_a_reload(page: Any, comfyui: Any, renderer: str) -> None:
    file = comfyui.save_input(Image.new("RGB", (72, 64), "coral"))
    ids = page.evaluate(BUILD_GRAPH, file)
    if renderer != "classic":  # and so it is no cleared workflow, which has no id of its own
        page.evaluate("async () => { await app.loadGraphData(app.graph.serialize()); }")
    queue(page, comfyui)
    before = page.evaluate(SHOWN, ids)
    assert "described 1 image in" in before[0] and "red circle" in before[1]
    runs = set(comfyui.get("/history"))
    for _ in range(2):
        reload(page)
        assert page.evaluate(SHOWN, ids) == before
    assert set(comfyui.get("/history")) == runs, "nothing ran again"
