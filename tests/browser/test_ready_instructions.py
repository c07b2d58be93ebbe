"""Prompt Presets in the page: choosing fills the field, loading leaves it, R reads anew."""

from __future__ import annotations

import os
from typing import Any

ADD_NODE = """() => {
  const node = LiteGraph.createNode("RefineryReadyInstructions");
  app.graph.add(node);
  return node.id;
}"""
TEXT = """(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "text").value"""
PICK = """([id, name]) => {
  const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === "pick");
  widget.value = name;
  widget.callback(name, app.canvas, app.graph.getNodeById(id));
}"""
RELOAD = """async () => {
  await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())));
}"""


def test_picking_fills_the_field_and_loading_leaves_it(page: Any) -> None:
    node = page.evaluate(ADD_NODE)
    assert page.evaluate(TEXT, node).startswith("Expand this description")
    page.evaluate(PICK, [node, "Comic panel"])
    assert "comic book panel" in page.evaluate(TEXT, node)
    edited = """(id) => {
      app.graph.getNodeById(id).widgets.find((w) => w.name === "text").value = "mine";
    }"""
    page.evaluate(edited, node)
    page.evaluate(RELOAD)
    assert page.evaluate(TEXT, node) == "mine"


def test_a_preset_with_a_header_fills_in_only_its_text(page: Any) -> None:
    node = page.evaluate(ADD_NODE)
    page.evaluate(PICK, [node, "Prompt for FLUX.2 as JSON"])
    assert page.evaluate(TEXT, node).startswith("Turn this description into a JSON prompt")
    slots = """(id) => {
      const node = app.graph.getNodeById(id);
      const consumer = LiteGraph.createNode("RefineryLLMImageRefine");
      app.graph.add(consumer);
      node.pos = [60, 120];
      consumer.pos = [520, 120];
      const place = consumer.inputs.findIndex((i) => i.name === "text_options");
      const made = node.connect(1, consumer, place) != null;
      app.graph.setDirtyCanvas(true, true);
      return [made, node.outputs.map((o) => o.name), node.title];
    }"""
    assert page.evaluate(slots, node) == [True, ["instructions", "options"], "Prompt Presets"]
    if folder := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=f"{folder}/presets.png")


def test_r_shows_a_file_of_one_s_own(page: Any, comfyui: Any) -> None:
    folder = comfyui.base / "user" / "image-refinery" / "instructions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "haiku.txt").write_text("Write a haiku.")
    node = page.evaluate(ADD_NODE)
    page.keyboard.press("r")
    page.wait_for_function(
        """(id) => {
          const values = app.graph.getNodeById(id).widgets
            .find((w) => w.name === "pick").options.values;
          return (typeof values === "function" ? values() : values).includes("haiku");
        }""",
        arg=node,
        timeout=30_000,
    )
    page.evaluate(PICK, [node, "haiku"])
    assert page.evaluate(TEXT, node) == "Write a haiku."
