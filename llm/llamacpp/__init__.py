"""A small Ollama inside: a loopback server over llama.cpp, for machines without Ollama.

It needs the package `xllamacpp` (extra `embedded`), which only its worker processes import, and
GGUF files (see `Library`). Addressed by `OLLAMA_BASE_URL=embedded`.
"""

from __future__ import annotations

import atexit
import importlib.util
import threading

from ..._program import install
from .gpu import gpu_remark
from .library import Library, Model, UnknownModel, UnreadableModel
from .places import Place, comfyui_places, models_folder
from .pull import PULLABLE, NotPullable, PullError, PullStatus, pull, pull_steps
from .server import EmbeddedServer

__all__ = [
    "PULLABLE",
    "EmbeddedServer",
    "EngineMissing",
    "Library",
    "Model",
    "NotPullable",
    "Place",
    "PullError",
    "PullStatus",
    "UnknownModel",
    "UnreadableModel",
    "available",
    "comfyui_places",
    "gpu_remark",
    "models_folder",
    "pull",
    "pull_steps",
    "start_shared",
    "why_unavailable",
]

_shared: EmbeddedServer | None = None
_shared_lock = threading.Lock()


class EngineMissing(RuntimeError):
    """llama.cpp's binding is not installed; the message says how to install it."""


def why_unavailable() -> str:
    """Return one sentence on why the engine cannot run and what to do, or "" when it can."""
    if importlib.util.find_spec("xllamacpp"):
        return ""
    return (
        "The embedded engine needs the package xllamacpp, which is not installed. Install it with: "
        f"{install('xllamacpp')}"
    )


def available() -> bool:
    """Whether the engine can run here; looks for the package without importing it."""
    return not why_unavailable()


def start_shared() -> str:
    """Return the base URL of this process's one server, started at the first call.

    It ends, with its worker processes, when the interpreter exits.

    Raises:
        EngineMissing: `xllamacpp` is not installed.
    """
    global _shared
    with _shared_lock:
        if _shared is None:
            reason = why_unavailable()
            if reason:
                raise EngineMissing(reason)
            _shared = EmbeddedServer()
            atexit.register(_shared.close)
        return _shared.url
