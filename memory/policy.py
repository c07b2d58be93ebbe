"""When ComfyUI's models make room for Ollama's, and when Ollama's go."""

from __future__ import annotations

import logging

from ..captioning.options import StageOptions
from ..llm.backend import Backend, Model
from ..llm.errors import Cancelled
from ..llm.http import CancelCheck
from ..llm.servers import Server
from .comfyui import free_comfyui, free_vram_bytes
from .cuda import free_cuda_cache
from .report import log_freed
from .unload import unload_in_background, unload_model

log = logging.getLogger(__name__)

_HEADROOM = 1.25
"""What a model needs beside its weights (context, compute buffers), as a factor. An estimate."""


class StageMemory:
    """Makes room before a stage and gives memory back after it (`captioning.run.Memory`)."""

    def before(self, backend: Backend, model: Model, settings: StageOptions) -> None:
        """Free ComfyUI's models when the server shares their GPU, and `free_memory` says so."""
        if not shares_gpu(backend.server, model) or settings.free_memory == "never":
            return
        if settings.free_memory == "when needed" and _fits(model):
            return
        log_freed(log, free_comfyui(), free_cuda_cache())

    def out_of_memory(self, backend: Backend, model: Model, settings: StageOptions) -> int:
        """Free ComfyUI's models, also where `before` thought that the model fits beside them.

        Not where `free_memory` is "never", or the server has a GPU of its own.
        """
        if not shares_gpu(backend.server, model) or settings.free_memory == "never":
            return 0
        freed = free_comfyui(), free_cuda_cache()
        log_freed(log, *freed)
        return sum(part.bytes for part in freed)

    def after(self, backend: Backend, model: Model, *, cancelled: CancelCheck) -> None:
        """Unload the model and see it gone; from a cancel on in a thread behind the caller."""
        if cancelled():
            unload_in_background(backend, model.name)
            return
        try:
            freed = unload_model(backend, model.name, cancelled=cancelled)
        except Cancelled:
            unload_in_background(backend, model.name)
            return
        log_freed(log, freed, free_cuda_cache())


def shares_gpu(server: Server, model: Model) -> bool:
    """Whether `model` would live in the GPU that ComfyUI uses.

    A cloud model never does. Else the server's entry decides; where it leaves the choice, a server
    on this machine does.
    """
    if model.remote_host:
        return False
    return server.is_this_machine if server.shares_gpu is None else server.shares_gpu


def _fits(model: Model) -> bool:
    free = free_vram_bytes()
    size = model.size_bytes
    return free is not None and size is not None and free > size * _HEADROOM
