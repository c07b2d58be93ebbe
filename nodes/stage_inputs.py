"""The inputs that the nodes which talk to Ollama share: how they look, and how they are read.

ComfyUI gives these nodes lists (`is_input_list`): an input is {id: [value, ...]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import TEXT_SAMPLING, VISION_SAMPLING, StageOptions
from ..llm.errors import OllamaError
from . import host

if TYPE_CHECKING:
    from ..captioning.stages import Stage

USUAL_VISION_MODEL = "llava:latest"
USUAL_TEXT_MODEL = "llama3.2:latest"
BATCH_MODES = ("each image", "all images in one question")
ON_ERROR = ("give the message", "stop the workflow")

OptionsType = io.Custom("REFINERY_OPTIONS")

Inputs = Mapping[str, Sequence[Any]]
"""What ComfyUI calls a node with, less the images."""


class BadInput(OllamaError):
    """A value that came over a link cannot be used."""


class ErrorText(str):
    """A text that is an error's message, for nodes that must not take it for an answer."""


class AsksOllama(io.ComfyNode):
    """Base of the nodes that ask a server."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that ended in a message, so that a failure is never cached."""
        return host.failed_runs(cls)


@dataclass(frozen=True)
class Number:
    """A sampling widget: the option of Ollama that it sets, its range, and its id on a node."""

    option: str
    default: float
    low: float
    high: float
    tooltip: str
    id: str = ""

    def named(self, prefix: str) -> Number:
        """The same widget for a node whose ids begin with `prefix`."""
        return replace(self, id=prefix + self.option)

    def input(self) -> Any:
        """The widget."""
        limits: dict[str, Any] = {"default": self.default, "min": self.low, "max": self.high}
        if isinstance(self.default, int):
            return io.Int.Input(self.id, **limits, optional=True, tooltip=self.tooltip)
        return io.Float.Input(
            self.id, **limits, step=0.01, round=0.001, optional=True, tooltip=self.tooltip
        )

    def value(self, inputs: Inputs) -> float:
        """ComfyUI checks the range of a widget, but not of a linked value."""
        value = one(inputs, self.id, self.default)
        if not self.low <= value <= self.high:
            raise BadInput(f"{self.id} is {value}, but must be from {self.low} to {self.high}.")
        return value


def vision_numbers(prefix: str = "") -> tuple[Number, ...]:
    """The sampling widgets of a description."""
    return tuple(number.named(prefix) for number in _VISION_NUMBERS)


def text_numbers(prefix: str = "") -> tuple[Number, ...]:
    """The sampling widgets of a rewrite."""
    return tuple(number.named(prefix) for number in _TEXT_NUMBERS)


_VISION_NUMBERS = (
    Number(
        "temperature",
        VISION_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the description. 0.1 to 0.3: factual; 0.7 to 1.0: more creative.",
    ),
    Number(
        "top_p",
        VISION_SAMPLING["top_p"],
        0.0,
        1.0,
        "Nucleus sampling of the description: only the likeliest words that make up this share.",
    ),
    Number(
        "top_k",
        VISION_SAMPLING["top_k"],
        1,
        100,
        "Top-k sampling of the description: only this many of the likeliest words.",
    ),
)
_TEXT_NUMBERS = (
    Number(
        "temperature",
        TEXT_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the rewrite. 0.3 to 0.5: precise; 0.7 to 1.2: creative.",
    ),
    Number(
        "presence_penalty",
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid topics that came up already. Older servers ignore it for some models.",
    ),
    Number(
        "frequency_penalty",
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid words that came up often. Older servers ignore it for some models.",
    ),
    Number(
        "top_p",
        TEXT_SAMPLING["top_p"],
        0.0,
        1.0,
        "Nucleus sampling of the rewrite: only the likeliest words that make up this share.",
    ),
    Number(
        "top_k",
        TEXT_SAMPLING["top_k"],
        1,
        100,
        "Top-k sampling of the rewrite: only this many of the likeliest words.",
    ),
)


def image_input() -> Any:
    """The image, batch or list."""
    return io.Image.Input("image", tooltip="The image, batch or list of images to describe.")


def vision_model_input() -> Any:
    """The model of the first stage."""
    return _model_input(
        "vision_model",
        "vision",
        USUAL_VISION_MODEL,
        "Ollama model that can see, such as llava:latest, llava:13b or bakllava. "
        "Link a text to use any name.",
    )


def text_model_input(tooltip: str) -> Any:
    """The model of the second stage."""
    return _model_input("text_model", "completion", USUAL_TEXT_MODEL, tooltip)


def _model_input(id: str, capability: str, usual: str, tooltip: str) -> Any:
    names = host.models_to_choose(capability, usual)
    combo = io.Combo.Input(id, options=names, default=usual if usual in names else names[0])
    return io.MultiType.Input(combo, types=[io.String], tooltip=tooltip)


