"""The example workflows, in the API's form, in a real ComfyUI with a scripted Ollama."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from faulty_ollama import FaultyOllama
from host import ComfyHost, Refused
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FILES = {file.stem: file for file in sorted((ROOT / "tests/workflows/api").glob("*.json"))}
CORE = json.loads((ROOT / "tools" / "core_nodes.json").read_text(encoding="utf-8"))
TINY = ROOT / "tools" / "tiny_refiner" / "weights"
REFINER = "sd_xl_refiner_1.0"
FOLDERS = {
    "ckpt_name": "checkpoints",
    "checkpoint": "checkpoints",
    "unet_name": "diffusion_models",
    "vae_name": "vae",
    "clip_name": "clip_vision",
    "bg_removal_name": "background_removal",
}
"""Where core's loaders look for the file that an input names."""

Graph = dict[str, dict[str, Any]]


def graph(name: str) -> Graph:
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def unknown(host: ComfyHost, prompt: Graph) -> set[str]:
    return {entry["class_type"] for entry in prompt.values()} - set(host.object_info())


@pytest.fixture(scope="module")
def ready(comfyui: ComfyHost) -> ComfyHost:
    """The picture, and empty files where models are named: they are validated, never read."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    (comfyui.base / "input" / "my images").mkdir(exist_ok=True)
    for name in ("example.png", "my images/example.png"):
        comfyui.save_input(image, name)
    for prompt in map(graph, FILES):
        for entry in prompt.values():
            for id, folder in FOLDERS.items():
                name = entry["inputs"].get(id)
                if isinstance(name, str):
                    file = comfyui.base / "models" / folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
    return comfyui


def test_core_s_nodes_are_still_as_the_script_knows_them(comfyui: ComfyHost) -> None:
    has = comfyui.object_info()
    compared = 0
    for name, known in CORE.items():
        if name not in has:
            assert known["since"] != "0.3.64", f"{name} is not in this ComfyUI"
            continue
        for group, inputs in known["input"].items():
            for id, (kind, _) in inputs.items():
                spec = has[name]["input"][group][id]
                kinds = "COMBO" if isinstance(spec[0], list) else spec[0]
                assert set(kind.split(",")) <= set(kinds.split(",")), (name, id)
        order = [id for group in known["input"].values() for id in group]
        assert [id for id in has[name]["input"]["required"] if id in order] == order, name
        assert has[name]["output"][: len(known["output"])] == known["output"], name
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("name", FILES)
def test_a_workflow_is_accepted_with_files_of_that_name(
    ready: ComfyHost, ollama: FaultyOllama, name: str
) -> None:
    prompt = graph(name)
    if missing := unknown(ready, prompt):
        assert all(CORE[type]["since"] != "0.3.64" for type in missing)
        with pytest.raises(Refused) as refused:
            ready.queue(prompt)
        assert refused.value.answer["error"]["type"] in {"missing_node_type", "invalid_prompt"}
        return
    # Run and it would ask a model hub, or read an empty file: accepted is what is asked here.
    prompt_id = ready.queue(prompt)
    ready.post("/queue", {"delete": [prompt_id]}).raise_for_status()
    ready.interrupt()
    ready_again(ready)


def ready_again(host: ComfyHost) -> None:
    import time

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        queue = host.get("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            return
        time.sleep(0.1)
    raise AssertionError("the queue did not become empty")


def without(prompt: Graph, *types: str) -> Graph:
    """The graph without these nodes and all that stands behind them."""
    gone = {id for id, entry in prompt.items() if entry["class_type"] in types}
    while True:
        behind = {
            id
            for id, entry in prompt.items()
            for value in entry["inputs"].values()
            if isinstance(value, list) and value[0] in gone
        }
        if behind <= gone:
            return {id: entry for id, entry in prompt.items() if id not in gone}
        gone |= behind


@pytest.mark.parametrize("name", [name for name in FILES if name != "Refine, then 3D"])
def test_a_workflow_runs(ready: ComfyHost, ollama: FaultyOllama, name: str) -> None:
    """Text to image is left out (SDXL is no small thing); the refiner is the tiny one."""
    if unknown(ready, graph(name)):
        pytest.skip("this ComfyUI is too old for it")
    prompt = without(graph(name), "CheckpointLoaderSimple")
    checkpoints = ready.base / "models" / "checkpoints"
    for entry in prompt.values():
        entry["inputs"].pop("mask", None)  # the example has none
        if entry["class_type"] in {"RefinerySDXLRefiner", "RefineryRefineFolder"}:
            if not (TINY / "tiny_refiner.safetensors").is_file():
                pytest.skip("the tiny refiner's weights are not in this checkout")
            if not (checkpoints / REFINER).exists():
                shutil.copytree(TINY / "tiny_refiner", checkpoints / REFINER)
                shutil.copy2(
                    TINY / "tiny_refiner.safetensors", checkpoints / f"{REFINER}.safetensors"
                )
            entry["inputs"]["working_size"] = "keep size"
    run = ready.run(prompt, timeout_s=120)
    assert run.ok, run.error
    if any("model" in key for entry in prompt.values() for key in entry["inputs"]):
        assert ollama.loads, "nobody was asked"
    pictures = [id for id, entry in prompt.items() if entry["class_type"] == "SaveImage"]
    for id in pictures:
        with Image.open(ready.saved(run, id)[0]) as saved:
            assert saved.size == (128, 96)
    texts = [text for shown in run.outputs.values() for text in shown.get("text", [])]
    assert texts or pictures
    if "new" in name.lower() or "vary" in name:
        assert any("Style: " in text and "__" not in text for text in texts), texts


def test_the_page_s_files_are_served_as_templates(comfyui: ComfyHost) -> None:
    listed = comfyui.get("/workflow_templates")
    assert sorted(listed[comfyui.pack_folder.name]) == sorted(FILES)
    for name in FILES:
        address = f"{comfyui.url}/api/workflow_templates/{comfyui.pack_folder.name}/{name}.json"
        assert requests.get(address, timeout=30).json()["version"] == 0.4
