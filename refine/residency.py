"""Move the weights of a checkpoint to the device and off it again.

`ImageRefiner` runs its stages through a `Residency` and does not know where weights are.
`LocalResidency` manages them itself. A host with its own memory manager (ComfyUI) supplies another
class with the same methods, without changes to the rest of the code.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from .components import Components, Weights, own_tensors
from .settings import MemoryMode

log = logging.getLogger(__name__)

LOW_VRAM_BYTES = 3 * 2**29
"""The part of a streamed component that stays on the device in low_vram mode: 1.5 GiB."""
SPARE_BYTES = 2**29
"""The memory that `auto` leaves free for the driver's workspace and other programs: 0.5 GiB."""


class Residency(Protocol):
    """Manages a checkpoint's weights.

    Attributes:
        device: Where the stages run; it does not change.
    """

    device: torch.device

    def use(self, component: str, working_bytes: int) -> AbstractContextManager[None]:
        """Make a component ready to run on `device`, in its type of `Components.dtypes`.

        Args:
            component: One of COMPONENT_NAMES.
            working_bytes: Roughly the memory that the stage needs in addition to the weights.
        """
        ...

    def has_room(self, working_bytes: int) -> bool:
        """Within `use`: return whether this much memory is free; False: work in tiles."""
        ...

    def shrink(self) -> bool:
        """After an out-of-memory error: switch to a slower mode that needs less memory.

        Returns:
            False if there is no such mode.
        """
        ...

    def release(self) -> int:
        """Remove all weights from the device; return the bytes freed. Safe to call at any time."""
        ...


ResidencyFactory = Callable[[Components, torch.device], Residency]


class LocalResidency:
    """Moves the weights itself; see docs/memory.md for the modes and their peaks.

    Args:
        components: The loaded checkpoint, after `choose_dtypes`.
        device: Where the stages run.
        mode: "gpu" keeps everything on the device, "offload" only the running component, "low_vram"
            also streams the UNet's layers; "auto" chooses by the free memory at the start, and
            switches to a smaller mode if memory runs out.
    """

    def __init__(
        self, components: Components, device: torch.device, mode: MemoryMode = "auto"
    ) -> None:
        self.device = device
        self.mode: MemoryMode = mode
        self._is_auto = mode == "auto"
        self._most_working_bytes = 0
        self._components = components
        self._weights = {
            name: [(leaf, Weights(leaf)) for leaf in module.modules() if any(own_tensors(leaf))]
            for name, module in components.modules().items()
        }
        self._streams: list[torch.utils.hooks.RemovableHandle] = []

    @contextlib.contextmanager
    def use(self, component: str, working_bytes: int) -> Iterator[None]:
        """See Residency."""
        self._most_working_bytes = max(self._most_working_bytes, working_bytes)
        if self.mode == "auto" and component == "unet":
            # The VAE has run by now, so its memory need, the largest of all stages, is known.
            free = free_bytes(self.device) + self.held_bytes()
            sizes = self._components.weight_bytes()
            self.mode = choose_mode(free, sizes, self._most_working_bytes)
            log.info("Refiner memory mode: %s (%.1f GiB free).", self.mode, free / 2**30)
        try:
            self._move_in(component)
            yield
        finally:
            if self.mode != "gpu":
                self._move_out(component)

    def has_room(self, working_bytes: int) -> bool:
        """See Residency."""
        if self.mode == "low_vram":
            return working_bytes <= LOW_VRAM_BYTES
        # On a CPU, swapping is better than tiles, which change the image a little.
        return self.device.type == "cpu" or working_bytes <= free_bytes(self.device)

    def shrink(self) -> bool:
        """See Residency."""
        mode = self.mode
        self.release()
        if not self._is_auto or mode == "low_vram":
            return False
        self.mode = "low_vram" if mode == "offload" else "offload"
        log.warning("Out of memory: the refiner continues in memory mode %s.", self.mode)
        return True

    def release(self) -> int:
        """See Residency."""
        freed = self.held_bytes()
        for component in self._weights:
            self._move_out(component)
        free_cache(self.device)
        self.mode = "auto" if self._is_auto else self.mode
        return freed

    def held_bytes(self) -> int:
        """Return the bytes of all copies of weights, on the device or in another dtype in RAM."""
        return sum(w.held_bytes() for leaves in self._weights.values() for _, w in leaves)

    def _move_in(self, component: str) -> None:
        dtype = self._components.dtypes[component]
        # Only the UNet is worth streaming; the VAE needs the type of its weights.
        room = LOW_VRAM_BYTES if self.mode == "low_vram" and component == "unet" else None
        for leaf, weights in self._weights[component]:
            size = weights.resting_bytes(dtype)
            if room is not None and size > room:
                self._stream(leaf, weights, dtype)
                continue
            weights.move(self.device, dtype)
            room = None if room is None else room - size

    def _move_out(self, component: str) -> None:
        while self._streams:
            self._streams.pop().remove()
        for _, weights in self._weights[component]:
            weights.restore()

    def _stream(self, leaf: nn.Module, weights: Weights, dtype: torch.dtype) -> None:
        """Load a layer's weights before each of its calls, and drop them afterwards."""

        def load(*_: object) -> None:
            weights.move(self.device, dtype)

        def drop(*_: object) -> None:
            weights.restore()

        self._streams.append(leaf.register_forward_pre_hook(load))
        self._streams.append(leaf.register_forward_hook(drop))


def choose_mode(free: int, weight_bytes: dict[str, int], working_bytes: int) -> MemoryMode:
    """Return the fastest memory mode that fits.

    Args:
        free: Free bytes on the device.
        weight_bytes: Bytes of each component's weights.
        working_bytes: The largest memory need of any stage, in addition to weights.
    """
    room = free - working_bytes - SPARE_BYTES
    if room >= sum(weight_bytes.values()):
        return "gpu"
    return "offload" if room >= max(weight_bytes.values()) else "low_vram"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device (for a CPU: free RAM)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    import psutil  # a dependency of accelerate, which diffusers uses for loading

    return psutil.virtual_memory().available


def free_cache(device: torch.device) -> None:
    """Collect garbage, then release unused memory of a device."""
    gc.collect()
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).empty_cache()
    elif device.type == "cpu":
        _trim_heap()


def _trim_heap() -> None:
    """Return freed memory to the system: glibc, unlike other libraries, keeps gigabytes of it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not glibc: no such function
            ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on any device."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