def custom_vision_prompt_input() -> Any:
    """What the vision model is asked."""
    return io.String.Input(
        "custom_vision_prompt",
        multiline=True,
        default="",
        optional=True,
        tooltip="What the vision model is asked. Empty: a detailed description.",
    )


def seed_input(tooltip: str) -> Any:
    """A seed that stays as it is."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFF_FFFF_FFFF_FFFF,
        control_after_generate=True,
        optional=True,
        tooltip=tooltip,
    )


def model_seed_input() -> Any:
    """The seed of what a model writes."""
    return seed_input(
        "The same seed and inputs give the same texts, as far as the server allows. Change it for "
        "another answer."
    )


def batch_mode_input() -> Any:
    """One text per image, or one in all."""
    return io.Combo.Input(
        "batch_mode",
        options=list(BATCH_MODES),
        default=BATCH_MODES[0],
        optional=True,
        tooltip="One text for each image, or one text about all of them together.",
    )


def keep_loaded_input() -> Any:
    """When models leave the GPU."""
    return io.Int.Input(
        "keep_loaded_minutes",
        default=0,
        min=0,
        max=1440,
        optional=True,
        tooltip="How long Ollama's models stay loaded after a run. 0: each leaves the "
        "GPU after its stage.",
    )


def on_error_input() -> Any:
    """What becomes of an error."""
    return io.Combo.Input(
        "on_error",
        options=list(ON_ERROR),
        default=ON_ERROR[0],
        optional=True,
        tooltip="Put the error's message into the text outputs and go on, or stop.",
    )


def clean_output_input(output: str) -> Any:
    """Whether the talk around an answer goes."""
    return io.Boolean.Input(
        "clean_output",
        default=True,
        optional=True,
        tooltip=f'Take "Here is ...:", wrapping quotes and code fences off {output}.',
    )


def server_input() -> Any:
    """Which server is asked, by its name."""
    return io.Combo.Input(
        "server",
        options=host.servers_to_choose(),
        default="default",
        optional=True,
        tooltip="default: OLLAMA_BASE_URL, else OLLAMA_HOST, else this machine. Other "
        "servers are named in image-refinery.toml in ComfyUI's user folder.",
    )


def options_input(id: str, tooltip: str) -> Any:
    """The socket for Ollama Options."""
    return OptionsType.Input(id, optional=True, tooltip=tooltip)


def described_outputs() -> list[Any]:
    """The images, and a description of each."""
    return [
        io.Image.Output(
            display_name="image", is_output_list=True, tooltip="The images, untouched."
        ),
        io.String.Output(
            display_name="description",
            is_output_list=True,
            tooltip="What the vision model saw, one text per image.",
        ),
    ]


def one(inputs: Inputs, id: str, default: Any) -> Any:
    """Return the value of an input that a whole run shares; a list of different ones is refused."""
    values = [value for value in inputs.get(id) or () if value is not None]
    if not values:
        return default
    if any(value != values[0] for value in values):
        raise BadInput(
            f"{id} got a list of different values, but all of a run share one. Link one value, or "
            "use a node for each."
        )
    return values[0]


def texts(inputs: Inputs, id: str) -> list[str]:
    """Return the texts of an input that may be a list; at least one, perhaps empty."""
    return [str(text or "") for text in inputs.get(id) or ()] or [""]


def stage(
    inputs: Inputs, model: str, numbers: Sequence[Number], options: str, defaults: Any
) -> Stage:
    """Return a stage as its widgets say.

    Args:
        model, options: ids of the inputs that hold them.
        numbers: the stage's sampling widgets.
        defaults: `vision_options` or `text_options` of ollama_client.options.
    """
    from ..captioning.stages import Stage

    name = str(one(inputs, model, "")).strip()
    if not name:
        raise BadInput(f"{model} is empty. Choose a model, or fetch one with: ollama pull llava")
    settings = one(inputs, options, None) or StageOptions()
    sampling = {number.option: number.value(inputs) for number in numbers}
    seed = int(one(inputs, "seed", 0))
    return Stage(model=name, options=defaults(sampling, seed, settings), settings=settings)


def keep_loaded_s(inputs: Inputs) -> float:
    """Return how long models stay loaded after their stage, in seconds."""
    return 60.0 * one(inputs, "keep_loaded_minutes", 0)


def asks_one_question(inputs: Inputs) -> bool:
    """Whether all images go into one request. Read before anything can fail, so it never raises."""
    return inputs.get("batch_mode", [""])[0] == BATCH_MODES[1]


def stops_on_error(inputs: Inputs) -> bool:
    """Whether the first error ends the workflow. Read before anything can fail; never raises."""
    return inputs.get("on_error", [""])[0] == ON_ERROR[1]
