"""Ollama Options: further options for the nodes that use a language-model server."""

from __future__ import annotations

import json
from dataclasses import dataclass
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


def _text(tooltip: str, *, hide: bool = False) -> Any:
    return host.widget(
        lambda id: io.String.Input(id, multiline=True, default="", optional=True, tooltip=tooltip),
        hide=hide,
        default="",
    )


def _share(name: str, tooltip: str) -> Any:
    high = _HIGHEST[name]
    return host.number(_UNSET, -1.0, high, tooltip, hide=True, round=None)


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order. -1 and an empty text mean "not set"."""

    num_predict: int = host.number(
        _UNSET,
        -1,
        _HIGHEST["num_predict"],
        "Longest answer in tokens. -1 uses 512 for a description, 1024 for a rewrite.",
    )
    num_ctx: int = host.number(
        _UNSET,
        -1,
        _HIGHEST["num_ctx"],
        "Context for prompt, images and answer, in tokens (-1: chosen from the request). More "
        "needs more VRAM.",
    )
    think: str = host.choice(
        THINK_LEVELS,
        "Let a model that can think do so before it answers. Thinking counts against num_predict, "
        "but is not part of the answer.",
    )
    stop: str = _text("End the answer at any of these texts, one per line.", hide=True)
    min_p: float = _share(
        "min_p",
        "Drop tokens less likely than this share of the most likely one. -1 uses the server's "
        "default.",
    )
    repeat_penalty: float = _share(
        "repeat_penalty", "Penalize repeated tokens. 1 turns it off, -1 uses 1.1."
    )
    format: str = _text(
        "Leave empty for free text, or write json for any JSON. For JSON of a fixed form, write a "
        "JSON schema (an object in braces)."
    )
    max_image_side: int = host.number(
        MAX_SIDE_PX,
        MIN_SIDE_PX,
        8192,
        "Longest side of the image for the model, in pixels. The image output keeps its size.",
        hide=True,
    )
    lossless: bool = host.switch(
        False,
        "Send PNG instead of JPEG at quality 95. Larger and slower.",
        label="send as PNG",
        hide=True,
    )
    free_memory: str = host.choice(
        FREE_MEMORY,
        "Unload ComfyUI's models before the server works: always, when the model would not fit "
        "beside them, or never.",
        hide=True,
    )
    timeout_s: int = host.number(
        _UNSET,
        -1,
        86400,
        "Wait this long for the first token, including model loading. -1 waits 600.",
        label="timeout (seconds)",
        hide=True,
    )
    parallel: int = host.number(
        1,
        1,
        64,
        "Send this many requests at a time, if Ollama allows as many (OLLAMA_NUM_PARALLEL). In the "
        "embedded engine, each takes memory for a context.",
        hide=True,
    )
    must_words: str = _text(
        "Words or phrases that the answer must contain, one per line, such as a trigger word. An "
        "answer without them is sent back once, to be corrected.",
        hide=True,
    )
    must_not_words: str = _text(
        "Words or phrases that the answer must not contain, one per line, such as image. An answer "
        "with them is sent back once, to be corrected.",
        hide=True,
    )


class OllamaOptions(io.ComfyNode):
    """Thin: reads widgets into a StageOptions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryOllamaOptions",
            display_name="Ollama Options",
            category="Image Refinery/LLM",
            description=(
                "Sets further options for LLM Image Refine, LLM Describe or Ollama Process. "
                "Options that you do not set keep the default of this pack or of the server."
            ),
            search_aliases=["ollama settings", "num_ctx", "thinking", "json", "keep alive"],
            inputs=host.widgets(Inputs),
            outputs=[
                OptionsType.Output(
                    display_name="options",
                    tooltip="Connect to options, vision_options or text_options.",
                )
            ],
        )

    @classmethod
    @host.shows_errors
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Return the options; a value that cannot be used raises BadInput, which says why."""
        given = Inputs(**values)
        numbers = {name: getattr(given, name) for name in _HIGHEST}
        model_options: dict[str, Any] = {k: v for k, v in numbers.items() if v != _UNSET}
        for name, value in model_options.items():  # ComfyUI does not check a linked value
            if not 0 <= value <= _HIGHEST[name]:
                raise host.BadInput(
                    f"{name} is {value}, but must be from 0 to {_HIGHEST[name]}, or -1: not set."
                )
        if stops := [line for line in given.stop.splitlines() if line]:
            model_options["stop"] = stops
        form = _format(given.format)
        try:
            options = StageOptions(
                model_options=model_options,
                think=given.think,
                format=form,
                max_image_side=given.max_image_side,
                lossless=given.lossless,
                free_memory=given.free_memory,
                timeout_s=None if given.timeout_s == _UNSET else float(given.timeout_s),
                parallel=given.parallel,
                must=_lines(given.must_words),
                must_not=_lines(given.must_not_words),
            )
        except ValueError as error:
            raise host.BadInput(str(error)) from None
        return io.NodeOutput(options)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for one in text.splitlines() if (line := one.strip()))


def _format(text: str) -> str | dict[str, Any] | None:
    text = text.strip()
    if not text:
        return None
    if text.lower() == "json":
        return "json"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise host.BadInput(
            f"format is neither empty, nor the word json, nor a JSON schema ({error})."
        ) from None
    if not isinstance(value, dict):
        raise host.BadInput("format must be a JSON schema, which is an object in braces.")
    return value
