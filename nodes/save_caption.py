"""Save Caption: a text file with the picture's own name."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..files import EXISTING, caption_file, inside, write_caption
from . import host
from .stage_inputs import ErrorText

_PLACES = ("input", "output")


class SaveCaption(io.ComfyNode):
    """Thin: a name and a text in, a file written, the text passed on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The picture's name, the text, and where and how it is written."""
        return host.schema(
            node_id="RefinerySaveCaption",
            display_name="Save Caption",
            category="refinery",
            description=(
                "Writes a caption file with the picture's own name and .txt, as trainers of LoRAs "
                "expect it, inside ComfyUI's input or output folder."
            ),
            search_aliases=["caption", "dataset", "lora training", "save text", "txt"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "name",
                    default="",
                    tooltip="The picture's name, such as cats/one.png: link names of Load Images "
                    "From Folder. The caption is cats/one.txt.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="The caption, such as description of LLM Image Refine. An error "
                    "message is not written.",
                ),
                io.Combo.Input(
                    "place",
                    options=list(_PLACES),
                    default=_PLACES[0],
                    tooltip="input: beside the picture in ComfyUI's input folder. output: under "
                    "the same name in ComfyUI's output folder.",
                ),
                io.String.Input(
                    "subfolder",
                    default="",
                    optional=True,
                    tooltip="A folder inside that place to put in front of the name.",
                ),
                io.String.Input(
                    "prefix",
                    default="",
                    optional=True,
                    tooltip='Put before the text as it is, such as a trigger word: "ohwx, ".',
                ),
                io.String.Input(
                    "suffix", default="", optional=True, tooltip="Put after the text as it is."
                ),
                io.Combo.Input(
                    "existing",
                    options=list(EXISTING),
                    default=EXISTING[0],
                    optional=True,
                    tooltip="Where the file exists: leave it, replace it, or add a line to it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="text", tooltip="The text as it came, without prefix and suffix."
                ),
                io.String.Output(display_name="file", tooltip="The caption file inside its place."),
            ],
        )

    @classmethod
    def execute(
        cls,
        name: str,
        text: str,
        place: str,
        subfolder: str = "",
        prefix: str = "",
        suffix: str = "",
        existing: str = EXISTING[0],
    ) -> io.NodeOutput:
        """Write, unless the text is an error; ValueError where that is not possible."""
        if place not in _PLACES:  # older hosts do not check a list's value
            raise ValueError(f'place is "{place}", but must be one of {list(_PLACES)}.')
        folder = Path(
            folder_paths.get_input_directory()
            if place == _PLACES[0]
            else folder_paths.get_output_directory()
        )
        if not name.strip():
            raise ValueError("name is empty. Link names of Load Images From Folder, or write one.")
        picture = inside(folder, f"{subfolder}/{name}" if subfolder.strip() else name)
        file = inside(folder, caption_file(picture).relative_to(folder).as_posix())
        shown = file.relative_to(folder).as_posix()
        if isinstance(text, ErrorText):
            return io.NodeOutput(text, shown, ui={"text": [f"{shown} was not written. {text}"]})
        try:
            written = write_caption(file, text, prefix=prefix, suffix=suffix, existing=existing)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{shown} is not in UTF-8, so that nothing can be appended: save it as UTF-8, or "
                'choose "overwrite".'
            ) from error
        except OSError as error:
            raise ValueError(
                f"{shown} could not be written into ComfyUI's {place} folder: {error.strerror}. "
                "Try another name or subfolder."
            ) from error
        said = shown if written else f"{shown} exists and was left as it is."
        return io.NodeOutput(text, shown, ui={"text": [said]})
