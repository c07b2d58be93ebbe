"""Free Memory: pass a value on after giving memory back."""

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
        """A value, and what is freed before it goes on."""
        return host.schema(
            node_id="RefineryFreeMemory",
            display_name="Free Memory",
            category="refinery",
            description=(
                "Passes any value on, after freeing what is ticked. Put it between two nodes that "
                "need the GPU one after the other."
            ),
            search_aliases=["vram", "unload models", "purge", "clean", "ollama unload"],
            is_output_node=True,  # so that it also runs at the end of a graph
            not_idempotent=True,  # else a second node behind the same value would be taken for it
            inputs=[
                io.AnyType.Input("value", tooltip="Anything. It goes through untouched."),
                io.Boolean.Input(
                    "comfyui_models",
                    default=True,
                    tooltip="Unload ComfyUI's models from the GPU. Those that are needed again are "
                    "loaded again.",
                ),
                io.Boolean.Input(
                    "cuda_cache",
                    default=True,
                    tooltip="Give what torch keeps for later back to the driver, so that other "
                    "programs can use it.",
                ),
                io.Boolean.Input(
                    "ollama_models",
                    default=False,
                    tooltip="Unload every model that the Ollama server holds, those of other "
                    "programs too.",
                ),
                llm_inputs.server_input(),
            ],
            outputs=[io.AnyType.Output(display_name="value", tooltip="The value as it came.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, server: Any = "") -> bool:
        """Accept any name: a workflow from a machine with other servers must load and queue."""
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
        """Free, and say on the node how much; a server that cannot be asked is said, no error."""
        from .. import memory
        from .host.kept import free_refiner

        said = _unload_models(server) if ollama_models else []
        if host.interrupted():
            host.stop()
        if comfyui_models:
            said.append(str(memory.free_comfyui()))
            free_refiner()  # off the GPU already, as one of ComfyUI's; now forgotten too
        if cuda_cache:
            said.append(str(memory.free_cuda_cache()))
        log.info("Free Memory: %s", "; ".join(said) or "nothing is ticked")
        host.show(host.node_id(cls), *said)
        return io.NodeOutput(value, ui={"text": said})


def _unload_models(server: str) -> list[str]:
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
        return [with_advice(error, host.PAGE)]
    return freed or [f"{backend.server.product or 'The server'} held no models"]
