"""ComfyUI's own models. The only module outside nodes/ that touches comfy, and only as a guest."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from .report import Freed

_LEAST_BYTES = 0.1
"""ComfyUI's word for "load nothing": a budget of 0 means "load everything" to it."""


def free_comfyui() -> Freed:
    """Ask ComfyUI to unload its models and empty its cache; nothing without ComfyUI.

    The bytes are those of the models that were loaded on the compute device and no longer are.
    """
    manager = _manager()
    if manager is None:
        return Freed("ComfyUI's models")
    before = _loaded_bytes(manager)
    manager.unload_all_models()
    manager.soft_empty_cache()
    return Freed("ComfyUI's models", max(0, before - _loaded_bytes(manager)))


def free_vram_bytes() -> int | None:
    """Free memory of ComfyUI's compute device, as its driver counts it; None without ComfyUI."""
    manager = _manager()
    if manager is None:
        return None
    return int(manager.get_free_memory(manager.get_torch_device()))


def total_vram_bytes() -> int | None:
    """Memory of ComfyUI's compute device, the RAM of a CPU; None without ComfyUI."""
    manager = _manager()
    if manager is None:
        return None
    return int(manager.get_total_memory(manager.get_torch_device()))


def compute_device() -> Any:
    """The torch.device on which ComfyUI computes. Only for code that runs inside ComfyUI."""
    return _comfy("model_management").get_torch_device()


def computes_in_half(device: Any) -> bool:
    """Whether ComfyUI would compute in fp16 there (no on CPUs, old cards, and --force-fp32)."""
    return bool(_comfy("model_management").should_use_fp16(device))


def casting_leaf(name: str) -> type:
    """ComfyUI's kind of a torch layer ("Linear", ...): works wherever its weights lie.

    It brings them to its input's device and type for each call, so the manager may load a model
    partially, and take any part of it away at any time.
    """
    return getattr(_comfy("ops").manual_cast, name)


def new_patcher(model: Any, device: Any, offload_device: Any, limit_bytes: int | None) -> Any:
    """Wrap a module for ComfyUI's model manager, which holds it weakly.

    Args:
        model: A module with a `device` that can be set.
        device: Where it computes.
        offload_device: Where its weights rest.
        limit_bytes: At most this much of it is loaded at a time; None: as much as fits. Without
            effect under dynamic VRAM, which loads layers on demand and gives them back likewise.
    """
    patchers = _comfy("model_patcher")
    # Looked up at each call: ComfyUI rebinds the name when it starts with dynamic VRAM.
    base = getattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)
    patcher = _limited(base)(model, device, offload_device)
    patcher.limit_bytes = limit_bytes
    return patcher


def load_patcher(patcher: Any, working_bytes: int, *, whole: bool) -> None:
    """Have a model loaded, others making room; `whole`: all of it, whatever that displaces."""
    _comfy("model_management").load_models_gpu(
        [patcher], memory_required=working_bytes, force_full_load=whole
    )


def has_room(device: Any, working_bytes: int) -> bool:
    """Whether so much can be taken on a device beside what is loaded there.

    Dynamic VRAM gives way to whatever is taken; a computer without a GPU swaps.
    """
    manager = _comfy("model_management")
    dynamic = getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", False)
    if dynamic or manager.is_device_cpu(device):
        return True
    return working_bytes <= int(manager.get_free_memory(device))


def unload_patchers(patchers: Sequence[Any]) -> int:
    """Take these models, and no others, off the device; return the bytes freed there."""
    manager = _manager()
    if manager is None:
        return 0
    freed = 0
    for loaded in list(manager.current_loaded_models):
        patcher = loaded.model
        if patcher is None or not any(patcher is ours for ours in patchers):
            continue
        if not manager.is_device_cpu(patcher.load_device):
            freed += int(patcher.loaded_size())
        loaded.model_unload()
        manager.current_loaded_models.remove(loaded)
    manager.soft_empty_cache()
    return freed


@functools.lru_cache(maxsize=4)
def _limited(base: type) -> type:
    """A kind of ModelPatcher with a limit on what it loads, and that pins no weight in RAM."""

    class LimitedPatcher(base):  # pyright: ignore[reportUntypedBaseClass]
        limit_bytes: int | None = None

        def partially_load(
            self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
        ) -> Any:
            if self.limit_bytes is not None:
                room = max(self.limit_bytes - self.loaded_size(), _LEAST_BYTES)
                extra_memory = min(extra_memory, room)
            return super().partially_load(
                device_to, extra_memory, force_patch_weights=force_patch_weights
            )

        def pin_weight_to_device(self, key: str) -> None:
            """Pin nothing: offloaded weights are pages of a mapped file, which must not be pinned.

            The driver would lock them in place, and copy those it may write to. With dynamic VRAM
            ComfyUI pins copies instead, and never calls this.
            """

    return LimitedPatcher


def _comfy(name: str) -> Any:
    # Reached only from nodes, where ComfyUI has started what there is to start.
    return importlib.import_module(f"comfy.{name}")


def _manager() -> Any:
    # Imported by ComfyUI long before a node runs. Importing it here would start CUDA in a program
    # that is not ComfyUI.
    return sys.modules.get("comfy.model_management")


def _loaded_bytes(manager: Any) -> int:
    return sum(int(patcher.loaded_size()) for patcher in manager.loaded_models() if patcher)
