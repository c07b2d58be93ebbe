"""Labels, advanced inputs, and combo values of old workflows, in both renderers.

With SCREENSHOTS=FOLDER images of both main nodes are left there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

NODES = ("RefineryLLMImageRefine", "RefinerySDXLRefiner")
ADD = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [300, 80];
  app.graph.add(node);
  node.setSize([420, node.computeSize()[1]]);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.graph.setDirtyCanvas(true, true);
  return node.id;
}"""
LABELS = """(id) => Object.fromEntries(
  app.graph.getNodeById(id).widgets.map((w) => [w.name, w.label ?? w.name]))"""
SHOWN = "() => [...document.querySelectorAll('[data-node-id]')].map((n) => n.innerText).join(' ')"
OLD = """(id) => {
  const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
  const node = app.graph.getNodeById(id);
  const place = node.widgets.findIndex((w) => w.name === "on_error");
  saved.nodes[0].widgets_values[place] = "give the message";
  return saved;
}"""
PROMPT = "async () => (await app.graphToPrompt()).output"


@pytest.mark.parametrize("node_type", NODES)
def test_labels_and_advanced_inputs(
    page: Any, comfyui: Any, renderer: str, node_type: str, tmp_path: Path
) -> None:
    node = page.evaluate(ADD, node_type)
    page.wait_for_timeout(1500)
    labels = page.evaluate(LABELS, node)
    if node_type == "RefinerySDXLRefiner":
        names = ("num_inference_steps", "guidance_scale", "strength", "keep_colours")
        assert [labels[name] for name in names] == ["steps", "cfg", "strength", "keep_colors"]
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    version = "-".join(str(part) for part in comfyui.found.version)
    stem = f"{node_type}-{version}-{renderer.replace(' ', '')}"
    page.screenshot(path=shots / f"{stem}-closed.png")
    if renderer == "classic":
        return  # it shows all inputs
    closed = page.evaluate(SHOWN)
    assert "on_error" not in closed and "seed" in closed
    page.get_by_text("Show advanced inputs").first.click()
    page.wait_for_timeout(700)
    page.screenshot(path=shots / f"{stem}-open.png")
    assert "on_error" in page.evaluate(SHOWN)


def test_an_old_value_is_kept_and_sent(page: Any, renderer: str) -> None:
    node = page.evaluate(ADD, "RefineryLLMDescribe")
    saved = page.evaluate(OLD, node)
    page.evaluate("async (saved) => { await app.loadGraphData(saved); }", saved)
    page.wait_for_timeout(700)
    (sent,) = page.evaluate(PROMPT).values()
    assert sent["inputs"]["on_error"] == "give the message"
