"""Ready Instructions: pick a text from files, edit it, link it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..texts import ready_instructions
from . import host

_INSTRUCTIONS = "instructions"
_FIRST = "Enhanced description"


class ReadyInstructions(io.ComfyNode):
    """Picking a name puts its text into the field (web/js/ready_instructions.js)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A list of names, and the text."""
        texts = _texts()
        names = list(texts) or [_FIRST]
        pick = io.Combo.Input(
            "pick",
            options=names,
            default=_FIRST if _FIRST in texts else names[0],
            tooltip="Picking puts the text below. Add your own as .txt files in "
            "user/image-refinery/instructions, then press R.",
        )
        pick.extra_dict = {"texts": texts}  # for the page
        return host.schema(
            node_id="RefineryReadyInstructions",
            display_name="Ready Instructions",
            category="refinery",
            description=(
                "Instructions to pick and edit, for user_instructions of LLM Image Refine and "
                "instructions of Ollama Process: descriptions, prompts for SDXL and FLUX, tags, "
                "captions, alt texts, translations."
            ),
            search_aliases=[
                "preset",
                "template",
                "prompt library",
                "system prompt",
                "flux",
                "tags",
            ],
            inputs=[
                pick,
                io.String.Input(
                    "text",
                    multiline=True,
                    default=texts.get(_FIRST, ""),
                    dynamic_prompts=False,
                    tooltip="What goes out; edit it as you like. Empty: the text of what is "
                    "picked, as its file is now.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="instructions",
                    tooltip="The text, for user_instructions or instructions.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, pick: Any = "") -> bool:
        """Accept any name: a workflow from a machine with other files carries its text."""
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
                    f'There are no instructions named "{pick}" here, and text is empty. Write the '
                    f"text, or add {pick}.txt to {host.own_folder(_INSTRUCTIONS)}."
                )
            text = texts[pick]
        return io.NodeOutput(text)


def _texts() -> dict[str, str]:
    return ready_instructions([host.own_folder(_INSTRUCTIONS), host.PACK_FOLDER / _INSTRUCTIONS])
