"""LLM Image Refine: a vision model describes an image, a text model rewrites the description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .. import memory
from ..ollama_client.client import OllamaClient
from ..ollama_client.errors import Cancelled, OllamaError
from ..ollama_client.options import StageOptions, text_options, vision_options
from ..ollama_client.prompts import DEFAULT_INSTRUCTIONS
from ..ollama_client.stages import Job, Outcome, Result, Stage, run
from . import convert, host
from .ollama_options import OptionsType

if TYPE_CHECKING:
    import torch

USUAL_VISION_MODEL = "llava:latest"
USUAL_TEXT_MODEL = "llama3.2:latest"
BATCH_MODES = ("each image", "all images in one question")
ON_ERROR = ("give the message", "stop the workflow")


@dataclass(frozen=True)
class _Number:
    """A sampling widget: its range, and the option of Ollama that it sets."""

    id: str
    option: str
    default: float
    low: float
    high: float
    tooltip: str

    def input(self) -> Any:
        limits: dict[str, Any] = {"default": self.default, "min": self.low, "max": self.high}
        if isinstance(self.default, int):
            return io.Int.Input(self.id, **limits, optional=True, tooltip=self.tooltip)
        return io.Float.Input(
            self.id, **limits, step=0.01, round=0.001, optional=True, tooltip=self.tooltip
        )

    def value(self, inputs: dict[str, list[Any]]) -> float:
        """ComfyUI checks the range of a widget, but not of a linked value."""
        value = _one(inputs, self.id, self.default)
        if not self.low <= value <= self.high:
            raise _BadInput(f"{self.id} is {value}, but must be from {self.low} to {self.high}.")
        return value


_VISION_NUMBERS = (
    _Number(
        "vision_temperature",
        "temperature",
        0.3,
        0.0,
        2.0,
        "Randomness of the description. 0.1 to 0.3: factual; 0.7 to 1.0: more creative.",
    ),
    _Number(
        "vision_top_p",
        "top_p",
        0.95,
        0.0,
        1.0,
        "Nucleus sampling of the description: only the likeliest words that make up this share.",
    ),
    _Number(
        "vision_top_k",
        "top_k",
        40,
        1,
        100,
        "Top-k sampling of the description: only this many of the likeliest words.",
    ),
)
_TEXT_NUMBERS = (
    _Number(
        "text_temperature",
        "temperature",
        0.7,
        0.0,
        2.0,
        "Randomness of the rewrite. 0.3 to 0.5: precise; 0.7 to 1.2: creative.",
    ),
    _Number(
        "text_presence_penalty",
        "presence_penalty",
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid topics that came up already. Older servers ignore it for some models.",
    ),
    _Number(
        "text_frequency_penalty",
        "frequency_penalty",
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid words that came up often. Older servers ignore it for some models.",
    ),
    _Number(
        "text_top_p",
        "top_p",
        0.95,
        0.0,
        1.0,
        "Nucleus sampling of the rewrite: only the likeliest words that make up this share.",
    ),
    _Number(
        "text_top_k",
        "top_k",
        40,
        1,
        100,
        "Top-k sampling of the rewrite: only this many of the likeliest words.",
    ),
)


class _BadInput(OllamaError):
    """A value that came over a link cannot be used."""


class LLMImageRefine(io.ComfyNode):
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
                io.Image.Input("image", tooltip="The image, batch or list of images to describe."),
                _model_input(
                    "vision_model",
                    "vision",
                    USUAL_VISION_MODEL,
                    "Ollama model that can see, such as llava:latest, llava:13b or bakllava. "
                    "Link a text to use any name.",
                ),
                _model_input(
                    "text_model",
                    "completion",
                    USUAL_TEXT_MODEL,
                    "Ollama model that rewrites the description, such as llama3.2:latest, mistral "
                    "or mixtral. The same model as above saves loading a second one.",
                ),
                io.String.Input(
                    "user_instructions",
                    multiline=True,
                    default=DEFAULT_INSTRUCTIONS,
                    tooltip="How the description is rewritten. Empty: no second stage, and "
                    "refined_output is the description.",
                ),
                io.String.Input(
                    "custom_vision_prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What the vision model is asked. Empty: a detailed description.",
                ),
                *(number.input() for number in (*_VISION_NUMBERS, *_TEXT_NUMBERS)),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    control_after_generate=host.FIXED,
                    optional=True,
                    tooltip="The same seed and inputs give the same texts, as far as the server "
                    "allows. Change it for another answer.",
                ),
                io.Combo.Input(
                    "batch_mode",
                    options=list(BATCH_MODES),
                    default=BATCH_MODES[0],
                    optional=True,
                    tooltip="One text for each image, or one text about all of them together.",
                ),
                io.Int.Input(
                    "keep_loaded_minutes",
                    default=0,
                    min=0,
                    max=1440,
                    optional=True,
                    tooltip="How long Ollama's models stay loaded after a run. 0: each leaves the "
                    "GPU after its stage.",
                ),
                io.Combo.Input(
                    "on_error",
                    options=list(ON_ERROR),
                    default=ON_ERROR[0],
                    optional=True,
                    tooltip="Put the error's message into the text outputs and go on, or stop.",
                ),
                io.Boolean.Input(
                    "clean_output",
                    default=True,
                    optional=True,
                    tooltip='Take "Here is ...:", wrapping quotes and code fences off '
                    "refined_output.",
                ),
                io.Combo.Input(
                    "server",
                    options=host.servers_to_choose(),
                    default="default",
                    optional=True,
                    tooltip="default: OLLAMA_BASE_URL, else OLLAMA_HOST, else this machine. Other "
                    "servers are named in image-refinery.toml in ComfyUI's user folder.",
                ),
                OptionsType.Input(
                    "vision_options", optional=True, tooltip="Ollama Options for the description."
                ),
                OptionsType.Input(
                    "text_options", optional=True, tooltip="Ollama Options for the rewrite."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", is_output_list=True, tooltip="The images, untouched."
                ),
                io.String.Output(
                    display_name="description",
                    is_output_list=True,
                    tooltip="What the vision model saw, one text per image.",
                ),
                io.String.Output(
                    display_name="refined_output",
                    is_output_list=True,
                    tooltip="The rewritten description, one text per image.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, vision_model: Any, text_model: Any, server: Any) -> bool:
        """Accept any name: a workflow from a machine with other models must load and queue."""
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that ended in a message, so that a failure is never cached."""
        return host.failed_runs()

    @classmethod
    def execute(cls, image: list[torch.Tensor], **inputs: list[Any]) -> io.NodeOutput:
        """Run both stages on every image; see spec/llm-image-refine for the error rules."""
        images = convert.single_images(image)
        one_question = inputs.get("batch_mode", [""])[0] == BATCH_MODES[1]
        stop_on_error = inputs.get("on_error", [""])[0] == ON_ERROR[1]
        watcher = host.NodeWatcher(host.node_id(cls))
        try:
            memory.finish_pending_unloads(host.interrupted)
            job = _job(inputs, one_question=one_question, stop_on_error=stop_on_error)
            with OllamaClient(host.server_named(_one(inputs, "server", ""))) as client:
                sources = [convert.pixels(single) for single in images]
                results = run(client, sources, job, memory=memory.StageMemory(), watcher=watcher)
        except Cancelled:
            host.stop()
        except OllamaError as error:
            if stop_on_error:
                raise
            failed = Result(description=error, refined=error)
            results = [failed] * (1 if one_question else len(images))
        descriptions = [_text(result.description) for result in results]
        refined = [_text(result.refined or result.description) for result in results]
        if any(isinstance(outcome, OllamaError) for r in results for outcome in _outcomes(r)):
            host.count_failed_run()
        ui = {"description": descriptions, "refined_output": refined, "text": refined}
        return io.NodeOutput(image if one_question else images, descriptions, refined, ui=ui)


