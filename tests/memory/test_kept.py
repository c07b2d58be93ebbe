"""The one owner of the refiner's weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from image_refinery import memory
from image_refinery.memory import kept


class Holder:
    """Holds 5 bytes until it is unloaded, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def unload(self) -> int:
        self.asked.append("unload")
        return 5 if self.asked == ["unload"] else 0

    def close(self) -> None:
        self.asked.append("close")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    memory.free_refiner()
    yield
    memory.free_refiner()


def test_the_same_key_gives_the_same_refiner() -> None:
    first = memory.keep_refiner(("a", 1), Holder)
    assert memory.keep_refiner(("a", 1), Holder) is first
    assert first.asked == []


def test_another_key_closes_the_first_and_forgets_it() -> None:
    first = memory.keep_refiner("a", Holder)
    asked, gone = first.asked, weakref.ref(first)
    del first
    memory.keep_refiner("b", Holder)
    gc.collect()
    assert asked == ["unload", "close"]
    assert gone() is None


def test_what_cannot_be_made_leaves_nothing_behind() -> None:
    first = memory.keep_refiner("a", Holder)

    def fail() -> Holder:
        raise ValueError("no such checkpoint")

    with pytest.raises(ValueError, match="no such checkpoint"):
        memory.keep_refiner("b", fail)
    assert first.asked == ["unload", "close"], "the memory was needed for the other one"
    assert kept._kept is None
    assert memory.keep_refiner("b", Holder).asked == []


def test_freeing_reports_the_bytes_once() -> None:
    memory.keep_refiner("a", Holder)
    assert str(memory.free_refiner()) == "the refiner: 5 B"
    assert memory.free_refiner().bytes == 0
