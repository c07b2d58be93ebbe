"""The interrupt flag, and a record of what the pack asked the model manager to do."""

import threading
from typing import Any

import torch

calls: list[str] = []
"""Names of the memory functions called, in order; a test clears it first."""


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


def unload_all_models() -> None:
    calls.append("unload_all_models")


def soft_empty_cache(force: bool = False) -> None:
    calls.append("soft_empty_cache")


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def intermediate_device() -> torch.device:
    return torch.device("cpu")


def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
    free = 8 * 2**30
    return (free, free) if torch_free_too else free


def get_total_memory(dev: Any = None, torch_total_too: bool = False) -> Any:
    total = 16 * 2**30
    return (total, total) if torch_total_too else total


def loaded_models(only_currently_used: bool = False) -> list[Any]:
    return []
