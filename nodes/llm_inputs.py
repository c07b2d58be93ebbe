"""The inputs and outputs that the nodes which ask a language-model server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import TEXT_SAMPLING, VISION_SAMPLING, StageOptions
from ..llm.servers import split_model
from . import host

if TYPE_CHECKING:
    from ..captioning.job import Stage

USUAL_VISION_MODEL = "llava:latest"
USUAL_TEXT_MODEL = "llama3.2:latest"
BATCH_MODES = ("each image", "all images in one question")
ON_ERROR = ("give the message", "stop the workflow")
SERVER = "default"

OptionsType = io.Custom("REFINERY_OPTIONS")


class ErrorText(str):
    """A text that is an error's message, for nodes that must not take it for an answer."""


class AsksServer(io.ComfyNode):
    """Base of the nodes that ask a server."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that ended in a message, so that a failure is never cached."""
        return host.failed_runs(cls)


def image() -> Any:
    """The image, batch or list."""
    tooltip = "The image, batch or list of images to describe."
    return host.widget(lambda id: io.Image.Input(id, tooltip=tooltip))


def vision_model() -> Any:
    """The model of the first stage."""
    return _model(
        "vision",
        USUAL_VISION_MODEL,
        "Ollama model that can see, such as llava:latest, llava:13b or bakllava. "
        "Link a text to use any name.",
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


def text(tooltip: str, default: str = "", *, optional: bool = False) -> Any:
    """A text of several lines, or a list of texts."""

    def make(id: str) -> Any:
        more: dict[str, Any] = {"optional": True} if optional else {}
        return io.String.Input(id, multiline=True, default=default, tooltip=tooltip, **more)

    return host.widget(make, default_factory=lambda: [default])


def custom_vision_prompt() -> Any:
    """What the vision model is asked."""
    return text("What the vision model is asked. Empty: a detailed description.", optional=True)


def vision_temperature() -> Any:
    """Sampling of the description."""
    return host.number(
        VISION_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the description. 0.1 to 0.3: factual; 0.7 to 1.0: more creative.",
    )


def vision_top_p() -> Any:
    """Sampling of the description."""
    return host.number(
        VISION_SAMPLING["top_p"],
        0.0,
        1.0,
        "Nucleus sampling of the description: only the likeliest words that make up this share.",
    )


def vision_top_k() -> Any:
    """Sampling of the description."""
    return host.number(
        VISION_SAMPLING["top_k"],
        1,
        100,
        "Top-k sampling of the description: only this many of the likeliest words.",
    )


def text_temperature() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        TEXT_SAMPLING["temperature"],
        0.0,
        2.0,
        "Randomness of the rewrite. 0.3 to 0.5: precise; 0.7 to 1.2: creative.",
    )


def presence_penalty() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid topics that came up already. Older servers ignore it for some models.",
    )


def frequency_penalty() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        0.0,
        -2.0,
        2.0,
        "Above 0: avoid words that came up often. Older servers ignore it for some models.",
    )


def text_top_p() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        TEXT_SAMPLING["top_p"],
        0.0,
        1.0,
        "Nucleus sampling of the rewrite: only the likeliest words that make up this share.",
    )


def text_top_k() -> Any:
    """Sampling of the rewrite."""
    return host.number(
        TEXT_SAMPLING["top_k"],
        1,
        100,
        "Top-k sampling of the rewrite: only this many of the likeliest words.",
    )


def seed() -> Any:
    """The seed of what a model writes."""
    return host.number(
        0,
        0,
        0xFFFF_FFFF_FFFF_FFFF,
        "The same seed and inputs give the same texts, as far as the server allows. Change it for "
        "another answer.",
        control_after_generate=True,
    )


def batch_mode() -> Any:
    """One text per image, or one in all."""
    return host.choice(
        BATCH_MODES, "One text for each image, or one text about all of them together."
    )


def keep_loaded_minutes() -> Any:
    """When models leave the GPU."""
    return host.number(
        0,
        0,
        1440,
        "How long Ollama's models stay loaded after a run. 0: each leaves the GPU after its stage.",
    )


def on_error() -> Any:
    """What becomes of an error."""
    tooltip = "Put the error's message into the text outputs and go on, or stop."
    return host.choice(ON_ERROR, tooltip)


def clean_output(output: str) -> Any:
    """Whether the talk around an answer goes."""
    tooltip = f'Take "Here is ...:", wrapping quotes and code fences off {output}.'
    return host.switch(True, tooltip)


def server_input(id: str = "server") -> Any:
    """The widget for which server is asked, by its name."""
    return io.Combo.Input(
        id,
        options=host.servers_to_choose(),
        default=SERVER,
        optional=True,
        tooltip="default: the language-model server that runs on this machine. Name other "
        "servers in image-refinery.toml in ComfyUI's user folder. embedded: the engine inside "
        "this pack.",
    )


def server() -> Any:
    """Which server is asked, by its name."""
    return host.widget(server_input, default=SERVER)


def options(tooltip: str) -> Any:
    """The socket for Ollama Options."""
    return host.widget(
        lambda id: OptionsType.Input(id, optional=True, tooltip=tooltip),
        default_factory=StageOptions,
    )


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


def stage(id: str, model: str, options: dict[str, Any], settings: StageOptions) -> Stage:
    """Return a stage, or raise BadInput where the widget `id` names no model."""
    from ..captioning.job import Stage

    if not model.strip():
        raise host.BadInput(f"{id} is empty. Choose a model, or auto.")
    return Stage(model=split_model(model)[0], options=options, settings=settings)
