"""Free Memory: pass a value through after freeing VRAM."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

from comfy_api.latest import io

from .._advice import with_advice
from ..llm.errors import Cancelled, LLMError
from . import host, llm_inputs

log = logging.getLogger(__name__)


class FreeMemory(io.ComfyNode):
    """Any value in, the very same value out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A value, and what to free before passing it through."""
        return host.schema(
            node_id="RefineryFreeMemory",
            display_name="Free Memory",
            category="Image Refinery/Utilities",
            description=(
                "Frees VRAM, then passes any value through. Put it between two nodes that need "
                "the GPU one after the other."
            ),
            search_aliases=["vram", "unload models", "purge", "clean", "ollama unload"],
            is_output_node=True,  # so that it also runs at the end of a graph
            not_idempotent=True,  # else a second node with the same value would be taken for it
            inputs=[
                io.AnyType.Input("value", tooltip="Any value. It passes through unchanged."),
                io.Boolean.Input(
                    "comfyui_models",
                    default=True,
                    tooltip="Unload ComfyUI's models from VRAM. Models that are needed later load "
                    "again.",
                ),
                io.Boolean.Input(
                    "cuda_cache",
                    default=True,
                    tooltip="Release PyTorch's cached VRAM to other programs.",
                ),
                io.Boolean.Input(
                    "ollama_models",
                    display_name="server_models",
                    default=False,
                    tooltip="Unload every model of the server, including those of other programs.",
                ),
                host.advanced(llm_inputs.server_input()),
            ],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The value, unchanged.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, server: Any = "") -> bool:
        """Accept any server: workflows of other machines must load and queue."""
        return True

    @classmethod
    def execute(
        cls,
        value: Any,
        comfyui_models: bool,
        cuda_cache: bool,
        ollama_models: bool,
        server: str = "default",
    ) -> io.NodeOutput:
        """Free, and show how much on the node, or that the server cannot be reached."""
        from .. import memory
        from .host.kept import free_refiner

        said = _unload_models(cls, server) if ollama_models else []
        if host.interrupted():
            host.stop()
        if comfyui_models:
            said.append(str(memory.free_comfyui()))
            # Off the GPU already, as one of ComfyUI's; now its file is closed too.
            if closed := free_refiner():
                said.append(f"{closed} closed")
        if cuda_cache:
            said.append(str(memory.free_cuda_cache()))
        log.info("Free Memory: %s", "; ".join(said) or "nothing is turned on")
        host.show(host.node_id(cls), *said)
        return io.NodeOutput(value, ui={"text": said})


def _unload_models(node: type[io.ComfyNode], server: str) -> list[str]:
    from .. import memory

    try:
        memory.finish_pending_unloads(host.interrupted)
        with closing(host.open_backend(server)) as backend:
            freed = [
                str(memory.unload_model(backend, model.name, cancelled=host.interrupted))
                for model in backend.ps(host.interrupted)
            ]
    except Cancelled:
        host.stop()
    except LLMError as error:
        host.note_error(node, error)
        return [with_advice(error, host.PAGE)]
    return freed or [f"{backend.server.product or 'The server'} had no models loaded"]
