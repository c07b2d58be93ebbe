"""What the page shows when a server fails: a fault of each kind of docs/quality/faults.md.

With SCREENSHOTS=FOLDER the images of docs/quality/images are left there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

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
  const described = make("PreviewAny", 900, 110, 400, 260);
  const refined = make("PreviewAny", 900, 450, 400, 260);
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
}"""
BOTH_TEXTS_HOLD = """(words) => {
  const shown = app.graph.nodes.filter((node) => node.type === "PreviewAny");
  return shown.length === 2 && shown.every((node) =>
    node.widgets?.some((w) => String(w.value ?? "").includes(words)));
}"""
PAGE_HOLDS = """(words) => [...document.querySelectorAll("textarea, p, span, div")].some(
  (element) => (element.value ?? element.textContent ?? "").includes(words))
  || app.graph.nodes.some((node) => node.widgets?.some((w) =>
    String(w.value ?? "").includes(words)))"""

FAULTS = [
    ("refused", "Can't reach Ollama at"),
    ("drop", "The connection to Ollama at"),
    ("cut_mid_stream", "broke off after"),
    ("thinking_only", "it used up num_predict for thinking"),
    ("html", "This is not what Ollama answers"),
    ("signin", "ollama signin"),
    ("not_found", "Download it with: ollama pull llava"),
    ("oom", "does not have enough memory for"),
]


def queue(page: Any, comfyui: Any) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "scene.png"
    picture = Image.open(example).convert("RGB") if example.is_file() else None
    name = comfyui.save_input(picture or Image.new("RGB", (512, 512), "red"), "scene.png")
    page.evaluate("async () => { await app.refreshComboInNodes(); }")  # the file is new
    page.evaluate(BUILD_GRAPH, name)
    page.wait_for_timeout(1000)
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")


def shoot(page: Any, name: str, folder: Path) -> None:
    shots = Path(os.environ.get("SCREENSHOTS", folder))
    shots.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"{name}.png")


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_the_page_shows_the_message_in_both_texts(
    page: Any, comfyui: Any, scripted: FaultyOllama, tmp_path: Path, fault: str, words: str
) -> None:
    if fault == "refused":
        scripted.stop_listening()
    else:
        scripted.always("chat", fault)
    queue(page, comfyui)
    page.wait_for_function(BOTH_TEXTS_HOLD, arg=words, timeout=60_000)
    shoot(page, f"fault-{fault.replace('_', '-')}", tmp_path)
    assert scripted.loaded == []


def test_a_second_try_is_seen_on_the_node(
    page: Any, comfyui: Any, scripted: FaultyOllama, tmp_path: Path
) -> None:
    scripted.script("chat", "busy", "busy", "busy")
    queue(page, comfyui)
    page.wait_for_function(PAGE_HOLDS, arg="the server is busy, trying again", timeout=60_000)
    shoot(page, "fault-busy-second-try", tmp_path)
    page.wait_for_function(BOTH_TEXTS_HOLD, arg="A ", timeout=60_000)
