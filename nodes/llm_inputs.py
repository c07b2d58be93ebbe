"""The inputs and outputs that all nodes with a language-model server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import TEXT_SAMPLING, VISION_SAMPLING, StageOptions
from ..captioning.prompts import DESCRIBE_REQUEST
from ..llm.servers import split_model
from . import host

if TYPE_CHECKING:
    from ..captioning.job import Stage

USUAL_VISION_MODEL = "llava:latest"
USUAL_TEXT_MODEL = "llama3.2:latest"
BATCH_MODES = ("one text per image", "one text for all images")
ON_ERROR = ("output error text", "stop the workflow")
SERVER = "default"

OptionsType = io.Custom("REFINERY_OPTIONS")


class ErrorText(str):
    """An error message in place of a text, for nodes that must not take it for an answer."""


class AsksServer(io.ComfyNode):
    """Base of the nodes that ask a server."""

    @classmethod
    def fingerprint_inputs(cls, use_recorded_words: Any = None, **_: Any) -> float:
        """Changes after each run that ended in a message, so that a failure is never cached.

        Never the same while recorded words are used: another image may have brought others.
        """
        if use_recorded_words in (True, [True]):
            return float("nan")
        return host.failed_runs(cls)


def image() -> Any:
    """The image, batch or list."""
    tooltip = "Image, batch or list of images to describe."
    return host.widget(lambda id: io.Image.Input(id, tooltip=tooltip))


def vision_model() -> Any:
    """The model of the first stage."""
    return _model(
        "vision",
        USUAL_VISION_MODEL,
        "Model with vision, or auto to choose one that your server has. Connect a String to use a "
        "model that is not listed.",
    )


def text_model(tooltip: str) -> Any:
    """The model of the second stage."""
    return _model("completion", USUAL_TEXT_MODEL, tooltip)


def _model(capability: str, usual: str, tooltip: str) -> Any:
    def make(id: str) -> Any:
        names, default = host.models_to_choose(capability, usual)
        combo = io.Combo.Input(id, options=names, default=default)
        return io.MultiType.Input(combo, types=[io.String], tooltip=tooltip)

    return host.widget(make, default="")


def text(tooltip: str, default: str = "", *, optional: bool = False, placeholder: str = "") -> Any:
    """A text of several lines, or a list of texts.

    Args:
        placeholder: shown in the empty box, where the classic page shows the input's id otherwise.
    """

    def make(id: str) -> Any:
        more: dict[str, Any] = {"optional": True} if optional else {}
        if placeholder:
            more["placeholder"] = f"{id}: {placeholder}"
        return io.String.Input(id, multiline=True, default=default, tooltip=tooltip, **more)

    return host.widget(make, default_factory=lambda: [default])


def custom_vision_prompt() -> Any:
    """What the vision model is asked."""
    return text(
        "Replace the default request to the vision model. Leave empty for a detailed description.",
        optional=True,
        placeholder=DESCRIBE_REQUEST,
    )


def vision_temperature() -> Any:
    """Sampling of the description."""
    return host.number(
        VISION_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the description. Use 0.1 to 0.3 for facts, 0.7 to 1.0 to be more creative.",
    )


def text_temperature() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        TEXT_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the rewrite. Use 0.3 to 0.5 to stay precise, 0.7 to 1.2 to be creative.",
    )


def top_p(default: float) -> Any:
    """Sampling of either text."""
    return host.number(
        default,
        0.0,
        1.0,
        "Top-p: sample from the most likely tokens whose probabilities add up to this value.",
        hide=True,
    )


def top_k(default: float) -> Any:
    """Sampling of either text."""
    return host.number(
        default, 1, 100, "Top-k: sample from this many of the most likely tokens.", hide=True
    )


def presence_penalty() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid topics that were already mentioned. Older servers ignore it for some "
        "models.",
        hide=True,
    )


def frequency_penalty() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid words that were already used often. Older servers ignore it for some "
        "models.",
        hide=True,
    )


def seed() -> Any:
    """The seed of what a model writes."""
    return host.number(
        0,
        0,
        0xFFFF_FFFF_FFFF_FFFF,
        "Same seed and inputs give the same text, as far as the server allows. Change it to get "
        "another answer.",
        control_after_generate=True,
    )


def batch_mode() -> Any:
    """One text per image, or one in all."""
    return host.choice(BATCH_MODES, "Write a text for each image, or one about all of them.")


def keep_loaded_minutes() -> Any:
    """When models leave the GPU."""
    return host.number(
        0,
        0,
        1440,
        "Keep the models loaded for this long after a run. 0 unloads each model after its stage.",
        hide=True,
    )


def on_error() -> Any:
    """What becomes of an error."""
    return host.choice(
        ON_ERROR,
        "On error: output the error text and continue with the other texts, or stop the workflow. "
        "SDXL Refiner stops by default.",
        hide=True,
    )


def clean_output(output: str) -> Any:
    """Whether what models put around an answer is removed."""
    tooltip = f'Remove "Here is ...:" preambles, surrounding quotes and code fences from {output}.'
    return host.switch(True, tooltip, hide=True)


def server_input(id: str = "server") -> Any:
    """The widget for a server's name."""
    return io.Combo.Input(
        id,
        options=host.servers_to_choose(),
        default=SERVER,
        optional=True,
        tooltip="Server to use: default is OLLAMA_BASE_URL or a server found on this machine, "
        "embedded runs models inside this pack. Add others in user/image-refinery.toml.",
    )


def server() -> Any:
    """The name of the server to use."""
    return host.widget(server_input, hide=True, default=SERVER)


def options(tooltip: str) -> Any:
    """The socket for Ollama Options."""
    return host.widget(
        lambda id: OptionsType.Input(id, optional=True, tooltip=tooltip),
        default_factory=StageOptions,
    )


def names() -> Any:
    """The images' files, for the placeholders of texts."""
    return host.widget(
        lambda id: io.String.Input(
            id,
            optional=True,
            force_input=True,
            tooltip="Connect names of Load Images From Folder to use the images' names, folders "
            "and existing captions in the texts. The help page lists the placeholders.",
        ),
        default_factory=list,
    )


def use_recorded_words() -> Any:
    """Whether the words that a workflow or image brought are output."""
    tooltip = (
        "Output the words that this workflow or image brought, without asking a server. They are "
        "those of the last run of this node."
    )
    return host.switch(False, tooltip, label="use recorded words", hide=True)


def described_outputs() -> list[Any]:
    """The images, and a description of each."""
    return [
        io.Image.Output(
            display_name="image", is_output_list=True, tooltip="The images, unchanged."
        ),
        io.String.Output(
            display_name="description",
            is_output_list=True,
            tooltip="Description by the vision model, one per image.",
        ),
    ]


def stage(id: str, model: str, options: dict[str, Any], settings: StageOptions) -> Stage:
    """Return a stage, or raise BadInput where the widget `id` names no model."""
    from ..captioning.job import Stage

    if not model.strip():
        raise host.BadInput(f"{id} is empty. Choose a model, or auto.")
    return Stage(model=split_model(model)[0], options=options, settings=settings)
