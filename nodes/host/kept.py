"""The one strong reference to the refiner's weights inside ComfyUI (docs/adr/0009).

A node holds no state and ComfyUI's list of models holds weak references, so that without this the
weights would be gone after each run.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

from ...memory.cuda import free_cuda_cache
from ...memory.report import Freed


class Keepable(Protocol):
    """What holds weights; in this package the refine package's ImageRefiner."""

    def unload(self) -> int:
        """Free the device; return the bytes."""
        ...

    def close(self) -> None:
        """Free the device and forget the weights."""
        ...


K = TypeVar("K", bound=Keepable)

_lock = threading.Lock()
_kept: tuple[Hashable, Keepable] | None = None


def keep_refiner(key: Hashable, make: Callable[[], K]) -> K:
    """Return the refiner that is kept under `key`; another one is closed and made anew.

    Args:
        key: Tells refiners apart: the checkpoint, and whatever else they were made with.
        make: Makes the refiner; what it raises reaches the caller, and nothing is kept.
    """
    global _kept
    with _lock:
        if _kept is not None and _kept[0] == key:
            return _kept[1]  # type: ignore[return-value]  # what `make` made under this key
        _close()
        refiner = make()
        _kept = (key, refiner)
        return refiner


def free_refiner() -> Freed:
    """Take the refiner off the device and forget its weights; nothing where none is kept."""
    with _lock:
        return Freed("the refiner", _close())


def _close() -> int:
    global _kept
    if _kept is None:
        return 0
    _, refiner = _kept
    _kept = None
    freed = refiner.unload()
    refiner.close()
    del refiner
    gc.collect()  # a pipeline's parts refer to one another
    free_cuda_cache()
    return freed
