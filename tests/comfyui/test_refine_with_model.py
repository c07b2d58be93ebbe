"""Refine with Model in a real ComfyUI, with tiny models and random core checkpoints."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from core_checkpoint import write_core_checkpoint
from faulty_ollama import Reply
from host import PROBE_PACK, ComfyHost, Graph, Link, node
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

TINY_PACK, NOVRAM_PACK = (PROBE_PACK.parent / name for name in ("tiny_pack", "novram_pack"))
HOW = {
    "steps": 3,
    "cfg": 4.0,
    "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
    "denoise": 0.4,
    "seed": 7,
}
POSITIVE, NEGATIVE = "a red (boat:1.2)", "blurry"


@pytest.fixture(scope="module")
def tiny(found_comfyui: Any, ollama_port: int, tmp_path_factory: Any) -> Iterator[ComfyHost]:
    """A ComfyUI with the tiny models."""
    env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{ollama_port}", "OMP_NUM_THREADS": "1"}
    packs = {"probe-pack": PROBE_PACK, "tiny-pack": TINY_PACK}
    base = tmp_path_factory.mktemp("tiny")
    with ComfyHost(found_comfyui, base, env=env, packs=packs) as running:
        yield running


def pattern(height: int, width: int, seed: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def models(kind: str, **more: Any) -> dict[str, Any]:
    return node("TinyModel", kind=kind, **({"salt": 0} | more))


def refine(image: Link, source: str = "m", **inputs: Any) -> dict[str, Any]:
    links = {"model": [source, 0], "clip": [source, 1], "vae": [source, 2]}
    texts = {"positive": POSITIVE, "negative": NEGATIVE}
    return node("RefineryRefineWithModel", image=image, **(links | texts | HOW | inputs))


def core(image: Link, source: str = "m") -> Graph:
    """VAEEncode, KSampler and VAEDecode, as the nodes c1 to c5."""
    model, clip, vae = [source, 0], [source, 1], [source, 2]
    return {
        "c1": node("CLIPTextEncode", clip=clip, text=POSITIVE),
        "c2": node("CLIPTextEncode", clip=clip, text=NEGATIVE),
        "c3": node("VAEEncode", pixels=image, vae=vae),
        "c4": node(
            "KSampler",
            model=model,
            positive=["c1", 0],
            negative=["c2", 0],
            latent_image=["c3", 0],
            **HOW,
        ),
        "c5": node("VAEDecode", samples=["c4", 0], vae=vae),
    }


def seen(host: ComfyHost) -> dict[str, Any]:
    return host.get("/tiny/seen")


def forget(host: ComfyHost, **more: Any) -> None:
    assert host.post("/tiny/forget", more).ok


def told(run: Any) -> str:
    return "\n".join([run.error["exception_message"], *run.error["traceback"][-3:]])


def pixels(host: ComfyHost, run: Any, id: str) -> np.ndarray:
    (path,) = host.saved(run, id)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def rows(run: Any, id: str) -> list[dict[str, Any]]:
    (text,) = run.texts(id)
    return json.loads(text)


@pytest.mark.parametrize("kind", ["sdxl", "qwen", "cell16"])
def test_one_tile_is_the_same_as_core_s_nodes(tiny: ComfyHost, kind: str) -> None:
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(256, 192))),
        "m": models(kind),
        "2": refine(["1", 0], tile_size=256, keep_colors=False),
        **core(["1", 0]),
        "3": node("TinyEqual", first=["2", 0], second=["c5", 0]),
        "4": node("TinyEqual", first=["1", 0], second=["c5", 0]),
    }
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    assert rows(run, "3") == [{"shape": [1, 256, 192, 3], "equal": True, "most": 0.0}]
    assert rows(run, "4")[0]["most"] > 0.1


def number_of(text: str) -> float:
    """By which the tiny CLIP tells texts apart; see tiny_pack."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 2**24


def words(host: ComfyHost) -> list[float]:
    """The first number of the prompt of each call of the model: the negative is the other row."""
    negative = number_of(NEGATIVE)
    rows = [
        [row for row in call["texts"] if abs(row - negative) > 1e-6] for call in seen(host)["calls"]
    ]
    return [row[0] for row in rows if row]


