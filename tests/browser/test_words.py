"""Words in a saved image: opened on the page they are on the node, and run without a server."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."

# Load Image -> LLM Image Refine -> Save Image, and the rewrite -> core's text preview
BUILD_GRAPH = """(file) => {
  app.graph.clear();
  const types = ["LoadImage", "RefineryLLMImageRefine", "SaveImage", "PreviewAny"];
  const [load, refine, save, preview] = types.map((type, index) => {
    const node = LiteGraph.createNode(type);
    node.pos = [30 + 430 * index, 110];
    app.graph.add(node);
    return node;
  });
  const set = (node, name, value) => { node.widgets.find((w) => w.name === name).value = value; };
  set(load, "image", file);
  set(refine, "vision_model", "llava:latest");
  set(refine, "text_model", "llama3.2:latest");
  load.connect(0, refine, refine.inputs.findIndex((i) => i.name === "image"));
  refine.connect(0, save, 0);
  refine.connect(2, preview, 0);
  app.canvas.ds.scale = 0.8;
  app.canvas.ds.offset = [20, 40];
}"""
OPEN_FILE = """async ([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  await app.handleFile(new File([bytes], name, { type: "image/png" }));
}"""
NODE = "app.graph.nodes.find((node) => node.type === 'RefineryLLMImageRefine')"
STATUS = f"""() => {NODE}?.widgets?.find((w) => w.name === "$$node-text-preview")?.value ?? "" """


def queue(page: Any, comfyui: Any) -> Any:
    before = set(comfyui.get("/history"))
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    return comfyui.new_run(before)


def outputs(run: Any, key: str) -> list[Any]:
    return [output[key] for output in run["outputs"].values() if key in output]


def test_words_come_back_from_a_saved_image(
    page: Any, comfyui: Any, scripted: Any, tmp_path: Path
) -> None:
    file = comfyui.save_input(Image.new("RGB", (96, 64), "firebrick"))
    page.evaluate(BUILD_GRAPH, file)
    run = queue(page, comfyui)
    (saved,) = [comfyui.base / image["type"] / image["subfolder"] / image["filename"]
                for images in outputs(run, "images") for image in images
                if image["type"] == "output"]  # fmt: skip
    data = saved.read_bytes()
    done = subprocess.run(
        [sys.executable, str(ROOT), "words", str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert RED in done.stdout and CRIMSON in done.stdout and "llava:latest" in done.stdout

    page.evaluate("() => app.graph.clear()")
    page.evaluate(OPEN_FILE, ["saved.png", base64.b64encode(data).decode()])
    page.wait_for_function(f"({STATUS})().includes({CRIMSON!r})", timeout=10_000)
    assert page.evaluate(f"{NODE}.properties.image_refinery.description") == [RED]
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=shots / f"words-{comfyui.found.version[1]}.png")

    scripted.requests.clear()
    page.evaluate(f"""() => {{
      const node = {NODE};
      node.widgets.find((w) => w.name === "use_recorded_words").value = true;
      node.widgets.find((w) => w.name === "vision_model").value = "a model that nobody has";
    }}""")
    again = queue(page, comfyui)
    assert again["status"]["status_str"] == "success"
    assert [CRIMSON] in outputs(again, "refined_output")
    # The page's lists of models may have been read meanwhile.
    assert not {"load", "chat"} & {request.kind for request in scripted.requests}


def test_a_status_among_the_saved_values_is_not_an_order_to_use_words(page: Any) -> None:
    """ComfyUI 0.3.64 saved it there, in workflows of before this widget too."""
    page.evaluate(BUILD_GRAPH, "example.png")
    graph = page.evaluate("() => app.graph.serialize()")
    (node,) = [one for one in graph["nodes"] if one["type"] == "RefineryLLMImageRefine"]
    assert node["widgets_values"][-1] is False
    for values in (
        [*node["widgets_values"][:-1], "described 1 image"],
        [*node["widgets_values"], "described 1 image"],
    ):
        node["widgets_values"] = values
        page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
        page.wait_for_timeout(500)
        use = f"{NODE}.widgets.find((w) => w.name === 'use_recorded_words').value"
        assert page.evaluate(use) is False
        assert page.evaluate(f"{NODE}.widgets.find((w) => w.name === 'server').value") == "default"
