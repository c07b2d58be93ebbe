"""Ollama Options: what goes beyond the widgets of the nodes that talk to Ollama."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..captioning.images import MAX_SIDE_PX, MIN_SIDE_PX
from ..captioning.options import FREE_MEMORY, THINK_LEVELS, StageOptions
from . import host
from .llm_inputs import OptionsType

_UNSET = -1
"""A widget cannot be empty, so one value outside each range stands for "not set"."""
_HIGHEST: dict[str, Any] = {
    "num_predict": 131_072,
    "num_ctx": 2_097_152,
    "min_p": 1.0,
    "repeat_penalty": 2.0,
}


class OllamaOptions(io.ComfyNode):
    """Thin: reads widgets into a StageOptions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Everything is optional; -1 and an empty text mean "not set"."""
        return host.schema(
            node_id="RefineryOllamaOptions",
            display_name="Ollama Options",
            category="refinery",
            description=(
                "Options for one stage of LLM Image Refine, LLM Describe or Ollama Process: "
                "connect it to vision_options, text_options or options. What is not set keeps the "
                "pack's default, else the server's."
            ),
            search_aliases=["ollama settings", "num_ctx", "thinking", "json", "keep alive"],
            inputs=[
                io.Int.Input(
                    "num_predict",
                    default=_UNSET,
                    min=-1,
                    max=_HIGHEST["num_predict"],
                    optional=True,
                    tooltip="Longest answer in tokens. -1: the pack's default "
                    "(512 for a description, 1024 for a rewrite).",
                ),
                io.Int.Input(
                    "num_ctx",
                    default=_UNSET,
                    min=-1,
                    max=_HIGHEST["num_ctx"],
                    optional=True,
                    tooltip="Context in tokens: prompt, images and answer. -1: chosen from what "
                    "is sent. A larger context needs more GPU memory.",
                ),
                io.Combo.Input(
                    "think",
                    options=list(THINK_LEVELS),
                    default="off",
                    optional=True,
                    tooltip="Let a model with the ability think before it answers. Thinking "
                    "counts against num_predict; it is kept apart from the answer.",
                ),
                io.String.Input(
                    "stop",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Texts at which the answer ends, one per line.",
                ),
                io.Float.Input(
                    "min_p",
                    default=_UNSET,
                    min=-1.0,
                    max=_HIGHEST["min_p"],
                    step=0.01,
                    optional=True,
                    tooltip="Drop tokens less likely than this share of the likeliest one, "
                    "0 to 1. -1: the server's default.",
                ),
                io.Float.Input(
                    "repeat_penalty",
                    default=_UNSET,
                    min=-1.0,
                    max=_HIGHEST["repeat_penalty"],
                    step=0.01,
                    optional=True,
                    tooltip="Penalize repeated tokens; 1 is none. -1: the pack's default, 1.1.",
                ),
                io.String.Input(
                    "format",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Empty: free text. The word json: any JSON. A JSON schema, which is an "
                    "object in braces: JSON of that form. It is checked before anything is sent.",
                ),
                io.Int.Input(
                    "max_image_side",
                    default=MAX_SIDE_PX,
                    min=MIN_SIDE_PX,
                    max=8192,
                    optional=True,
                    tooltip="Longest side of the image that is sent, in pixels; larger ones are "
                    "reduced. The image output keeps its size.",
                ),
                io.Boolean.Input(
                    "lossless",
                    default=False,
                    optional=True,
                    tooltip="Send PNG instead of JPEG at quality 95. Larger and slower.",
                ),
                io.Combo.Input(
                    "free_memory",
                    options=list(FREE_MEMORY),
                    default="always",
                    optional=True,
                    tooltip="When ComfyUI's models leave the GPU before Ollama works: always, when "
                    "the model would not fit beside them, or never.",
                ),
                io.Int.Input(
                    "timeout_s",
                    default=_UNSET,
                    min=-1,
                    max=86400,
                    optional=True,
                    tooltip="How long the first word may take, in seconds, model loading "
                    "included. -1: 600 s.",
                ),
                io.Int.Input(
                    "parallel",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="Images asked about at a time. The server must allow as many "
                    "(OLLAMA_NUM_PARALLEL), or they wait in its queue.",
                ),
            ],
            outputs=[OptionsType.Output(display_name="options", tooltip="For a stage's socket.")],
        )

    @classmethod
    def execute(
        cls,
        num_predict: int = _UNSET,
        num_ctx: int = _UNSET,
        think: str = "off",
        stop: str = "",
        min_p: float = _UNSET,
        repeat_penalty: float = _UNSET,
        format: str = "",
        max_image_side: int = MAX_SIDE_PX,
        lossless: bool = False,
        free_memory: str = "always",
        timeout_s: int = _UNSET,
        parallel: int = 1,
    ) -> io.NodeOutput:
        """Check and pack; a value that cannot be used raises a ValueError with one sentence."""
        numbers = {
            "num_predict": num_predict,
            "num_ctx": num_ctx,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
        }
        model_options: dict[str, Any] = {k: v for k, v in numbers.items() if v != _UNSET}
        for name, value in model_options.items():  # ComfyUI does not check a linked value
            if not 0 <= value <= _HIGHEST[name]:
                raise ValueError(
                    f"{name} is {value}, but must be from 0 to {_HIGHEST[name]}, or -1: not set."
                )
        if stops := [line for line in stop.splitlines() if line]:
            model_options["stop"] = stops
        options = StageOptions(
            model_options=model_options,
            think=think,
            format=_format(format),
            max_image_side=max_image_side,
            lossless=lossless,
            free_memory=free_memory,
            timeout_s=None if timeout_s == _UNSET else float(timeout_s),
            parallel=parallel,
        )
        return io.NodeOutput(options)


def _format(text: str) -> str | dict[str, Any] | None:
    text = text.strip()
    if not text:
        return None
    if text.lower() == "json":
        return "json"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"format is neither empty, nor the word json, nor a JSON schema ({error})."
        ) from None
    if not isinstance(value, dict):
        raise ValueError("format must be a JSON schema, which is an object in braces.")
    return value