def _model_input(id: str, capability: str, usual: str, tooltip: str) -> Any:
    names = host.models_to_choose(capability, usual)
    combo = io.Combo.Input(id, options=names, default=usual if usual in names else names[0])
    return io.MultiType.Input(combo, types=[io.String], tooltip=tooltip)


def _job(inputs: dict[str, list[Any]], *, one_question: bool, stop_on_error: bool) -> Job:
    seed = int(_one(inputs, "seed", 0))
    vision_settings = _one(inputs, "vision_options", None) or StageOptions()
    text_settings = _one(inputs, "text_options", None) or StageOptions()
    vision = {number.option: number.value(inputs) for number in _VISION_NUMBERS}
    text = {number.option: number.value(inputs) for number in _TEXT_NUMBERS}
    return Job(
        vision=Stage(
            model=_name(inputs, "vision_model"),
            options=vision_options(vision, seed, vision_settings),
            settings=vision_settings,
        ),
        text=Stage(
            model=_name(inputs, "text_model"),
            options=text_options(text, seed, text_settings),
            settings=text_settings,
        ),
        instructions=_texts(inputs, "user_instructions"),
        custom_prompts=_texts(inputs, "custom_vision_prompt"),
        one_question=one_question,
        keep_loaded_s=60.0 * _one(inputs, "keep_loaded_minutes", 0),
        clean=bool(_one(inputs, "clean_output", True)),
        stop_on_error=stop_on_error,
    )


def _one(inputs: dict[str, list[Any]], id: str, default: Any) -> Any:
    """Return the value of an input that all images share; a list of different ones is refused."""
    values = [value for value in inputs.get(id) or () if value is not None]
    if not values:
        return default
    if any(value != values[0] for value in values):
        raise _BadInput(
            f"{id} got a list of different values, but all images of a run share one. Link one "
            "value, or use a node for each."
        )
    return values[0]


def _name(inputs: dict[str, list[Any]], id: str) -> str:
    name = str(_one(inputs, id, "")).strip()
    if not name:
        raise _BadInput(f"{id} is empty. Choose a model, or fetch one with: ollama pull llava")
    return name


def _texts(inputs: dict[str, list[Any]], id: str) -> Sequence[str]:
    return [str(text or "") for text in inputs.get(id) or ()] or [""]


def _outcomes(result: Result) -> tuple[Outcome | None, ...]:
    return result.description, result.refined


def _text(outcome: Outcome) -> str:
    return f"Error: {outcome}" if isinstance(outcome, OllamaError) else outcome.text
