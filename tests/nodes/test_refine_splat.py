"""Refine Splat over the stub, with the tiny refiner: batches, cancel, errors, where it exists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

TINY = "tiny_refiner.safetensors"
QUICK: dict[str, Any] = {"views": 2, "passes": 1, "num_inference_steps": 4}


class HostSplat(SimpleNamespace):
    """ComfyUI's SPLAT: tensors (B, N, ...), padded with zeros, and their real lengths."""

    def __init__(self, *parts: torch.Tensor) -> None:
        names = ("positions", "scales", "rotations", "opacities", "sh", "counts")
        super().__init__(**dict(zip(names, (*parts, None)[:6], strict=True)))


@pytest.fixture
def batch(draw_splat: Callable[..., Any]) -> Callable[..., HostSplat]:
    """batch(300, 200): a SPLAT of spheres with so many Gaussians."""

    def make(*counts: int) -> HostSplat:
        splats = [draw_splat(count) for count in counts]
        names = ("positions", "scales", "rotations", "opacities", "sh")
        parts = [
            pad_sequence([getattr(one, name) for one in splats], batch_first=True) for name in names
        ]
        parts[3] = parts[3][..., None]
        return HostSplat(*parts, *([torch.tensor(counts)] if len(counts) > 1 else []))

    return make


@pytest.fixture
def node(
    checkpoints: Path, quick_loads: None, sixteenth_megapixel: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The node class, with small views; afterwards no refiner is kept."""
    from image_refinery.nodes.host.kept import free_refiner
    from image_refinery.nodes.refine_splat import RefineSplat
    from image_refinery.refine.splats import SplatRefiner

    monkeypatch.setitem(SplatRefiner.refine.__kwdefaults__, "size", 64)
    yield RefineSplat
    free_refiner()


def execute(node: Any, *batches: HostSplat, **inputs: Any) -> tuple[list[Any], list[Any]]:
    """Call the node as ComfyUI does with an input list: under inference mode."""
    named = {"checkpoint": TINY, **QUICK, **inputs}
    with torch.inference_mode():
        return node.execute(splat=list(batches), **{key: [named[key]] for key in named}).result


def test_the_inputs_and_outputs(node: Any) -> None:
    schema = node.define_schema()
    assert [one.id for one in schema.inputs] == [
        *("splat", "checkpoint", "prompt", "negative_prompt", "strength", "views", "passes"),
        *("seed", "memory_mode", "num_inference_steps", "guidance_scale"),
    ]
    assert [one.display_name for one in schema.outputs] == ["splat", "views"]
    assert schema.is_experimental
    defaults = {one.id: one.as_dict().get("default") for one in schema.inputs}
    assert (defaults["strength"], defaults["views"], defaults["passes"]) == (0.25, 16, 4)


@pytest.mark.usefixtures("comfy")
def test_it_is_registered_only_where_comfyui_has_splats(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_api.latest import io
    from image_refinery import nodes
    from image_refinery.nodes.refine_splat import RefineSplat

    listed = asyncio.run(nodes.ImageRefineryExtension().get_node_list())
    assert RefineSplat in listed
    monkeypatch.delattr(io, "Splat")
    assert asyncio.run(nodes.ImageRefineryExtension().get_node_list()) == [
        one for one in listed if one is not RefineSplat
    ]


def test_a_batch_of_two_counts_keeps_all_but_its_colors(
    node: Any, batch: Callable[..., HostSplat]
) -> None:
    given = batch(300, 200)
    (splat,), (views,) = execute(node, given)
    for name in ("positions", "scales", "rotations", "opacities", "counts"):
        assert getattr(splat, name) is getattr(given, name)
    assert splat.sh.shape == given.sh.shape
    changed = (splat.sh != given.sh).any(dim=2).any(dim=2)
    assert changed[0].sum() > 100
    assert changed[1, :200].sum() > 50
    assert not changed[1, 200:].any()
    assert views.shape == (4, 64, 64, 3)
    assert 0 <= views.min() < views.max() <= 1


def test_each_splat_of_a_list_has_the_next_seed(
    node: Any, batch: Callable[..., HostSplat], monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.refine.splats import SplatRefiner

    seeds: list[int] = []
    refine = SplatRefiner.refine

    def noted(self: Any, splat: Any, **settings: Any) -> Any:
        seeds.append(settings["seed"])
        return refine(self, splat, **settings)

    monkeypatch.setattr(SplatRefiner, "refine", noted)
    splats, views = execute(node, batch(50), batch(60), seed=2**64 - 1)
    assert seeds == [2**64 - 1, 0]
    assert [one.positions.shape[1] for one in splats] == [50, 60]
    assert [len(one) for one in views] == [2, 2]


def test_strength_0_changes_no_color(node: Any, batch: Callable[..., HostSplat]) -> None:
    given = batch(100)
    (splat,), _ = execute(node, given, strength=0.0)
    assert torch.equal(splat.sh, given.sh)


def test_the_end_is_told_and_no_model_stays_loaded(
    node: Any, batch: Callable[..., HostSplat], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    from server import PromptServer

    PromptServer.instance.sent_texts.clear()
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "7"}))
    execute(node, batch(100))
    said = [text for id, text in PromptServer.instance.sent_texts if id == "7"]
    assert "image 2 of 2, step 1 of 1 (4 x 0.25)" in said
    assert said[-1].startswith("refined the splat in")
    assert management.current_loaded_models == []


@pytest.mark.parametrize("at", ["rendering", "step 1", "fitting"])
def test_cancel(
    node: Any, batch: Callable[..., HostSplat], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    import comfy.model_management as management
    from image_refinery.nodes import host

    said: list[str] = []

    def say(self: Any, *lines: str) -> None:
        said.append(" ".join(lines))
        if at in said[-1]:
            management.interrupt_current_processing()

    monkeypatch.setattr(host.RefineProgress, "say", say)
    with pytest.raises(management.InterruptProcessingException):
        execute(node, batch(300))
    assert at in said[-1]
    assert not management.processing_interrupted()
    assert management.current_loaded_models == []


def broken(given: HostSplat, name: str, value: float) -> HostSplat:
    getattr(given, name)[-1, 0] = value
    return given


def test_bad_splats_and_values_are_one_sentence(node: Any, batch: Callable[..., HostSplat]) -> None:
    from image_refinery.refine import CheckpointError

    with pytest.raises(ValueError, match=r"^Splat 2 of 2: The splat's scales contain NaN .*R408"):
        execute(node, broken(batch(20, 10), "scales", float("nan")))
    empty = batch(20, 10)
    empty.counts[1] = 0
    with pytest.raises(ValueError, match=r"^Splat 2 of 2: The splat has no Gaussians"):
        execute(node, empty)
    with pytest.raises(ValueError, match=r"^views is 300, but must be from 1 to 256"):
        execute(node, batch(10), views=300)
    with pytest.raises(CheckpointError, match=r"^There is no checkpoint .*R403"):
        execute(node, batch(10), checkpoint="missing.safetensors")
