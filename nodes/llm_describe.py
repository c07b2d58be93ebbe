"""LLM Describe: the first stage of LLM Image Refine alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import VISION_SAMPLING, StageOptions, vision_options
from . import host, llm_inputs
from .host import convert

if TYPE_CHECKING:
    import torch

    from ..captioning.job import Job, Result


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    image: list[torch.Tensor] = llm_inputs.image()
    vision_model: str = llm_inputs.vision_model()
    custom_vision_prompt: list[str] = llm_inputs.custom_vision_prompt()
    temperature: float = llm_inputs.vision_temperature()
    top_p: float = llm_inputs.top_p(VISION_SAMPLING["top_p"])
    top_k: int = llm_inputs.top_k(VISION_SAMPLING["top_k"])
    seed: int = llm_inputs.seed()
    batch_mode: str = llm_inputs.batch_mode()
    keep_loaded_minutes: int = llm_inputs.keep_loaded_minutes()
    on_error: str = llm_inputs.on_error()
    server: str = llm_inputs.server()
    options: StageOptions = llm_inputs.options("Connect Ollama Options for the description.")
    use_recorded_words: bool = llm_inputs.use_recorded_words()
    names: list[str] = llm_inputs.names()


WORDS = {"description": "vision_model"}


class LLMDescribe(llm_inputs.AsksServer):
    """(image, description), one of each for every image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryLLMDescribe",
            display_name="LLM Describe",
            category="Image Refinery/LLM",
            description=(
                "Describes images with a vision model, one text per image. A batch or list loads "
                "the model once."
            ),
            search_aliases=[
                *("ollama", "caption", "image to text", "vision", "llava", "vlm", "interrogate"),
                *("describe image", "img2txt"),
            ],
            is_input_list=True,
            has_intermediate_output=True,
            inputs=host.widgets(Inputs),
            outputs=llm_inputs.described_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls, vision_model: Any = "", server: Any = "", batch_mode: Any = None, on_error: Any = None
    ) -> bool | str:
        """Accept any model and server: workflows of other machines must load and queue."""
        return host.check_choices(Inputs, batch_mode=batch_mode, on_error=on_error)

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Describe every image; errors as in LLM Image Refine."""
        from ..captioning.job import Result
        from ..captioning.run import run
        from ..memory import StageMemory
        from .llm_run import about_images, models_of, record, recorded, running, to_texts

        given, problem = host.read(Inputs, values)
        images = convert.single_images(given.image)
        one_question = given.batch_mode == llm_inputs.BATCH_MODES[1]
        count = 1 if one_question else len(images)
        results: list[Result] = []
        with running(cls, given.on_error) as node_run:
            if problem:
                raise problem
            if given.use_recorded_words:
                (results,) = recorded(cls, node_run, count, WORDS)
            else:
                prompts = given.custom_vision_prompt
                about = about_images(images, given.names, prompts, node_run)
                job = _job(given, one_question, about)
                with (
                    host.kept_answers() as kept,
                    host.open_backends(given.server, given.vision_model) as (backend,),
                ):
                    captions = run(
                        backend,
                        [convert.pixels(single) for single in images],
                        job,
                        memory=StageMemory(),
                        watcher=node_run.watcher,
                        kept=kept,
                    )
                results = [caption.description for caption in captions]
        if node_run.error:
            results = [Result(error=node_run.error)] * count

        noun = "set of images" if one_question else "image"
        failure = node_run.finish("described", noun, results)
        descriptions = to_texts(results)
        ui = {"description": descriptions, "text": descriptions, "models": models_of(results)}
        ui |= failure | record(cls, {"description": results}, WORDS)
        return io.NodeOutput(given.image if one_question else images, descriptions, ui=ui)


def _job(given: Inputs, one_question: bool, about: list[dict[str, str]]) -> Job:
    from ..captioning.job import Job

    sampling = {"temperature": given.temperature, "top_p": given.top_p, "top_k": given.top_k}
    return Job(
        vision=llm_inputs.stage(
            "vision_model",
            given.vision_model,
            vision_options(sampling, given.seed, given.options),
            given.options,
        ),
        custom_prompts=given.custom_vision_prompt,
        one_question=one_question,
        about=about,
        keep_loaded_s=60.0 * given.keep_loaded_minutes,
        stop_on_error=given.on_error == llm_inputs.ON_ERROR[1],
    )
