"""Describe Tiles, and SDXL Refiner's scale with a real upscale model, in a real ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from host import TINY, ComfyHost, Graph, Link, node, put_tiny
from PIL import Image
from safetensors.torch import save_file

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

LLAVA = {"vision_model": "llava:latest", "custom_vision_prompt": ""}
ESRGAN = "four-times.safetensors"


@pytest.fixture(scope="module")
def refinery(comfyui: ComfyHost) -> ComfyHost:
    put_tiny(comfyui)
    folder = comfyui.base / "models" / "upscale_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(four_times(), folder / ESRGAN)
    return comfyui


def four_times(features: int = 8, growth: int = 32) -> dict[str, torch.Tensor]:
    """The weights of an ESRGAN that repeats each pixel four times in each direction, as BGR."""
    weights: dict[str, torch.Tensor] = {}

    def layer(name: str, inputs: int, outputs: int, copied: int = 0) -> None:
        weight = torch.zeros(outputs, inputs, 3, 3)
        for channel in range(copied):
            weight[channel, channel, 1, 1] = 1
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight, torch.zeros(outputs)

    layer("conv_first", 3, features, 3)
    for block in (1, 2, 3):
        for index in range(5):
            outputs = features if index == 4 else growth
            layer(f"body.0.rdb{block}.conv{index + 1}", features + growth * index, outputs)
    layer("conv_body", features, features)
    for name in ("conv_up1", "conv_up2", "conv_hr"):
        layer(name, features, features, 3)
    layer("conv_last", features, 3, 3)
    weights["conv_last.weight"] = weights["conv_last.weight"].flip(0).contiguous()
    return weights


def refine(image: Link, **inputs: Any) -> dict[str, Any]:
    usual = {
        "checkpoint": TINY,
        "prompt": "sharp",
        "negative_prompt": "",
        "strength": 0.3,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "seed": 0,
        "working_size": "keep size",
    }
    return node("RefinerySDXLRefiner", image=image, **(usual | inputs))


def pixels(host: ComfyHost, run: Any, id: str) -> np.ndarray:
    (path,) = host.saved(run, id)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def test_each_tile_is_described_and_refined(refinery: ComfyHost, ollama: FaultyOllama) -> None:
    names = [refinery.save_input(noise(100, 3000)), refinery.save_input(noise(90, 70))]
    graph: Graph = {"1": node("LoadImage", image=names[0]), "2": node("LoadImage", image=names[1])}
    for number, source in (("3", "1"), ("6", "2")):
        tiles, refined = str(int(number) + 1), str(int(number) + 2)
        same = {"working_size": "keep size"}
        graph[tiles] = node("RefineryDescribeTiles", image=[source, 0], **LLAVA, **same)
        graph[refined] = refine([source, 0], tile_prompts=[tiles, 1])
        graph[f"{number}0"] = node("SaveImage", images=[refined, 0], filename_prefix="tiles")
        graph[f"{number}1"] = node("PreviewAny", source=[tiles, 0])
    run = refinery.run(graph, timeout_s=300)
    assert run.ok, run.error
    assert pixels(refinery, run, "30").shape == (100, 3000, 3)
    assert len(run.texts("4")) == 4 and len(run.texts("7")) == 1
    sizes = [one.image_sizes[0] for one in ollama.requests if one.images]
    assert len(sizes) == 5 and (70, 90) in sizes


def test_no_tile_is_described_for_a_refiner_that_is_off(
    refinery: ComfyHost, ollama: FaultyOllama
) -> None:
    name = refinery.save_input(noise(60, 50))
    graph: Graph = {
        "1": node("LoadImage", image=name),
        "2": node("RefineryDescribeTiles", image=["1", 0], **LLAVA),
        "3": refine(["1", 0], tile_prompts=["2", 1], strength=0.0),
        "4": node("SaveImage", images=["3", 0], filename_prefix="off"),
    }
    assert refinery.run(graph, timeout_s=300).ok
    graph["3"] = refine(["1", 0], tile_prompts=["2", 1], enabled=False)
    assert refinery.run(graph, timeout_s=300).ok
    assert not [one for one in ollama.requests if one.images]


def test_tile_prompts_of_another_image_end_the_run(
    refinery: ComfyHost, ollama: FaultyOllama
) -> None:
    graph: Graph = {
        "1": node("LoadImage", image=refinery.save_input(noise(60, 50))),
        "2": node("LoadImage", image=refinery.save_input(noise(60, 80))),
        "3": node("RefineryDescribeTiles", image=["1", 0], **LLAVA, working_size="keep size"),
        "4": refine(["2", 0], tile_prompts=["3", 1]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="other"),
    }
    run = refinery.run(graph, timeout_s=300)
    words = run.error["exception_message"]
    assert "they are for an image of 50 x 60 px, and this one is 80 x 60 px" in words


def test_scale_with_and_without_an_upscale_model(refinery: ComfyHost) -> None:
    image = noise(500, 700)
    graph: Graph = {
        "1": node("LoadImage", image=refinery.save_input(image)),
        "2": node("UpscaleModelLoader", model_name=ESRGAN),
        "3": refine(["1", 0], scale=2.0),
        "4": refine(["1", 0], scale=2.0, upscale_model=["2", 0]),
        "5": refine(["1", 0], scale=2.0, upscale_model=["2", 0], strength=0.0),
    }
    for id in ("3", "4", "5"):
        graph[f"{id}0"] = node("SaveImage", images=[id, 0], filename_prefix=f"scale{id}")
    run = refinery.run(graph, timeout_s=300)
    assert run.ok, run.error
    lanczos, model, plain = (pixels(refinery, run, id) for id in ("30", "40", "50"))
    assert lanczos.shape == model.shape == plain.shape == (1000, 1400, 3)
    # Twice as large, from the model's four times, whose colors show that it was the model.
    doubled = np.asarray(image, np.float32)[..., ::-1].repeat(2, 0).repeat(2, 1) / 255
    assert np.abs(plain - doubled)[4:-4, 4:-4].mean() < 0.01
    assert 0.001 < np.abs(model - plain).mean() < 0.05 < 0.1 < np.abs(model - lanczos).mean()
