"""The dialog "Show What Was Sent", by the context menu of a node, in both renderers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

# Load Image -> LLM Describe -> core's text preview, and a node that never ran
BUILD_GRAPH = """(file) => {
  app.graph.clear();
  const types = ["LoadImage", "RefineryLLMDescribe", "PreviewAny", "RefineryOllamaProcess"];
  const [load, describe, preview, process] = types.map((type, index) => {
    const node = LiteGraph.createNode(type);
    node.pos = [30 + 370 * index, 110];
    app.graph.add(node);
    node.setSize([330, node.computeSize()[1]]);
    return node;
  });
  load.widgets.find((w) => w.name === "image").value = file;
  describe.widgets.find((w) => w.name === "vision_model").value = "llava:latest";
  describe.widgets.find((w) => w.name === "custom_vision_prompt").value = "Name <b>the</b> shape.";
  load.connect(0, describe, describe.inputs.findIndex((i) => i.name === "image"));
  describe.connect(1, preview, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [20, 40];
  app.graph.setDirtyCanvas(true, true);
  return [describe.id, process.id];
}"""
TITLE = """(id) => {
  const node = app.graph.getNodeById(id);
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 100, node.pos[1] - 14]);
  const { left, top } = app.canvas.canvas.getBoundingClientRect();
  return [left + x, top + y];
}"""
DIALOG = "() => document.querySelector('dialog.refinery-dialog textarea')?.value"
CLOSED = "() => !document.querySelector('dialog.refinery-dialog')"
ENTRY = "Show What Was Sent"


def open_dialog(page: Any, node: int, menu: Path | None = None) -> str:
    """Right-click the node's title, press the entry, and return the dialog's text."""
    page.mouse.click(*page.evaluate(TITLE, node), button="right")
    page.wait_for_timeout(700)
    if menu:
        page.screenshot(path=menu)
    page.get_by_text(ENTRY, exact=True).first.click()
    page.wait_for_function(f"() => ({DIALOG})() !== undefined", timeout=5000)
    return page.evaluate(DIALOG)


def test_the_dialog_shows_what_was_sent(
    page: Any, comfyui: Any, scripted: Any, renderer: str, tmp_path: Path
) -> None:
    color = "plum" if renderer == "classic" else "pink"  # a kept answer would send nothing
    file = comfyui.save_input(Image.new("RGB", (640, 480), color))
    describe, process = page.evaluate(BUILD_GRAPH, file)
    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    history = comfyui.new_run(before)
    page.wait_for_timeout(700)
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    name = f"sent-{comfyui.found.version[1]}-{renderer.replace(' ', '')}"
    text = open_dialog(page, describe, shots / f"{name}-menu.png")
    page.screenshot(path=shots / f"{name}.png")
    (chat,) = [request for request in scripted.requests if request.kind == "chat"]
    assert f"options: {json.dumps(chat.body['options'])}" in text
    assert "[user]\nName <b>the</b> shape.\n[1 image, 640 x 480 JPEG, " in text
    assert "127.0.0.1" not in text and chat.body["messages"][-1]["images"][0][:40] not in text
    assert "Name <b>" not in json.dumps(history["outputs"]), "the history does not keep it"
    page.keyboard.press("r")  # the page's shortcut: not in a dialog
    dialog = page.locator("dialog.refinery-dialog")
    dialog.get_by_text("Copy", exact=True).click()
    assert dialog.get_by_text("Copied", exact=True).is_visible()
    dialog.get_by_text("Close", exact=True).click()
    page.wait_for_function(CLOSED)

    assert open_dialog(page, process).startswith("Run the node first.")
    page.keyboard.press("Escape")
    page.wait_for_function(CLOSED)
    saved = json.dumps(page.evaluate("async () => await app.graphToPrompt()"))
    assert "640 x 480" not in saved and "num_ctx" not in saved, "nothing that is saved has it"


def test_a_run_that_stops_shows_what_it_had_sent(page: Any, comfyui: Any, scripted: Any) -> None:
    file = comfyui.save_input(Image.new("RGB", (66, 64), "tan"))
    describe, _ = page.evaluate(BUILD_GRAPH, file)
    page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'on_error').value ="
        " 'stop the workflow'; }",
        describe,
    )
    for fault, words in (("empty", "[1 image, 66 x 64 PNG"), (None, "Nothing was sent")):
        scripted.script("chat", "empty") if fault else setattr(scripted, "models", {})
        before = set(comfyui.get("/history"))
        page.evaluate("async () => { await app.queuePrompt(0, 1); }")
        assert comfyui.new_run(before)["status"]["status_str"] == "error"
        page.wait_for_timeout(700)
        page.keyboard.press("Escape")  # the page's own dialog about the error
        page.wait_for_timeout(500)
        assert words in open_dialog(page, describe)
        page.keyboard.press("Escape")
        page.wait_for_function(CLOSED)


def test_other_nodes_have_no_such_entry(page: Any) -> None:
    assert not page.evaluate(
        """(entry) => ["LoadImage", "RefineryTextToFilename"].some((type) => {
          const menu = [];
          LiteGraph.createNode(type).getExtraMenuOptions?.(app.canvas, menu);
          return menu.some((item) => item?.content === entry);
        })""",
        ENTRY,
    )
