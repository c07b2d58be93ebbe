"""Instruction Presets: choose a text from files, edit it, connect it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..texts import ready_instructions
from . import host

_INSTRUCTIONS = "instructions"
_FIRST = "Enhanced description"


class ReadyInstructions(io.ComfyNode):
    """Choosing a preset fills in its text (web/js/ready_instructions.js)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A list of presets, and the text."""
        texts = _texts()
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
            display_name="Instruction Presets",
            category="Image Refinery/LLM",
            description=(
                "Instructions to choose and edit, for LLM Image Refine and Ollama Process: "
                "descriptions, prompts for SDXL and FLUX, tags, captions, alt texts, translations."
            ),
            search_aliases=[
                *("ready instructions", "template", "prompt library", "system prompt"),
                *("flux", "tags"),
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
            ],
            outputs=[
                io.String.Output(
                    display_name="instructions",
                    tooltip="Connect to user_instructions or instructions.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, pick: Any = "") -> bool:
        """Accept any preset: workflows of other machines bring their text."""
        return True

    @classmethod
    def fingerprint_inputs(cls, pick: str = "", text: str | None = None) -> int:
        """Changes when the file of an empty field does."""
        return hash(text or _texts().get(pick, ""))

    @classmethod
    def execute(cls, pick: str, text: str) -> io.NodeOutput:
        """Return the text, or that of the file."""
        if not text.strip():
            texts = _texts()
            if pick not in texts:
                raise ValueError(
                    f'There is no preset "{pick}" here, and text is empty. Choose another preset, '
                    f"write "
                    f"the text, or add {pick}.txt to {host.own_folder(_INSTRUCTIONS)}."
                )
            text = texts[pick]
        return io.NodeOutput(text)


def _texts() -> dict[str, str]:
    return ready_instructions([host.own_folder(_INSTRUCTIONS), host.PACK_FOLDER / _INSTRUCTIONS])