def test_a_core_checkpoint_is_refined_as_core_s_nodes_do(tiny: ComfyHost) -> None:
    """The Stable Diffusion 1.5 of random weights, with core's CLIP and a real tiny VAE."""
    file = tiny.base / "models" / "checkpoints" / "core.safetensors"
    write_core_checkpoint(file)
    try:
        graph: Graph = {
            "1": node("LoadImage", image=tiny.save_input(pattern(512, 384))),
            "m": node("CheckpointLoaderSimple", ckpt_name=file.name),
            "2": refine(["1", 0], keep_colors=False, steps=1),
            **core(["1", 0]),
            "3": node("TinyEqual", first=["2", 0], second=["c5", 0]),
        }
        graph["c4"]["inputs"]["steps"] = 1
        run = tiny.run(graph, timeout_s=300)
    finally:
        file.unlink()
    assert run.ok, told(run)
    assert rows(run, "3") == [{"shape": [1, 512, 384, 3], "equal": True, "most": 0.0}]


def test_each_tile_is_sampled_with_its_own_text(tiny: ComfyHost, ollama: FaultyOllama) -> None:
    forget(tiny)
    texts = ["a ball", "a cup (blue)", "a tree", "a cat"]
    ollama.script("chat", *(Reply(text=text) for text in texts))
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(384, 384))),
        "m": models("sdxl"),
        "2": node(
            "RefineryDescribeTiles",
            image=["1", 0],
            vision_model="llava:latest",
            custom_vision_prompt="",
            tile_size=256,
        ),
        "3": refine(["1", 0], tile_prompts=["2", 1], positive="photo of {tile}, sharp"),
        "4": node("SaveImage", images=["3", 0], filename_prefix="tiles"),
        "5": node("PreviewAny", source=["2", 0]),
    }
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    shown = run.texts("2")
    assert sorted(shown) == sorted(texts)
    prompts = [f"photo of {text}, sharp" for text in shown]
    called = words(tiny)
    assert [called[at] for at in range(0, 12, 3)] == pytest.approx([*map(number_of, prompts)])
    assert len(called) == 12 and {tuple(call["size"]) for call in seen(tiny)["calls"]} == {(32, 32)}
    # "(blue)" is what the model saw, and no weight; each text is encoded once.
    encoded = [text for text in seen(tiny)["texts"] if text != "(a:2)"]
    plain = [text.replace("(", r"\(").replace(")", r"\)") for text in prompts]
    assert sorted(encoded) == sorted([*plain, NEGATIVE])


def test_a_second_run_loads_and_encodes_nothing(tiny: ComfyHost) -> None:
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(256, 256))),
        "m": models("sdxl", salt=1),
        "2": refine(["1", 0], tile_size=256),
        "3": node("SaveImage", images=["2", 0], filename_prefix="twice"),
    }
    forget(tiny)
    first = tiny.run(graph, timeout_s=300)
    assert first.ok and seen(tiny)["loads"] == 1
    assert seen(tiny)["texts"] == [POSITIVE, NEGATIVE]
    forget(tiny)
    graph["2"]["inputs"]["seed"] = 8
    again = tiny.run(graph, timeout_s=300)
    assert again.ok and len(seen(tiny)["calls"]) == 3
    assert seen(tiny)["loads"] == 0 and seen(tiny)["texts"] == []
    assert (pixels(tiny, first, "3") != pixels(tiny, again, "3")).any()


def test_only_the_regions_of_a_mask_change_each_at_the_size_of_a_tile(tiny: ComfyHost) -> None:
    forget(tiny)
    image = np.dstack([np.asarray(pattern(400, 600)), np.full((400, 600), 255, np.uint8)])
    image[40:100, 30:90, 3] = 0  # LoadImage's mask is where alpha is 0
    image[300:360, 480:520, 3] = 0
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(Image.fromarray(image))),
        "m": models("sdxl"),
        "2": refine(["1", 0], mask=["1", 1], tile_size=256, keep_colors=False),
        "3": node("SaveImage", images=["2", 0], filename_prefix="mask"),
        "4": node("SaveImage", images=["1", 0], filename_prefix="before"),
    }
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    after, before = pixels(tiny, run, "3"), pixels(tiny, run, "4")
    marked = image[..., 3] == 0
    assert (after[~marked] == before[~marked]).all()
    for region in (np.s_[50:90, 40:80], np.s_[320:340, 490:510]):
        assert (after[region] != before[region]).any()
    assert [tuple(call["size"]) for call in seen(tiny)["calls"][::3]] == [(32, 32), (32, 32)]


