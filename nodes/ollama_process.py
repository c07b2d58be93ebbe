"""Ollama Process: one text stage without an image."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import text_options
from ..llm.errors import OllamaError
from . import host, stage_inputs

if TYPE_CHECKING:
    from ..captioning.watcher import Outcome, Watcher
    from ..ollama_client.client import OllamaClient

_NUMBERS = stage_inputs.text_numbers()


class OllamaProcess(stage_inputs.AsksOllama):
    """text + instructions -> text; lists give one text for each entry of the longer one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs of the text stage, by the names they have in LLM Image Refine."""
        return host.schema(
            node_id="RefineryOllamaProcess",
            display_name="Ollama Process",
            category="refinery",
            description=(
                "A text model of Ollama does with a text what the instructions say: rewrite, "
                "translate, shorten, extract. A list of texts gives a list, with one model load."
            ),
            search_aliases=["ollama", "llm", "rewrite", "translate", "summarize", "prompt", "chat"],
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="The text to work on, or a list of texts. It is data: what it asks "
                    "for is not obeyed. Empty: the instructions are the whole prompt.",
                ),
                io.String.Input(
                    "instructions",
                    multiline=True,
                    default="",
                    tooltip="What to do with the text. Empty: the text is the whole prompt.",
                ),
                stage_inputs.text_model_input(
                    "Ollama model that writes, such as llama3.2:latest, mistral or mixtral. "
                    "Link a text to use any name."
                ),
                *(number.input() for number in _NUMBERS),
                stage_inputs.model_seed_input(),
                stage_inputs.keep_loaded_input(),
                stage_inputs.on_error_input(),
                stage_inputs.clean_output_input("the text"),
                stage_inputs.server_input(),
                stage_inputs.options_input("options", "Ollama Options for the request."),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="What the model wrote, one text for each that came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text_model: Any = "", server: Any = "") -> bool:
        """Accept any name: a workflow from a machine with other models must load and queue."""
        return True

    @classmethod
    def execute(cls, **inputs: list[Any]) -> io.NodeOutput:
        """Ask once for each text; errors as in LLM Image Refine."""
        from ..captioning.stages import TextJob, process
        from ..memory import StageMemory
        from .stage_run import ask_server, finish, to_texts

        began = time.monotonic()
        texts = stage_inputs.texts(inputs, "text")
        instructions = stage_inputs.texts(inputs, "instructions")

        def ask(client: OllamaClient, watcher: Watcher) -> list[Outcome]:
            job = TextJob(
                stage=stage_inputs.stage(inputs, "text_model", _NUMBERS, "options", text_options),
                texts=texts,
                instructions=instructions,
                keep_loaded_s=stage_inputs.keep_loaded_s(inputs),
                clean=bool(stage_inputs.one(inputs, "clean_output", True)),
                stop_on_error=stage_inputs.stops_on_error(inputs),
            )
            return process(client, job, memory=StageMemory(), watcher=watcher)

        outcomes = ask_server(cls, inputs, ask)
        if isinstance(outcomes, OllamaError):
            outcomes = [outcomes] * max(len(texts), len(instructions))
        finish(cls, "wrote", "text", outcomes, began)
        written = to_texts(outcomes)
        return io.NodeOutput(written, ui={"text": written})
