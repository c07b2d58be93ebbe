"""Ollama Process: one text stage without an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import TEXT_SAMPLING, StageOptions, text_options
from . import host, llm_inputs

if TYPE_CHECKING:
    from ..captioning.job import Result, TextJob


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    text: list[str] = llm_inputs.text(
        "Text to work on, or a list of texts. It is treated as content, but a weak model may still "
        "follow instructions inside it."
    )
    instructions: list[str] = llm_inputs.text(
        "Tell the model what to do with the text. Leave empty to send the text as the whole prompt."
    )
    text_model: str = llm_inputs.text_model(
        "Model that writes the text, or auto to choose one that your server has. Connect a String "
        "to use a model that is not listed."
    )
    temperature: float = llm_inputs.text_temperature()
    presence_penalty: float = llm_inputs.presence_penalty()
    frequency_penalty: float = llm_inputs.frequency_penalty()
    top_p: float = llm_inputs.top_p(TEXT_SAMPLING["top_p"])
    top_k: int = llm_inputs.top_k(TEXT_SAMPLING["top_k"])
    seed: int = llm_inputs.seed()
    keep_loaded_minutes: int = llm_inputs.keep_loaded_minutes()
    on_error: str = llm_inputs.on_error()
    clean_output: bool = llm_inputs.clean_output("the text")
    server: str = llm_inputs.server()
    options: StageOptions = llm_inputs.options("Connect Ollama Options for the request.")
    use_recorded_words: bool = llm_inputs.use_recorded_words()


WORDS = {"text": "text_model"}


class OllamaProcess(llm_inputs.AsksServer):
    """text + instructions -> text; lists give one text for each entry of the longer one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryOllamaProcess",
            display_name="Ollama Process",
            category="Image Refinery/LLM",
            description=(
                "Text to text: rewrites, translates, shortens or extracts with a text model, by "
                "your instructions. A list of texts loads the model once."
            ),
            search_aliases=[
                *("ollama", "llm", "text", "rewrite", "translate", "summarize", "prompt", "chat"),
                *("lm studio", "llama.cpp", "openai"),
            ],
            is_input_list=True,
            has_intermediate_output=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="Text by the model, one for each input text.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls, text_model: Any = "", server: Any = "", on_error: Any = None
    ) -> bool | str:
        """Accept any model and server: workflows of other machines must load and queue."""
        return host.check_choices(Inputs, on_error=on_error)

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Ask once for each text; errors as in LLM Image Refine."""
        from ..captioning.job import Result
        from ..captioning.run import process
        from ..memory import StageMemory
        from .llm_run import models_of, record, recorded, running, to_texts

        given, problem = host.read(Inputs, values)
        count = max(len(given.text), len(given.instructions))
        results: list[Result] = []
        with running(cls, given.on_error) as node_run:
            if problem:
                raise problem
            if given.use_recorded_words:
                (results,) = recorded(cls, node_run, count, WORDS)
            else:
                job = _job(given)
                with (
                    host.kept_answers() as kept,
                    host.open_backends(given.server, given.text_model) as (backend,),
                ):
                    results = process(
                        backend, job, memory=StageMemory(), watcher=node_run.watcher, kept=kept
                    )
        if node_run.error:
            results = [Result(error=node_run.error)] * count

        failure = node_run.finish("wrote", "text", results)
        written = to_texts(results)
        ui = {"text": written, "models": models_of(results), **failure}
        ui |= record(cls, {"text": results}, WORDS)
        return io.NodeOutput(written, ui=ui)


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
