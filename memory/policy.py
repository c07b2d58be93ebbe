"""When to unload ComfyUI's models before a stage, and the server's model after it."""

from __future__ import annotations

import logging

from ..captioning.options import StageOptions
from ..llm.backend import Backend, Model
from ..llm.choice import ROOM_FACTOR
from ..llm.errors import Cancelled, LLMError
from ..llm.http import CancelCheck
from ..llm.servers import Server
from .comfyui import free_comfyui, free_vram_bytes, total_vram_bytes
from .cuda import free_cuda_cache
from .report import log_freed
from .unload import unload_in_background, unload_model

log = logging.getLogger(__name__)


class StageMemory:
    """Frees memory before a stage and after it (`captioning.run.Memory`). For one run or job.

    It remembers which models were loaded before the run: on a shared server, it unloads only
    models that the run has loaded.
    """

    def __init__(self) -> None:
        self._loaded_before: set[tuple[str, str]] = set()
        self._loaded_here: set[tuple[str, str]] = set()

    def room_bytes(self, backend: Backend) -> int | None:
        """Return the VRAM for a model after unloading ComfyUI's models; None: not known."""
        return total_vram_bytes() if shares_gpu(backend.server, None) else None

    def before(
        self,
        backend: Backend,
        model: Model,
        settings: StageOptions,
        *,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Unload ComfyUI's models if the server shares their GPU and `free_memory` allows it.

        They stay if the model is already loaded, unless the server is always unloaded.
        """
        key = (backend.server.url, model.name)
        is_ours = backend.unloads_always or key in self._loaded_here
        if not is_ours and _is_loaded(backend, model, cancelled):
            self._loaded_before.add(key)
            return
        self._loaded_here.add(key)
        if not shares_gpu(backend.server, model) or settings.free_memory == "never":
            return
        if settings.free_memory == "when needed" and _fits(model):
            return
        log_freed(log, free_comfyui(), free_cuda_cache())

    def out_of_memory(self, backend: Backend, model: Model, settings: StageOptions) -> int:
        """Unload ComfyUI's models, even if `before` estimated that the model fits beside them.

        Does nothing if `free_memory` is "never", or the server does not share ComfyUI's GPU.
        """
        if not shares_gpu(backend.server, model) or settings.free_memory == "never":
            return 0
        freed = free_comfyui(), free_cuda_cache()
        log_freed(log, *freed)
        return sum(part.bytes for part in freed)

    def after(self, backend: Backend, model: Model, *, cancelled: CancelCheck) -> None:
        """Unload the model and wait until it is unloaded; after a cancel, do it in the background.

        The `unload` of the server's entry decides. Without it, Ollama and the embedded engine are
        always unloaded; other servers only if this run has loaded the model and they share
        ComfyUI's GPU.
        """
        if not self._unloads(backend, model):
            return
        if cancelled():
            unload_in_background(backend, model.name)
            return
        try:
            freed = unload_model(backend, model.name, cancelled=cancelled)
        except Cancelled:
            unload_in_background(backend, model.name)
            return
        log_freed(log, freed, free_cuda_cache())

    def _unloads(self, backend: Backend, model: Model) -> bool:
        server = backend.server
        if server.unload is not None:
            return server.unload
        was_loaded = (server.url, model.name) in self._loaded_before
        return backend.unloads_always or (not was_loaded and shares_gpu(server, model))


def shares_gpu(server: Server, model: Model | None) -> bool:
    """Return whether `model`, or any model of the server, uses the same GPU as ComfyUI.

    A cloud model never does. Else the server's entry decides; without a setting there, a server on
    this machine does.
    """
    if model is not None and model.remote_host:
        return False
    return server.is_this_machine if server.shares_gpu is None else server.shares_gpu


def _is_loaded(backend: Backend, model: Model, cancelled: CancelCheck | None) -> bool:
    """Return whether the server has the model loaded; True if the server cannot say."""
    try:
        return any(backend.same_model(m.name, model.name) for m in backend.ps(cancelled))
    except LLMError:
        return True


def _fits(model: Model) -> bool:
    free = free_vram_bytes()
    size = model.size_bytes
    return free is not None and size is not None and free > size * ROOM_FACTOR
