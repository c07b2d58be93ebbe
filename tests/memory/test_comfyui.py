"""What the pack asks of ComfyUI's model patchers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from image_refinery.memory.comfyui import _limited, unload_patchers


class PinningPatcher:
    """A patcher that pins what it does not load, as ComfyUI's own does."""

    def __init__(self) -> None:
        self.pinned: list[str] = []

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        self.pin_weight_to_device("part.weight")
        return 0

    def pin_weight_to_device(self, key: str) -> None:
        self.pinned.append(key)


def test_weights_that_stay_off_the_device_are_not_pinned() -> None:
    own, ours = PinningPatcher(), _limited(PinningPatcher)()
    for patcher in (own, ours):
        patcher.partially_load("cuda:0")
    assert own.pinned == ["part.weight"]
    assert ours.pinned == []


class FakeLoaded:
    """A loaded model of 3 bytes; `model` is None where its patcher was freed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.unloads = 0

    def model_unload(self) -> None:
        self.unloads += 1


def test_only_the_given_models_are_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = (SimpleNamespace(load_device="cuda:0", loaded_size=lambda: 3) for _ in range(2))
    gone, other, own = FakeLoaded(None), FakeLoaded(theirs), FakeLoaded(ours)
    manager = SimpleNamespace(
        current_loaded_models=[gone, other, own],
        is_device_cpu=lambda device: device == "cpu",
        soft_empty_cache=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "comfy.model_management", manager)
    assert unload_patchers([ours]) == 3
    assert manager.current_loaded_models == [gone, other]
    assert (gone.unloads, other.unloads, own.unloads) == (0, 0, 1)
