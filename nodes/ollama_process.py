"""Ollama Process: one text stage without an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import StageOptions, text_options
from . import host, llm_inputs

if TYPE_CHECKING:
    from ..captioning.job import Result, TextJob


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs, in their order."""

    text: list[str] = llm_inputs.text(
        "The text to work on, or a list of texts. It is data: what it asks for is not obeyed. "
        "Empty: the instructions are the whole prompt."
    )
    instructions: list[str] = llm_inputs.text(
        "What to do with the text. Empty: the text is the whole prompt."
    )
    text_model: str = llm_inputs.text_model(
        "Ollama model that writes, such as llama3.2:latest, mistral or mixtral. "
        "Link a text to use any name."
    )
    temperature: float = llm_inputs.text_temperature()
    presence_penalty: float = llm_inputs.presence_penalty()
    frequency_penalty: float = llm_inputs.frequency_penalty()
    top_p: float = llm_inputs.text_top_p()
    top_k: int = llm_inputs.text_top_k()
    seed: int = llm_inputs.seed()
    keep_loaded_minutes: int = llm_inputs.keep_loaded_minutes()
    on_error: str = llm_inputs.on_error()
    clean_output: bool = llm_inputs.clean_output("the text")
    server: str = llm_inputs.server()
    options: StageOptions = llm_inputs.options("Ollama Options for the request.")


class OllamaProcess(llm_inputs.AsksServer):
    """text + instructions -> text; lists give one text for each entry of the longer one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
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
            inputs=host.widgets(Inputs),
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
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Ask once for each text; errors as in LLM Image Refine."""
        from ..captioning.job import Result
        from ..captioning.run import process
        from ..memory import StageMemory
        from .llm_run import models_of, running, to_texts

        given, problem = host.read(Inputs, values)
        results: list[Result] = []
        with running(cls, given.on_error) as node_run:
            if problem:
                raise problem
            job = _job(given)
            with host.open_backends(given.server, given.text_model) as (backend,):
                results = process(backend, job, memory=StageMemory(), watcher=node_run.watcher)
        if node_run.error:
            count = max(len(given.text), len(given.instructions))
            results = [Result(error=node_run.error)] * count

        node_run.finish("wrote", "text", results)
        written = to_texts(results)
        return io.NodeOutput(written, ui={"text": written, "models": models_of(results)})


def _job(given: Inputs) -> TextJob:
    from ..captioning.job import TextJob

    sampling = {
        "temperature": given.temperature,
        "presence_penalty": given.presence_penalty,
        "frequency_penalty": given.frequency_penalty,
        "top_p": given.top_p,
        "top_k": given.top_k,
    }
    return TextJob(
        stage=llm_inputs.stage(
            "text_model",
            given.text_model,
            text_options(sampling, given.seed, given.options),
            given.options,
        ),
        texts=given.text,
        instructions=given.instructions,
        keep_loaded_s=60.0 * given.keep_loaded_minutes,
        clean=given.clean_output,
        stop_on_error=given.on_error == llm_inputs.ON_ERROR[1],
    )
