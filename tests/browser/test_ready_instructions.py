"""Prompt Presets in the page: choosing fills the field, loading leaves it, R reads anew."""

from __future__ import annotations

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
