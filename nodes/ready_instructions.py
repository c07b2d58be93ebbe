"""Prompt Presets: choose a text from files, edit it, connect it together with its options."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from comfy_api.latest import io

from ..captioning.options import StageOptions, with_preset
from ..texts import Preset, presets
from ..texts.instructions import PresetError
from . import host
from .llm_inputs import OptionsType

log = logging.getLogger(__name__)

_INSTRUCTIONS = "instructions"
_FIRST = "Enhanced description"


class ReadyInstructions(io.ComfyNode):
    """Choosing a preset fills in its text (web/js/ready_instructions.js)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A list of presets, and the text."""
        found = _presets()
        for preset in found.values():
            _warn(_problem(preset))
        texts = {name: preset.text for name, preset in found.items()}
        names = list(texts) or [_FIRST]
        pick = io.Combo.Input(
            "pick",
            display_name="preset",
            options=names,
            default=_FIRST if _FIRST in texts else names[0],
            tooltip="Choosing a preset fills in the text below. Add your own .txt files to "
            "user/image-refinery/instructions, then press R.",
        )
        pick.extra_dict = {"texts": texts}  # for the page
        return host.schema(
            node_id="RefineryReadyInstructions",
            display_name="Prompt Presets",
            category="Image Refinery/LLM",
            description=(
                "Instructions to choose and edit, for LLM Image Refine and Ollama Process: "
                "prompts for current image and video models, tags, captions, alt texts, JSON. "
                "Limits the answer's length and sets its JSON form."
            ),
            search_aliases=[
                *("instruction presets", "ready instructions", "template", "prompt library"),
                *("system prompt", "flux", "qwen-image", "z-image", "wan", "ltx", "illustrious"),
                *("pony", "tags", "json"),
            ],
            inputs=[
                pick,
                io.String.Input(
                    "text",
                    multiline=True,
                    default=texts.get(_FIRST, ""),
                    dynamic_prompts=False,
                    tooltip="Instructions to output, which you can edit. Leave empty to use the "
                    "preset as its file is now.",
                ),
                OptionsType.Input(
                    "options",
                    optional=True,
                    tooltip="Connect Ollama Options to add them to the options output. What you "
                    "set there is used instead of the preset's values.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="instructions",
                    tooltip="Connect to user_instructions or instructions.",
                ),
                OptionsType.Output(
                    display_name="options",
                    tooltip="Connect to text_options, options or vision_options. Holds the "
                    "preset's num_predict and format, if it has them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, pick: Any = "") -> bool:
        """Accept any preset: workflows of other machines bring their text."""
        return True

    @classmethod
    def fingerprint_inputs(cls, pick: str = "", text: str | None = None, **_: Any) -> int:
        """Changes when the file's header does, or its text while the field is empty."""
        preset = _presets().get(pick, Preset(name=pick, text=""))
        options = (preset.num_predict, repr(preset.format), preset.problem)
        return hash((text or preset.text, options))

    @classmethod
    @host.shows_errors
    def execute(cls, pick: str, text: str, options: StageOptions | None = None) -> io.NodeOutput:
        """Return the text, or that of the file, and the options with the preset's."""
        options = options or StageOptions()
        preset = _presets().get(pick)
        if preset is not None:
            return io.NodeOutput(
                text if text.strip() else preset.text, with_preset(options, preset)
            )
        if not text.strip():
            raise PresetError(
                f'There is no preset "{pick}" here, and text is empty. Choose another preset, '
                f"write the text, or add {pick}.txt to {host.own_folder(_INSTRUCTIONS)}."
            )
        log.warning(
            'There is no preset "%s" here. Its text is used as this workflow holds it, without '
            "the preset's num_predict and format.",
            pick,
        )
        return io.NodeOutput(text, options)


def _presets() -> dict[str, Preset]:
    return presets([host.own_folder(_INSTRUCTIONS), host.PACK_FOLDER / _INSTRUCTIONS])


def _problem(preset: Preset) -> str:
    try:
        with_preset(StageOptions(), preset)
    except ValueError as error:
        return str(error)
    return ""


@cache  # ComfyUI defines the schema again and again
def _warn(problem: str) -> None:
    if problem:
        log.warning("%s", problem)