def test_tiles_show_no_seam(tiny: ComfyHost) -> None:
    """The measure is that of tests/refine: how the change steepens at the edge of a tile."""
    side = 640
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(side, side, 5))),
        "m": models("sdxl"),
        "2": refine(["1", 0], tile_size=256, keep_colors=False),
        "3": node("SaveImage", images=["2", 0], filename_prefix="seam"),
        "4": node("SaveImage", images=["1", 0], filename_prefix="before"),
    }
    forget(tiny)
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    assert len(seen(tiny)["calls"]) == 3 * 16
    change = (pixels(tiny, run, "3") - pixels(tiny, run, "4")).mean(axis=-1)
    assert np.abs(change).mean() > 0.01
    edges = [128, 256, 320, 384, 448, 512]
    for axis in (0, 1):
        steepness = np.abs(np.diff(change, axis=axis)).mean(axis=1 - axis)
        ratios = [steepness[e - 1] / np.median(steepness[e - 17 : e + 16]) for e in edges]
        assert max(ratios) < 1.5, (axis, ratios)


def test_a_list_of_three_sizes(tiny: ComfyHost) -> None:
    sizes = [[96, 64], [256, 256], [300, 130]]
    graph: Graph = {
        "1": node(
            "ProbePictures",
            pictures=json.dumps([[w, h, [0.2, 0.5, 0.8]] for h, w in sizes]),
            batch=False,
        ),
        "m": models("cell16"),
        "2": refine(["1", 0], tile_size=256),
        "3": node("TinyEqual", first=["2", 0], second=["1", 0]),
    }
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    assert [row["shape"] for row in rows(run, "3")] == [[1, h, w, 3] for h, w in sizes]
    assert not any(row["equal"] for row in rows(run, "3"))


def controlled(strength: float = 1.0) -> Graph:
    return {
        "n": node("TinyControl"),
        "p": node("CLIPTextEncode", clip=["m", 1], text=POSITIVE),
        "q": node("CLIPTextEncode", clip=["m", 1], text=NEGATIVE),
        "a": node(
            "ControlNetApplyAdvanced",
            positive=["p", 0],
            negative=["q", 0],
            control_net=["n", 0],
            image=["h", 0],
            strength=strength,
            start_percent=0.0,
            end_percent=1.0,
        ),
    }


def test_a_controlnet_sees_the_part_of_each_tile(tiny: ComfyHost) -> None:
    hint = np.zeros((192, 192, 3), np.uint8)
    hint[:96, :96], hint[:96, 96:], hint[96:, :96] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    both = {"positive_conditioning": ["a", 0], "negative_conditioning": ["a", 1]}
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(384, 384))),
        "h": node("LoadImage", image=tiny.save_input(Image.fromarray(hint))),
        "m": models("sdxl"),
        **controlled(),
        "2": refine(["1", 0], tile_size=256, **both),
        "3": node("SaveImage", images=["2", 0], filename_prefix="hints"),
    }
    forget(tiny)
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    hints = seen(tiny)["hints"]
    assert len(hints) == 4 * 3, "once a step for both prompts"
    red, green, blue, corner = hints[::3]
    share = (96 / 128) ** 2 * 200 / 255
    assert red[0] == pytest.approx(share, abs=0.01) and red[2] == pytest.approx(share / 3, abs=0.01)
    assert green[1] == pytest.approx(share, abs=0.01) and blue[2] == pytest.approx(share, abs=0.01)
    assert sum(corner) == pytest.approx(share * 7 / 9, abs=0.02)


def test_one_tile_with_a_controlnet_is_the_same_as_core_s_nodes(tiny: ComfyHost) -> None:
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(256, 256))),
        "h": node("LoadImage", image=tiny.save_input(pattern(128, 128, 4))),
        "m": models("sdxl"),
        **controlled(),
        **core(["1", 0]),
        "2": refine(
            ["1", 0],
            tile_size=256,
            keep_colors=False,
            positive_conditioning=["a", 0],
            negative_conditioning=["a", 1],
        ),
        "3": node("TinyEqual", first=["2", 0], second=["c5", 0]),
    }
    graph["c4"]["inputs"] |= {"positive": ["a", 0], "negative": ["a", 1]}
    run = tiny.run(graph, timeout_s=300)
    assert run.ok, told(run)
    assert rows(run, "3")[0]["equal"]


