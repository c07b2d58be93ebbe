"""LLM Image Refine: a vision model describes an image, a text model rewrites the description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import (
    DEFAULT_INSTRUCTIONS,
    TEXT_SAMPLING,
    VISION_SAMPLING,
    StageOptions,
    text_options,
    vision_options,
)
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
    text_model: str = llm_inputs.text_model(
        "Model that rewrites the description, or auto to choose one that your server has. Choose "
        "the vision model again to load only one model."
    )
    user_instructions: list[str] = llm_inputs.text(
        "Tell the text model how to rewrite the description. Leave empty to skip the rewrite.",
        DEFAULT_INSTRUCTIONS,
    )
    custom_vision_prompt: list[str] = llm_inputs.custom_vision_prompt()
    vision_temperature: float = llm_inputs.vision_temperature()
    vision_top_p: float = llm_inputs.top_p(VISION_SAMPLING["top_p"])
    vision_top_k: int = llm_inputs.top_k(VISION_SAMPLING["top_k"])
    text_temperature: float = llm_inputs.text_temperature()
    text_presence_penalty: float = llm_inputs.presence_penalty()
    text_frequency_penalty: float = llm_inputs.frequency_penalty()
    text_top_p: float = llm_inputs.top_p(TEXT_SAMPLING["top_p"])
    text_top_k: int = llm_inputs.top_k(TEXT_SAMPLING["top_k"])
    seed: int = llm_inputs.seed()
    batch_mode: str = llm_inputs.batch_mode()
    keep_loaded_minutes: int = llm_inputs.keep_loaded_minutes()
    on_error: str = llm_inputs.on_error()
    clean_output: bool = llm_inputs.clean_output("refined_output")
    server: str = llm_inputs.server()
    vision_options: StageOptions = llm_inputs.options("Connect Ollama Options for the description.")
    text_options: StageOptions = llm_inputs.options("Connect Ollama Options for the rewrite.")
    use_recorded_words: bool = llm_inputs.use_recorded_words()
    names: list[str] = llm_inputs.names()


WORDS = {"description": "vision_model", "refined_output": "text_model"}
"""The outputs that are recorded, and the entries for the models that wrote them."""


class LLMImageRefine(llm_inputs.AsksServer):
    """(image, description, refined_output), one of each for every image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryLLMImageRefine",
            display_name="LLM Image Refine",
            category="Image Refinery/LLM",
            description=(
                "Describes images with a vision model, then rewrites the descriptions with a text "
                "model by your instructions. VRAM is freed between the two steps."
            ),
            search_aliases=[
                *("ollama", "caption", "describe image", "image to text", "vision", "llava", "vlm"),
                *("prompt", "image to prompt", "img2txt"),
            ],
            is_input_list=True,
            has_intermediate_output=True,
            inputs=host.widgets(Inputs),
            outputs=[
                *llm_inputs.described_outputs(),
                io.String.Output(
                    display_name="refined_output",
                    is_output_list=True,
                    tooltip="Rewritten description, one per image.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(
        cls,
        vision_model: Any = "",
        text_model: Any = "",
        server: Any = "",
        batch_mode: Any = None,
        on_error: Any = None,
    ) -> bool | str:
        """Accept any model and server: workflows of other machines must load and queue."""
        return host.check_choices(Inputs, batch_mode=batch_mode, on_error=on_error)

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Run both stages on every image.

        An error becomes the text of its image, or ends the workflow where on_error says so.
        The images are output unchanged.
        """
        from ..captioning.job import Result
        from ..captioning.run import run
        from ..memory import StageMemory
        from .llm_run import about_images, models_of, record, recorded, running, to_texts

        given, problem = host.read(Inputs, values)
        images = convert.single_images(given.image)
        one_question = given.batch_mode == llm_inputs.BATCH_MODES[1]
        count = 1 if one_question else len(images)
        described: list[Result] = []
        final: list[Result] = []
        rewrites = any(text.strip() for text in given.user_instructions)
        with running(cls, given.on_error, stages=1 + rewrites) as node_run:
            if problem:
                raise problem
            if given.use_recorded_words:
                described, final = recorded(cls, node_run, count, WORDS)
            else:
                prompts = [*given.user_instructions, *given.custom_vision_prompt]
                about = about_images(images, given.names, prompts, node_run)
                job = _job(given, one_question, about)
                models = given.vision_model, given.text_model
                with (
                    host.kept_answers() as kept,
                    host.open_backends(given.server, *models) as (seeing, writing),
                ):
                    captions = run(
                        seeing,
                        [convert.pixels(single) for single in images],
                        job,
                        text_backend=writing,
                        memory=StageMemory(),
                        watcher=node_run.watcher,
                        kept=kept,
                    )
                described = [caption.description for caption in captions]
                final = [caption.final for caption in captions]
        if node_run.error:
            described = final = [Result(error=node_run.error)] * count

        rewrote = any(
            last.answer and last is not first for first, last in zip(described, final, strict=True)
        )
        verb = "described and rewrote" if rewrote else "described"
        noun = "set of images" if one_question else "image"
        failure = node_run.finish(verb, noun, final, described)
        descriptions, refined = to_texts(described), to_texts(final)
        ui = {"description": descriptions, "refined_output": refined, "text": refined}
        ui |= {"models": models_of(described, final), **failure}
        ui |= record(cls, {"description": described, "refined_output": final}, WORDS)
        shown = given.image if one_question else images
        return io.NodeOutput(shown, descriptions, refined, ui=ui)


def _job(given: Inputs, one_question: bool, about: list[dict[str, str]]) -> Job:
    from ..captioning.job import Job

    seeing = {
        "temperature": given.vision_temperature,
        "top_p": given.vision_top_p,
        "top_k": given.vision_top_k,
    }
    writing = {
        "temperature": given.text_temperature,
        "presence_penalty": given.text_presence_penalty,
        "frequency_penalty": given.text_frequency_penalty,
        "top_p": given.text_top_p,
        "top_k": given.text_top_k,
    }
    return Job(
        vision=llm_inputs.stage(
            "vision_model",
            given.vision_model,
            vision_options(seeing, given.seed, given.vision_options),
            given.vision_options,
        ),
        text=llm_inputs.stage(
            "text_model",
            given.text_model,
            text_options(writing, given.seed, given.text_options),
            given.text_options,
        ),
        instructions=given.user_instructions,
        custom_prompts=given.custom_vision_prompt,
        one_question=one_question,
        about=about,
        keep_loaded_s=60.0 * given.keep_loaded_minutes,
        clean=given.clean_output,
        stop_on_error=given.on_error == llm_inputs.ON_ERROR[1],
    )
