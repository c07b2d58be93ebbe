"""The interrupt flag, and a record of what the pack asked the model manager to do."""

import threading
import weakref
from enum import Enum
from typing import Any

import torch

calls: list[str] = []
"""Names of the memory functions called, in order; a test clears it first."""


vram_state = Enum("VRAMState", {"NORMAL_VRAM": 3})["NORMAL_VRAM"]


class InterruptProcessingException(Exception):
    """An Exception up to 0.19, as here; a BaseException since 0.20."""


_lock = threading.Lock()
_interrupted = False


def interrupt_current_processing(value: bool = True) -> None:
    global _interrupted
    with _lock:
        _interrupted = value


def processing_interrupted() -> bool:
    """Look at the flag and leave it."""
    with _lock:
        return _interrupted


def throw_exception_if_processing_interrupted() -> None:
    """Raise if the flag is set, and clear it, as the host does."""
    global _interrupted
    with _lock:
        if _interrupted:
            _interrupted = False
            raise InterruptProcessingException


class LoadedModel:
    """One entry of the list; it holds the patcher weakly."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)

    @property
    def model(self) -> Any:
        return self._model()

    def model_unload(self, memory_to_free: Any = None, unpatch_weights: bool = True) -> bool:
        self.model.detach(unpatch_weights)
        return True


current_loaded_models: list[LoadedModel] = []


def load_models_gpu(
    models: list[Any],
    memory_required: float = 0,
    force_patch_weights: bool = False,
    minimum_memory_required: float | None = None,
    force_full_load: bool = False,
) -> None:
    calls.append("load_models_gpu")
    current_loaded_models[:] = [one for one in current_loaded_models if one.model is not None]
    for patcher in models:
        patcher.partially_load(patcher.load_device, 1e32)
        if all(one.model is not patcher for one in current_loaded_models):
            current_loaded_models.insert(0, LoadedModel(patcher))


def unload_all_models() -> None:
    calls.append("unload_all_models")
    while current_loaded_models:
        loaded = current_loaded_models.pop()
        if loaded.model is not None:
            loaded.model_unload()


def soft_empty_cache(force: bool = False) -> None:
    calls.append("soft_empty_cache")


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def get_torch_device_name(device: torch.device) -> str:
    return device.type


def is_device_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def should_use_fp16(
    device: torch.device | None = None,
    model_params: int = 0,
    prioritize_performance: bool = True,
    manual_cast: bool = False,
) -> bool:
    return device is not None and not is_device_cpu(device)


def unet_dtype(
    device: torch.device | None = None,
    model_params: int = 0,
    weight_dtype: torch.dtype | None = None,
) -> torch.dtype:
    return torch.float16 if should_use_fp16(device) else torch.float32


def unet_manual_cast(
    weight_dtype: torch.dtype,
    inference_device: torch.device,
) -> torch.dtype | None:
    """None: it computes in the type of the weights."""
    fits = weight_dtype == torch.float32 or should_use_fp16(inference_device)
    return None if fits else torch.float32


def text_encoder_dtype(device: torch.device | None = None) -> torch.dtype:
    return torch.float16


def vae_dtype(device: torch.device | None = None, allowed_dtypes: Any = []) -> torch.dtype:  # noqa: B006
    return torch.float32


def intermediate_device() -> torch.device:
    return torch.device("cpu")


def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
    free = 8 * 2**30
    return (free, free) if torch_free_too else free


def get_total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
    total = 16 * 2**30
    return (total, total) if torch_total_too else total


def loaded_models(only_currently_used: bool = False) -> list[Any]:
    return [one.model for one in current_loaded_models]
