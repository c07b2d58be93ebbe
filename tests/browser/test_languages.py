"""The page in another language: our nodes' names and tooltips come from locales/."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# All companions in two rows.
BUILD = """(ids) => {
  app.graph.clear();
  let x = 20, y = 60;
  for (const id of ids) {
    const node = LiteGraph.createNode(id);
    app.graph.add(node);
    node.pos = [x, y];
    const [width, height] = node.computeSize();
    node.setSize([Math.max(300, width), height]);
    y += height + 50;
    if (y > 620) { x += 345; y = 60; }
  }
  app.canvas.ds.scale = 0.8;
  app.canvas.ds.offset = [60, 60];
  app.graph.setDirtyCanvas(true, true);
}"""
IDS = [
    *("RefineryLLMDescribe", "RefineryOllamaProcess", "RefineryWildcardProcessor"),
    *("RefineryReadyInstructions", "RefineryDisplayAnything", "RefineryFreeMemory"),
    *("RefineryLoadFolder", "RefinerySaveCaption", "RefineryTextToFilename"),
]


def test_a_french_page_has_french_nodes(page: Any, comfyui: Any, tmp_path: Path) -> None:
    french = json.loads((ROOT / "locales" / "fr" / "nodeDefs.json").read_text("utf-8"))
    comfyui.post("/settings", {"Comfy.Locale": "fr"}).raise_for_status()
    try:
        page.goto(comfyui.url)
        page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
        page.wait_for_function("!!window.LiteGraph?.registered_node_types?.RefineryFreeMemory")
        page.evaluate(BUILD, IDS)
        page.wait_for_timeout(1500)
        shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
        shots.mkdir(parents=True, exist_ok=True)
        version = "-".join(str(part) for part in comfyui.found.version)
        page.screenshot(path=shots / f"french-{version}.png")
        titles = page.evaluate("() => app.graph.nodes.map((node) => node.title)")
        assert titles == [french[node_id]["display_name"] for node_id in IDS]
    finally:
        comfyui.post("/settings", {"Comfy.Locale": "en"}).raise_for_status()


def test_the_companions_in_english(page: Any, comfyui: Any, tmp_path: Path) -> None:
    page.evaluate(BUILD, IDS)
    page.wait_for_timeout(1500)
    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    version = "-".join(str(part) for part in comfyui.found.version)
    page.screenshot(path=shots / f"companions-{version}.png")
    cut = page.evaluate(
        """() => app.graph.nodes.filter((node) => {
          const least = node.computeSize();
          return node.size[0] < least[0] - 1 || node.size[1] < least[1] - 1;
        }).map((node) => node.type)"""
    )
    assert cut == []