AREA = node(
    "ConditioningSetArea", conditioning=["p", 0], width=64, height=64, x=0, y=0, strength=1.0
)


@pytest.mark.parametrize(
    ("kind", "more", "inputs", "told_so"),
    [
        (
            "sdxl",
            AREA,
            {"positive_conditioning": ["x", 0], "tile_size": 256},
            "positive_conditioning has an area, which is for the whole image",
        ),
        ("qwen", models("sdxl"), {"vae": ["x", 2]}, "Connect the VAE that belongs to"),
        ("sdxl", models("qwen"), {"clip": ["x", 1]}, "Connect the CLIP that belongs to"),
    ],
)
def test_what_cannot_work_is_told_in_a_sentence(
    tiny: ComfyHost, kind: str, more: dict[str, Any], inputs: dict[str, Any], told_so: str
) -> None:
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(384, 384))),
        "m": models(kind),
        "p": node("CLIPTextEncode", clip=["m", 1], text=""),
        "x": more,
        "2": refine(["1", 0], **inputs),
        "3": node("SaveImage", images=["2", 0], filename_prefix="never"),
    }
    run = tiny.run(graph, timeout_s=300)
    assert not run.ok and told_so in run.error["exception_message"]


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_cancel_ends_within_a_second(tiny: ComfyHost, calls: int) -> None:
    """Before the first step, in the first tile and in the second."""
    forget(tiny, seconds=0.3)
    graph: Graph = {
        "1": node("LoadImage", image=tiny.save_input(pattern(384, 384))),
        "m": models("sdxl"),
        "2": refine(["1", 0], tile_size=256, seed=calls),
        "3": node("SaveImage", images=["2", 0], filename_prefix="cancel"),
    }
    events = tiny.listen()
    try:
        prompt_id = tiny.queue(graph, events)
        events.wait_for("executing", prompt_id=prompt_id, node="2")
        while len(seen(tiny)["calls"]) < calls:
            time.sleep(0.02)
        began = time.monotonic()
        tiny.interrupt()
        stopped = events.wait_for("execution_interrupted", prompt_id=prompt_id)
        run = tiny.finish(prompt_id, events)
    finally:
        events.close()
    assert run.interrupted and stopped.at - began < 1.0
    forget(tiny)
    assert tiny.run(graph, timeout_s=300).ok, "nothing is left of the cancelled run"


def test_nothing_runs_for_a_node_that_is_off(tiny: ComfyHost, ollama: FaultyOllama) -> None:
    for off in ({"enabled": False}, {"denoise": 0.0}):
        forget(tiny)
        graph: Graph = {
            "1": node("LoadImage", image=tiny.save_input(pattern(128, 128))),
            "m": models("sdxl", salt=9),
            "t": node(
                "RefineryDescribeTiles",
                image=["1", 0],
                vision_model="llava:latest",
                custom_vision_prompt="",
            ),
            "2": refine(["1", 0], tile_prompts=["t", 1], **off),
            "3": node("TinyEqual", first=["2", 0], second=["1", 0]),
        }
        run = tiny.run(graph, timeout_s=300)
        assert run.ok, told(run)
        assert rows(run, "3")[0]["equal"] and seen(tiny)["loads"] == 0
    assert not [one for one in ollama.requests if one.images]


def test_novram_gives_the_same_pixels(tiny: ComfyHost, found_comfyui: Any, tmp_path: Path) -> None:
    image = pattern(384, 320)
    packs = {"probe-pack": PROBE_PACK, "tiny-pack": TINY_PACK, "novram-pack": NOVRAM_PACK}
    results: list[np.ndarray] = []
    with ComfyHost(found_comfyui, tmp_path, env={"OMP_NUM_THREADS": "1"}, packs=packs) as novram:
        for host in (tiny, novram):
            graph: Graph = {
                "1": node("LoadImage", image=host.save_input(image)),
                "m": models("sdxl"),
                "2": refine(["1", 0], tile_size=256),
                "3": node("SaveImage", images=["2", 0], filename_prefix="novram"),
            }
            run = host.run(graph, timeout_s=300)
            assert run.ok, told(run)
            results.append(pixels(host, run, "3"))
    assert (results[0] == results[1]).all()
