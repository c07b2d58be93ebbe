"""The one strong reference to the refiner's weights inside ComfyUI (docs/adr/0009).

A node holds no state and ComfyUI's list of models holds weak references, so that without this the
weights would be gone after each run.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

from ... import memory
from ...memory import comfyui
from ...memory.cuda import free_cuda_cache
from ...memory.report import Freed
from ...refine import ImageRefiner
from ...refine.residency import free_cache
from ...refine.settings import MemoryMode
from .checkpoints import find_checkpoint
from .managed import ManagedResidency

log = logging.getLogger(__name__)

_lock = threading.Lock()
_kept: tuple[Hashable, ImageRefiner] | None = None


def keep_refiner(key: Hashable, make: Callable[[], ImageRefiner]) -> ImageRefiner:
    """Return the refiner that is kept under `key`; any other is closed and a new one made.

    Args:
        key: Tells refiners apart: the checkpoint, and whatever else they were made with.
        make: Makes the refiner; what it raises reaches the caller, and nothing is kept.
    """
    global _kept
    with _lock:
        if _kept is not None and _kept[0] == key:
            return _kept[1]
        _close()
        refiner = make()
        _kept = (key, refiner)
        return refiner


def loaded_refiner(checkpoint: str, mode: MemoryMode) -> ImageRefiner:
    """Return a refiner with its weights loaded: the kept one, or a new one that replaces it.

    Args:
        checkpoint: As the checkpoint widget names it.
        mode: As the memory_mode widget names it.

    Raises:
        CheckpointError: it is not here, or cannot be loaded.
    """
    model = find_checkpoint(checkpoint)
    key: tuple[Hashable, ...] = (model, mode)
    if isinstance(model, Path):
        status = model.stat()
        key += (status.st_size, status.st_mtime_ns)
    refiner = keep_refiner(key, lambda: _make_refiner(model, mode))
    refiner.load()
    return refiner


def unload_refiner(refiner: ImageRefiner) -> None:
    """Free the device, and log how much that was."""
    freed = Freed("the refiner", refiner.unload())
    free_cache(refiner.device)  # on a CPU: ComfyUI's manager leaves freed memory to the C library
    memory.log_freed(log, freed, free_cuda_cache())


def free_refiner() -> str | None:
    """Take the refiner off the device and forget its weights.

    Returns:
        The file name of its checkpoint, which is closed now: until then Windows lets nobody
        replace or delete it. None: no refiner is kept.
    """
    with _lock:
        name = None if _kept is None else Path(_kept[1].model).name
        _close()
        return name


def _make_refiner(model: Path | str, mode: MemoryMode) -> ImageRefiner:
    return ImageRefiner(
        comfyui.compute_device(),
        model=model,
        memory_mode=mode,
        residency=lambda components, where: ManagedResidency(components, where, mode),
    )


def _close() -> None:
    global _kept
    if _kept is None:
        return
    _, refiner = _kept
    _kept = None
    refiner.unload()
    refiner.close()
    del refiner
    gc.collect()  # a checkpoint's components refer to one another
    free_cuda_cache()
