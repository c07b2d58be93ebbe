"""The one owner of the refiner's weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def imported(comfy_for_all: None) -> None:
    """Import what is tested while ComfyUI, or the stub, can be found."""
    global kept
    from image_refinery.nodes.host import kept


class Holder:
    """Holds 5 bytes until it is unloaded, and remembers what was asked of it."""

    model = "folder/refiner.safetensors"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def unload(self) -> int:
        self.asked.append("unload")
        return 5 if self.asked == ["unload"] else 0

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture(autouse=True)
def nothing_kept(imported: None) -> Iterator[None]:
    kept.free_refiner()
    yield
    kept.free_refiner()


def test_the_same_key_gives_the_same_refiner() -> None:
    first = kept.keep_refiner(("a", 1), Holder)
    assert kept.keep_refiner(("a", 1), Holder) is first
    assert first.asked == []


def test_another_key_closes_the_first_and_forgets_it() -> None:
    first = kept.keep_refiner("a", Holder)
    asked, gone = first.asked, weakref.ref(first)
    del first
    kept.keep_refiner("b", Holder)
    gc.collect()
    assert asked == ["unload", "close"]
    assert gone() is None


def test_what_cannot_be_made_leaves_nothing_behind() -> None:
    first = kept.keep_refiner("a", Holder)

    def fail() -> Holder:
        raise ValueError("no such checkpoint")

    with pytest.raises(ValueError, match="no such checkpoint"):
        kept.keep_refiner("b", fail)
    assert first.asked == ["unload", "close"], "the memory was needed for the other one"
    assert kept._kept is None
    assert kept.keep_refiner("b", Holder).asked == []


def test_freeing_names_the_closed_checkpoint_once() -> None:
    holder = kept.keep_refiner("a", Holder)
    assert kept.free_refiner() == "refiner.safetensors"
    assert holder.asked == ["unload", "close"]
    assert kept.free_refiner() is None
