"""Make the stub importable for a while, and leave no trace of it behind."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STUB = Path(__file__).resolve().parent


def real_comfy_is_importable() -> bool:
    """Whether `comfy` comes from somewhere else than this folder."""
    spec = importlib.util.find_spec("comfy")
    if spec is None:
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    return not any(place.startswith(str(STUB)) for place in places)


def _forget(before: set[str]) -> None:
    """Drop the stub's modules, and the pack's modules that were imported on top of it."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(STUB)) or name.startswith("image_refinery.nodes"):
            del sys.modules[name]


@contextmanager
def installed() -> Iterator[bool]:
    """Put the stub on `sys.path`; yields False, and does nothing, where ComfyUI is importable.

    Afterwards the stub is gone from `sys.path` and `sys.modules`: code that asks whether ComfyUI
    is the host gets the true answer again.
    """
    if real_comfy_is_importable():
        yield False
        return
    before = set(sys.modules)
    sys.path.insert(0, str(STUB))
    try:
        yield True
    finally:
        sys.path.remove(str(STUB))
        _forget(before)
