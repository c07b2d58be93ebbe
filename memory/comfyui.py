"""Memory of ComfyUI's own models. The only module outside nodes/ that uses comfy."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from .report import Freed

_LEAST_BYTES = 0.1
"""The budget for "load nothing": ComfyUI treats a budget of 0 as "load everything"."""


def free_comfyui() -> Freed:
    """Unload ComfyUI's models and empty its cache; do nothing without ComfyUI.

    The bytes are those of the models that this unloaded from the compute device.
    """
    manager = _manager()
    if manager is None:
        return Freed("ComfyUI's models")
    before = _loaded_bytes(manager)
    manager.unload_all_models()
    manager.soft_empty_cache()
    return Freed("ComfyUI's models", max(0, before - _loaded_bytes(manager)))


def free_vram_bytes() -> int | None:
    """Return the free memory of ComfyUI's compute device, by its driver; None without ComfyUI."""
    manager = _manager()
    if manager is None:
        return None
    return int(manager.get_free_memory(manager.get_torch_device()))


def total_vram_bytes() -> int | None:
    """Return the memory of ComfyUI's compute device (for a CPU: RAM); None without ComfyUI."""
    manager = _manager()
    if manager is None:
        return None
    return int(manager.get_total_memory(manager.get_torch_device()))


def compute_device() -> Any:
    """Return the torch.device on which ComfyUI computes. Works only inside ComfyUI."""
    return _comfy("model_management").get_torch_device()


def compute_dtypes(device: Any, unet_parameters: int) -> dict[str, Any]:
    """Return the types in which ComfyUI computes a UNet, a VAE and a text encoder, by these names.

    Its flags (such as --fp32-vae) come first, then what the device can do. The result never has
    fp8 and fp64: what ComfyUI stores in fp8, it computes in another type.

    Args:
        device: Where to compute.
        unet_parameters: On some old cards ComfyUI chooses by the size of the UNet.
    """
    manager = _comfy("model_management")
    torch = sys.modules["torch"]  # not imported: LLM packages import this module, and need none
    half, full = torch.float16, torch.float32
    stored = manager.unet_dtype(device, model_params=unet_parameters, weight_dtype=half)
    unet = manager.unet_manual_cast(stored, device) or stored
    text = manager.text_encoder_dtype(device) if manager.should_use_fp16(device) else full
    return {
        "unet": full if unet == torch.float64 else unet,
        "vae": manager.vae_dtype(device, [torch.bfloat16, full]),
        "text_encoder": text if text in (torch.bfloat16, full) else half,
    }


def casting_leaf(name: str) -> type:
    """Return ComfyUI's class for a torch layer ("Linear", ...), which casts its weights itself.

    It moves the weights to its input's device and type in each call, so the manager can load a
    model partially, and unload any part of it at any time.
    """
    return getattr(_comfy("ops").manual_cast, name)


def new_patcher(model: Any, device: Any, offload_device: Any, limit_bytes: int | None) -> Any:
    """Return a patcher of a module for ComfyUI's model manager, which has only a weak reference.

    Args:
        model: A module with a `device` that can be set.
        device: Where it computes.
        offload_device: Where its unloaded weights are.
        limit_bytes: At most this much of it is loaded at a time; None: as much as fits. No effect
            with dynamic VRAM, which loads and unloads layers on demand.
    """
    patchers = _comfy("model_patcher")
    # Looked up at each call: ComfyUI rebinds the name when it starts with dynamic VRAM.
    base = getattr(patchers, "CoreModelPatcher", patchers.ModelPatcher)
    patcher = _limited(base)(model, device, offload_device)
    patcher.limit_bytes = limit_bytes
    return patcher


def load_patcher(patcher: Any, working_bytes: int, *, whole: bool) -> None:
    """Load a model, unloading others if needed; `whole`: load all of it in any case."""
    _comfy("model_management").load_models_gpu(
        [patcher], memory_required=working_bytes, force_full_load=whole
    )


def has_room(device: Any, working_bytes: int) -> bool:
    """Return whether a device has this much free memory.

    Dynamic VRAM frees memory on demand, and a computer without a GPU swaps.
    """
    manager = _comfy("model_management")
    dynamic = getattr(sys.modules.get("comfy.memory_management"), "aimdo_enabled", False)
    if dynamic or manager.is_device_cpu(device):
        return True
    return working_bytes <= int(manager.get_free_memory(device))


def unload_patchers(patchers: Sequence[Any]) -> int:
    """Unload these models, and no others, from the device; return the bytes freed."""
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
    """Return a subclass of ModelPatcher that limits the loaded bytes and pins no weights in RAM."""

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
            """Pin nothing: offloaded weights are pages of a mapped file.

            Pinning would lock them in memory, and copy writable pages. With dynamic VRAM, ComfyUI
            pins copies instead and never calls this.
            """

    return LimitedPatcher


def _comfy(name: str) -> Any:
    # Called only from nodes, after ComfyUI has started.
    return importlib.import_module(f"comfy.{name}")


def _manager() -> Any:
    # ComfyUI imports it long before a node runs. Importing it here would start CUDA in programs
    # other than ComfyUI.
    return sys.modules.get("comfy.model_management")


def _loaded_bytes(manager: Any) -> int:
    return sum(int(patcher.loaded_size()) for patcher in manager.loaded_models() if patcher)
