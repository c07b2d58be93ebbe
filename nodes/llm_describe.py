"""LLM Describe: the first stage of LLM Image Refine alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import vision_options
from ..llm.errors import OllamaError
from . import host, stage_inputs
from .host import convert

if TYPE_CHECKING:
    import torch

    from ..captioning.watcher import Watcher
    from ..ollama_client.client import OllamaClient

_NUMBERS = stage_inputs.vision_numbers()


class LLMDescribe(stage_inputs.AsksOllama):
    """(image, description), one of each for every image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs of the vision stage, by the names they have in LLM Image Refine."""
        return host.schema(
            node_id="RefineryLLMDescribe",
            display_name="LLM Describe",
            category="refinery",
            description=(
                "A vision model of Ollama describes the image. A batch or list gives one text per "
                "image, with one model load in all."
            ),
            search_aliases=["ollama", "caption", "image to text", "llava", "vlm", "interrogate"],
            is_input_list=True,
            inputs=[
                stage_inputs.image_input(),
                stage_inputs.vision_model_input(),
                stage_inputs.custom_vision_prompt_input(),
                *(number.input() for number in _NUMBERS),
                stage_inputs.model_seed_input(),
                stage_inputs.batch_mode_input(),
                stage_inputs.keep_loaded_input(),
                stage_inputs.on_error_input(),
                stage_inputs.server_input(),
                stage_inputs.options_input("options", "Ollama Options for the description."),
            ],
            outputs=[
                *stage_inputs.described_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, vision_model: Any = "", server: Any = "") -> bool:
        """Accept any name: a workflow from a machine with other models must load and queue."""
        return True

    @classmethod
    def execute(cls, image: list[torch.Tensor], **inputs: list[Any]) -> io.NodeOutput:
        """Describe every image; errors as in LLM Image Refine."""
        from ..captioning.stages import Job, Result, run
        from ..memory import StageMemory
        from .stage_run import ask_server, finish, to_texts

        began = time.monotonic()
        images = convert.single_images(image)
        one_question = stage_inputs.asks_one_question(inputs)

        def ask(client: OllamaClient, watcher: Watcher) -> list[Result]:
            job = Job(
                vision=stage_inputs.stage(
                    inputs, "vision_model", _NUMBERS, "options", vision_options
                ),
                custom_prompts=stage_inputs.texts(inputs, "custom_vision_prompt"),
                one_question=one_question,
                keep_loaded_s=stage_inputs.keep_loaded_s(inputs),
                stop_on_error=stage_inputs.stops_on_error(inputs),
            )
            sources = [convert.pixels(single) for single in images]
            return run(client, sources, job, memory=StageMemory(), watcher=watcher)

        results = ask_server(cls, inputs, ask)
        if isinstance(results, OllamaError):
            results = [Result(description=results)] * (1 if one_question else len(images))
        outcomes = [result.description for result in results]
        finish(cls, "described", "set of images" if one_question else "image", outcomes, began)
        descriptions = to_texts(outcomes)
        ui = {"description": descriptions, "text": descriptions}
        return io.NodeOutput(image if one_question else images, descriptions, ui=ui)
