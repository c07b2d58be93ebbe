"""Check Setup on the page: the menu's command, its dialog, and the node with its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

COMMAND = "ImageRefinery.CheckSetup"
BUILD = """() => {
  app.graph.clear();
  const node = LiteGraph.createNode("RefineryCheckSetup");
  node.pos = [200, 120];
  app.graph.add(node);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.graph.setDirtyCanvas(true, true);
  return node.id;
}"""
PRESS = """async (id) => {
  const node = app.graph.getNodeById(id);
  await node.widgets.find((w) => w.name === "Copy report").callback();
}"""
SAVED = """async () => {
  const { output, workflow } = await app.graphToPrompt();
  return [JSON.stringify(output), JSON.stringify(workflow)];
}"""


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clipboard(page: Any) -> str:
    return page.evaluate("async () => await navigator.clipboard.readText()")


def allow(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])


def test_the_command_shows_the_report_and_copies_it(page: Any, comfyui: Any, shots: Path) -> None:
    allow(page)
    page.evaluate("(id) => app.extensionManager.command.execute(id)", COMMAND)
    dialog = page.locator("dialog.refinery-dialog")
    box = dialog.locator("textarea")
    dialog.get_by_role("button", name="Copy report").click(timeout=60_000)
    dialog.get_by_role("button", name="Copied").wait_for()
    text = box.input_value()
    assert text.startswith("Image Refinery ") and "llava:latest: completion, vision" in text
    assert clipboard(page) == text
    version = "-".join(map(str, comfyui.found.version))
    page.screenshot(path=shots / f"check-setup-dialog-{version}.png")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_the_menu_has_the_command(page: Any, comfyui: Any, shots: Path) -> None:
    page.locator(".comfyui-logo-menu-trigger, .comfy-command-menu, .comfyui-logo").first.click()
    page.wait_for_timeout(600)
    page.get_by_text("Help", exact=True).first.hover()
    page.wait_for_timeout(600)
    version = "-".join(map(str, comfyui.found.version))
    page.screenshot(path=shots / f"check-setup-menu-{version}.png")
    page.get_by_text("Image Refinery: Check Setup").first.click()
    page.locator("dialog.refinery-dialog").wait_for()


def test_a_page_without_a_clipboard_copies_too(page: Any) -> None:
    allow(page)
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', {get: () => undefined})")
    page.evaluate("(id) => app.extensionManager.command.execute(id)", COMMAND)
    dialog = page.locator("dialog.refinery-dialog")
    dialog.get_by_role("button", name="Copy report").click(timeout=60_000)
    box = dialog.locator("textarea")
    dialog.get_by_role("button", name="Copied").wait_for()
    chosen = "(box) => box.value.slice(box.selectionStart, box.selectionEnd)"
    assert box.evaluate(chosen) == box.input_value() != ""


def test_the_node_shows_its_report_and_saves_none(
    page: Any, comfyui: Any, renderer: str, shots: Path
) -> None:
    allow(page)
    number = page.evaluate(BUILD)
    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    run = comfyui.new_run(before)
    (text,) = run["outputs"][str(number)]["text"]
    page.wait_for_timeout(1000)
    page.screenshot(path=shots / f"check-setup-node-{renderer}.png")
    boxes = page.locator("textarea:visible").evaluate_all("all => all.map((b) => b.value)")
    assert boxes == [text]
    page.evaluate(PRESS, number)
    assert clipboard(page) == text
    for saved in page.evaluate(SAVED):
        assert "llava" not in saved and "Image Refinery 0" not in saved
