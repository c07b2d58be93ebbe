"""What the pack asks of ComfyUI's model patchers."""

from __future__ import annotations

from typing import Any

from image_refinery.memory.comfyui import _limited


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
