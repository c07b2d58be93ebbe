"""LLM Image Refine: a vision model describes an image, a text model rewrites the description."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import text_options, vision_options
from ..captioning.prompts import DEFAULT_INSTRUCTIONS
from ..llm.errors import OllamaError
from . import host, stage_inputs
from .host import convert

if TYPE_CHECKING:
    import torch

    from ..captioning.stages import Job, Result
    from ..captioning.watcher import Watcher
    from ..ollama_client.client import OllamaClient

_VISION_NUMBERS = stage_inputs.vision_numbers("vision_")
_TEXT_NUMBERS = stage_inputs.text_numbers("text_")


class LLMImageRefine(stage_inputs.AsksOllama):
    """The node of spec/llm-image-refine: (image, description, refined_output)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The spec's inputs in its order, then the pack's own."""
        return host.schema(
            node_id="RefineryLLMImageRefine",
            display_name="LLM Image Refine",
            category="refinery",
            description=(
                "A vision model of Ollama describes the image; a text model rewrites the "
                "description by your instructions. ComfyUI's and Ollama's models take turns on "
                "the GPU. A batch or list gives one text per image."
            ),
            search_aliases=["ollama", "caption", "describe image", "llava", "vlm", "prompt"],
            is_input_list=True,
            inputs=[
                stage_inputs.image_input(),
                stage_inputs.vision_model_input(),
                stage_inputs.text_model_input(
                    "Ollama model that rewrites the description, such as llama3.2:latest, mistral "
                    "or mixtral. The same model as above saves loading a second one."
                ),
                io.String.Input(
                    "user_instructions",
                    multiline=True,
                    default=DEFAULT_INSTRUCTIONS,
                    tooltip="How the description is rewritten. Empty: no second stage, and "
                    "refined_output is the description.",
                ),
                stage_inputs.custom_vision_prompt_input(),
                *(number.input() for number in (*_VISION_NUMBERS, *_TEXT_NUMBERS)),
                stage_inputs.model_seed_input(),
                stage_inputs.batch_mode_input(),
                stage_inputs.keep_loaded_input(),
                stage_inputs.on_error_input(),
                stage_inputs.clean_output_input("refined_output"),
                stage_inputs.server_input(),
                stage_inputs.options_input("vision_options", "Ollama Options for the description."),
                stage_inputs.options_input("text_options", "Ollama Options for the rewrite."),
            ],
            outputs=[
                *stage_inputs.described_outputs(),
                io.String.Output(
                    display_name="refined_output",
                    is_output_list=True,
                    tooltip="The rewritten description, one text per image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, vision_model: Any = "", text_model: Any = "", server: Any = ""
    ) -> bool:
        """Accept any name: a workflow from a machine with other models must load and queue."""
        return True

    @classmethod
    def execute(cls, image: list[torch.Tensor], **inputs: list[Any]) -> io.NodeOutput:
        """Run both stages on every image; see spec/llm-image-refine for the error rules."""
        from ..captioning.stages import Result, run
        from ..memory import StageMemory
        from ..ollama_client.client import Answer
        from .stage_run import ask_server, finish, to_texts

        began = time.monotonic()
        images = convert.single_images(image)
        one_question = stage_inputs.asks_one_question(inputs)

        def ask(client: OllamaClient, watcher: Watcher) -> list[Result]:
            sources = [convert.pixels(single) for single in images]
            job = _job(inputs)
            return run(client, sources, job, memory=StageMemory(), watcher=watcher)

        results = ask_server(cls, inputs, ask)
        if isinstance(results, OllamaError):
            failed = Result(description=results, refined=results)
            results = [failed] * (1 if one_question else len(images))
        outcomes = [result.refined or result.description for result in results]
        # A failed description is its own rewrite, also where none was asked for.
        rewrote = any(isinstance(result.refined, Answer) for result in results)
        verb = "described and rewrote" if rewrote else "described"
        noun = "set of images" if one_question else "image"
        described = [result.description for result in results]
        finish(cls, verb, noun, outcomes, began, first_stage=described)
        descriptions = to_texts(described)
        refined = to_texts(outcomes)
        ui = {"description": descriptions, "refined_output": refined, "text": refined}
        return io.NodeOutput(image if one_question else images, descriptions, refined, ui=ui)


def _job(inputs: stage_inputs.Inputs) -> Job:
    from ..captioning.stages import Job

    return Job(
        vision=stage_inputs.stage(
            inputs, "vision_model", _VISION_NUMBERS, "vision_options", vision_options
        ),
        text=stage_inputs.stage(inputs, "text_model", _TEXT_NUMBERS, "text_options", text_options),
        instructions=stage_inputs.texts(inputs, "user_instructions"),
        custom_prompts=stage_inputs.texts(inputs, "custom_vision_prompt"),
        one_question=stage_inputs.asks_one_question(inputs),
        keep_loaded_s=stage_inputs.keep_loaded_s(inputs),
        clean=bool(stage_inputs.one(inputs, "clean_output", True)),
        stop_on_error=stage_inputs.stops_on_error(inputs),
    )
