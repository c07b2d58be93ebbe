"""ComfyUI's own models. The only module outside nodes/ that touches comfy, and only as a guest."""

from __future__ import annotations

import sys
from typing import Any

from .report import Freed


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


def _manager() -> Any:
    # Imported by ComfyUI long before a node runs. Importing it here would start CUDA in a program
    # that is not ComfyUI.
    return sys.modules.get("comfy.model_management")


def _loaded_bytes(manager: Any) -> int:
    return sum(int(patcher.loaded_size()) for patcher in manager.loaded_models() if patcher)
