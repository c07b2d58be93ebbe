"""Ollama Options: further options for the nodes that use a language-model server."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..captioning.images import MAX_SIDE_PX, MIN_SIDE_PX
from ..captioning.options import FREE_MEMORY, THINK_LEVELS, StageOptions
from . import host
from .llm_inputs import OptionsType

_UNSET = -1
"""Means "not set": outside each range, since a widget cannot be empty."""
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
            category="Image Refinery/LLM",
            description=(
                "Sets further options for LLM Image Refine, LLM Describe or Ollama Process. "
                "Options that you do not set keep the default of this pack or of the server."
            ),
            search_aliases=["ollama settings", "num_ctx", "thinking", "json", "keep alive"],
            inputs=[
                io.Int.Input(
                    "num_predict",
                    default=_UNSET,
                    min=-1,
                    max=_HIGHEST["num_predict"],
                    optional=True,
                    tooltip="Longest answer in tokens. -1 uses 512 for a description, 1024 for a "
                    "rewrite.",
                ),
                io.Int.Input(
                    "num_ctx",
                    default=_UNSET,
                    min=-1,
                    max=_HIGHEST["num_ctx"],
                    optional=True,
                    tooltip="Context for prompt, images and answer, in tokens (-1: chosen from the "
                    "request). More needs more VRAM.",
                ),
                io.Combo.Input(
                    "think",
                    options=list(THINK_LEVELS),
                    default="off",
                    optional=True,
                    tooltip="Let a model that can think do so before it answers. Thinking "
                    "counts against num_predict, but is not part of the answer.",
                ),
                host.advanced(
                    io.String.Input(
                        "stop",
                        multiline=True,
                        default="",
                        optional=True,
                        tooltip="End the answer at any of these texts, one per line.",
                    )
                ),
                host.advanced(
                    io.Float.Input(
                        "min_p",
                        default=_UNSET,
                        min=-1.0,
                        max=_HIGHEST["min_p"],
                        step=0.01,
                        optional=True,
                        tooltip="Drop tokens less likely than this share of the most likely one. "
                        "-1 uses the server's default.",
                    )
                ),
                host.advanced(
                    io.Float.Input(
                        "repeat_penalty",
                        default=_UNSET,
                        min=-1.0,
                        max=_HIGHEST["repeat_penalty"],
                        step=0.01,
                        optional=True,
                        tooltip="Penalize repeated tokens. 1 turns it off, -1 uses 1.1.",
                    )
                ),
                io.String.Input(
                    "format",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Leave empty for free text, or write json for any JSON. For JSON of a "
                    "fixed form, write a JSON schema (an object in braces).",
                ),
                host.advanced(
                    io.Int.Input(
                        "max_image_side",
                        default=MAX_SIDE_PX,
                        min=MIN_SIDE_PX,
                        max=8192,
                        optional=True,
                        tooltip="Longest side of the image for the model, in pixels. The image "
                        "output keeps its size.",
                    )
                ),
                host.advanced(
                    io.Boolean.Input(
                        "lossless",
                        display_name="send as PNG",
                        default=False,
                        optional=True,
                        tooltip="Send PNG instead of JPEG at quality 95. Larger and slower.",
                    )
                ),
                host.advanced(
                    io.Combo.Input(
                        "free_memory",
                        options=list(FREE_MEMORY),
                        default="always",
                        optional=True,
                        tooltip="Unload ComfyUI's models before the server works: always, when the "
                        "model would not fit beside them, or never.",
                    )
                ),
                host.advanced(
                    io.Int.Input(
                        "timeout_s",
                        display_name="timeout (seconds)",
                        default=_UNSET,
                        min=-1,
                        max=86400,
                        optional=True,
                        tooltip="Wait this long for the first token, including model loading. -1 "
                        "waits 600.",
                    )
                ),
                host.advanced(
                    io.Int.Input(
                        "parallel",
                        default=1,
                        min=1,
                        max=64,
                        optional=True,
                        tooltip="Send this many requests at a time. Ollama must allow as many "
                        "(OLLAMA_NUM_PARALLEL), or they wait in its queue.",
                    )
                ),
            ],
            outputs=[
                OptionsType.Output(
                    display_name="options",
                    tooltip="Connect to options, vision_options or text_options.",
                )
            ],
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
        """Return the options; a value that cannot be used raises a ValueError that says why."""
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
