"""Refine Splat in a real ComfyUI: file to file, a batch, cancel, and where it is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host import PROBE_PACK, ComfyHost, Graph, node, put_tiny
from image_refinery.refine.splats import Splat, read_ply, write_ply
from PIL import Image

TINY_PACK = PROBE_PACK.parent / "tiny_pack"
TINY = "tiny_refiner.safetensors"
HOW: dict[str, Any] = {"views": 2, "passes": 2, "num_inference_steps": 4, "strength": 0.25}
HOW |= {"prompt": "", "negative_prompt": "", "seed": 1}


@pytest.fixture(scope="module")
def splats(found_comfyui: Any, tmp_path_factory: Any) -> Iterator[ComfyHost]:
    """A ComfyUI with the tiny refiner and the tiny pack."""
    packs = {"tiny-pack": TINY_PACK}
    base: Path = tmp_path_factory.mktemp("splats")
    env = {"OMP_NUM_THREADS": "1", "OLLAMA_BASE_URL": "http://127.0.0.1:9"}
    with ComfyHost(found_comfyui, base, env=env, packs=packs) as running:
        put_tiny(running)
        yield running


@pytest.fixture
def with_splats(splats: ComfyHost, found_comfyui: Any) -> ComfyHost:
    if found_comfyui.version < (0, 23):
        pytest.skip("this ComfyUI has no splats")
    return splats


def put_splat(host: ComfyHost, name: str, splat: Splat) -> dict[str, Any]:
    """Write a file into the input folder; return the node that loads it."""
    write_ply(splat, host.base / "input" / name)
    size = {"width": 512, "height": 512}
    return node("Load3DAdvanced", model_file=name, viewport_state={}, **size)


def refine(source: str, **inputs: Any) -> dict[str, Any]:
    return node("RefinerySplat", splat=[source, 0], checkpoint=TINY, **(HOW | inputs))


def told(run: Any) -> str:
    return "\n".join([run.error["exception_message"], *run.error["traceback"][-3:]])


def pixels(files: list[Path]) -> list[np.ndarray]:
    return [np.asarray(Image.open(file).convert("RGB"), np.int16) for file in files]


def test_it_is_there_only_where_comfyui_has_splats(splats: ComfyHost, found_comfyui: Any) -> None:
    known = "RefinerySplat" in splats.object_info()
    assert known == ("RenderSplat" in splats.object_info()) == (found_comfyui.version >= (0, 23))
    assert "FAILED" not in splats.import_line()
    assert "WARNING" not in splats.log.upper().split("IMAGE-REFINERY")[-1]


def test_a_file_becomes_a_refined_file(
    with_splats: ComfyHost, draw_splat: Callable[..., Splat]
) -> None:
    host, splat = with_splats, draw_splat(3000)
    graph: Graph = {
        "1": put_splat(host, "sphere.ply", splat),
        "2": node("File3DToSplat", model_3d=["1", 0]),
        "3": refine("2"),
        "4": node("SplatToFile3D", splat=["3", 0], format="ply"),
        "5": node("SaveGLB", mesh=["4", 0], filename_prefix="refined"),
        "6": render(["2", 0]),
        "7": render(["3", 0]),
        "8": node("PreviewImage", images=["6", 0]),
        "9": node("PreviewImage", images=["7", 0]),
        "10": node("PreviewImage", images=["3", 1]),
    }
    run = host.run(graph, timeout_s=300)
    assert run.ok, told(run)
    (file,) = (host.base / "output").glob("refined*.ply")
    refined = read_ply(file)
    for name in ("positions", "scales", "opacities"):  # ComfyUI normalizes rotations
        same = np.asarray(getattr(splat, name)), np.asarray(getattr(refined, name))
        assert np.allclose(*same, rtol=1e-4, atol=1e-5), name
    change = (refined.colors - splat.colors).abs().amax(dim=1)
    assert (change > 0.01).float().mean() > 0.3, "most Gaussians are seen, and change"
    before, after = pixels([*host.saved(run, "8"), *host.saved(run, "9")])
    assert np.abs(before - after).max() > 1, "Render Splat shows the change"
    views = pixels(host.saved(run, "10"))
    assert [view.shape for view in views] == [(512, 512, 3)] * 2
    said = [event.data["text"] for event in run.of("progress_text", node="3")]
    assert said[-1].startswith("refined the splat in")


def render(splat: list[Any]) -> dict[str, Any]:
    return node(
        "RenderSplat",
        splat=splat,
        width=256,
        height=256,
        frames=1,
        splat_scale=1.0,
        sharpen=2.0,
        headlight_shading=0.0,
        opacity_threshold=0.0,
        render_style="color",
        background="#000000",
    )


def test_a_batch_of_two_counts(with_splats: ComfyHost, draw_splat: Callable[..., Splat]) -> None:
    host = with_splats
    graph: Graph = {
        "1": put_splat(host, "large.ply", draw_splat(2000)),
        "2": put_splat(host, "small.ply", draw_splat(1500)),
        "3": node("File3DToSplat", model_3d=["1", 0]),
        "4": node("File3DToSplat", model_3d=["2", 0]),
        "5": node("TinySplats", first=["3", 0], second=["4", 0]),
        "6": refine("5"),
        "7": render(["6", 0]),
        "8": node("PreviewImage", images=["7", 0]),
        "9": node("PreviewImage", images=["6", 1]),
    }
    run = host.run(graph, timeout_s=300)
    assert run.ok, told(run)
    assert len(host.saved(run, "8")) == 2
    assert len(host.saved(run, "9")) == 4


@pytest.mark.parametrize("at", ["rendering", "step", "fitting"])
def test_cancel_ends_within_a_second(
    with_splats: ComfyHost, draw_splat: Callable[..., Splat], at: str
) -> None:
    host = with_splats
    graph: Graph = {
        "1": put_splat(host, "sphere.ply", draw_splat(30_000)),
        "2": node("File3DToSplat", model_3d=["1", 0]),
        "3": refine("2", seed=len(at), views=4, passes=100 if at == "fitting" else 1),
        "4": node("PreviewImage", images=["3", 1]),
    }
    events = host.listen()
    try:
        prompt_id = host.queue(graph, events)
        deadline = time.monotonic() + 200
        while not any(at in text for text in shown(events)):
            assert time.monotonic() < deadline, shown(events)
            time.sleep(0.02)
        began = time.monotonic()
        host.interrupt()
        stopped = events.wait_for("execution_interrupted", prompt_id=prompt_id)
        run = host.finish(prompt_id, events)
    finally:
        events.close()
    assert run.interrupted and stopped.at - began < 1.0
    assert shown(events)[-1] == "cancelled"


def shown(events: Any) -> list[str]:
    return [event.data["text"] for event in events if event.kind == "progress_text"]


def test_a_broken_splat_is_one_sentence(
    with_splats: ComfyHost, draw_splat: Callable[..., Splat]
) -> None:
    host, splat = with_splats, draw_splat(50)
    load = put_splat(host, "broken.ply", splat)
    file = host.base / "input" / "broken.ply"
    data = bytearray(file.read_bytes())
    start = data.index(b"end_header\n") + len(b"end_header\n")
    data[start : start + 4] = b"\x00\x00\xc0\x7f"  # x of the first Gaussian: NaN
    file.write_bytes(data)
    graph: Graph = {
        "1": load,
        "2": node("File3DToSplat", model_3d=["1", 0]),
        "3": refine("2"),
        "4": node("PreviewImage", images=["3", 1]),
    }
    run = host.run(graph)
    message = run.error["exception_message"].strip()
    assert message.startswith("The splat's positions contain NaN or infinity: ")
    assert message.endswith("(R408)")
