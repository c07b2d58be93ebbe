"""Values of combos as version 0.1 saved them: they queue, and give the same result as today's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_ollama import FaultyOllama, vision_model
from host import ComfyHost, Graph, Refused, Run, node
from PIL import Image

WEIGHTS = Path(__file__).resolve().parents[2] / "tools" / "tiny_refiner" / "weights"
OLD = {
    "batch_mode": "all images in one question",
    "llm_error": "give the message",
    "working_size": "as it is",
    "refiner_error": "pass the image on",
}
NEW = {
    "batch_mode": "one text for all images",
    "llm_error": "output error text",
    "working_size": "keep size",
    "refiner_error": "return original image",
}


def graph(host: ComfyHost, values: dict[str, str]) -> Graph:
    """Two descriptions, of which one fails, and two refinements, of which one fails."""
    image = host.save_input(Image.linear_gradient("L").resize((64, 48)), "old_values.png")

    def describe(model: str, **more: str) -> dict[str, Any]:
        return node("RefineryLLMDescribe", image=["1", 0], vision_model=model, **more)

    def refine(checkpoint: str, **more: str) -> dict[str, Any]:
        settings = {"prompt": "", "negative_prompt": "", "strength": 0.3, "guidance_scale": 7.5}
        return node(
            "RefinerySDXLRefiner", image=["1", 0], checkpoint=checkpoint, num_inference_steps=20,
            seed=0, **settings, **more,
        )  # fmt: skip

    return {
        "1": node("LoadImage", image=image),
        "2": describe("llava", batch_mode=values["batch_mode"]),
        "3": describe("gone", on_error=values["llm_error"]),
        "4": refine("tiny_refiner.safetensors", working_size=values["working_size"]),
        "5": refine("gone.safetensors", on_error=values["refiner_error"]),
        "12": node("PreviewAny", source=["2", 1]),
        "13": node("PreviewAny", source=["3", 1]),
        "14": node("SaveImage", images=["4", 0], filename_prefix="old_values"),
        "15": node("SaveImage", images=["5", 0], filename_prefix="old_values"),
    }


def test_old_values_give_the_same_result(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    shutil.copytree(WEIGHTS, comfyui.base / "models" / "checkpoints", dirs_exist_ok=True)
    ollama.models["llava:latest"] = vision_model(answer=lambda request: f"{request.image_sizes}")

    def result(values: dict[str, str]) -> tuple[list[str], list[np.ndarray]]:
        run: Run = comfyui.run(graph(comfyui, values), timeout_s=300)
        assert run.ok, run.error
        assert {"2", "3", "4", "5"} <= set(run.order), "nothing of this comes from the cache"
        files = [file for id in ("14", "15") for file in comfyui.saved(run, id)]
        pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
        return run.texts("12") + run.texts("13"), pixels

    old_texts, old_pixels = result(OLD)
    new_texts, new_pixels = result(NEW)
    assert old_texts == new_texts
    assert old_texts[1].startswith("Error: ")
    assert len(old_pixels) == 2
    for old, new in zip(old_pixels, new_pixels, strict=True):
        np.testing.assert_array_equal(old, new)
    assert not np.array_equal(*new_pixels), "one was refined, one returned as it was"


@pytest.mark.parametrize("value", ["as it was", "give the message"])
def test_other_values_are_refused_with_what_may_be_there(comfyui: ComfyHost, value: str) -> None:
    prompt = graph(comfyui, NEW)
    prompt["4"]["inputs"]["working_size"] = value
    with pytest.raises(Refused) as refused:
        comfyui.queue(prompt)
    assert f'working_size is "{value}", but must be one of "auto", "keep size".' in str(
        refused.value.answer
    )
