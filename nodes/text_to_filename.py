"""Text To Filename: a name that is safe on every system."""

from __future__ import annotations

from comfy_api.latest import io

from ..texts.filenames import LONGEST_BYTES, safe_filename
from . import host
from .llm_inputs import ErrorText


class TextToFilename(io.ComfyNode):
    """Thin: one text in, one name out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A text, its longest length, and a folder to put in front."""
        return host.schema(
            node_id="RefineryTextToFilename",
            display_name="Text To Filename",
            category="Image Refinery/Utilities",
            description=(
                "Makes a file name from a text, for filename_prefix of Save Image. It is safe on "
                "Windows, macOS and Linux."
            ),
            search_aliases=[
                *("filename", "slug", "sanitize", "save image name", "file name too long"),
            ],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="Text to make a name from, such as a description. Slashes, line "
                    "breaks and characters that Windows forbids become spaces.",
                ),
                io.Int.Input(
                    "longest_bytes",
                    display_name="max length (bytes)",
                    default=120,
                    min=8,
                    max=LONGEST_BYTES - 15,
                    optional=True,
                    tooltip="Longest name in bytes (1 to 4 per letter). File systems allow 255, "
                    "and Save Image appends a number and an extension.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="Subfolder of the output folder to put in front, such as "
                    "captions/cats.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="filename",
                    tooltip="Folder and name without extension, for filename_prefix of Save Image.",
                )
            ],
        )

    @classmethod
    @host.shows_errors
    def execute(cls, text: str, longest_bytes: int = 120, folder: str = "") -> io.NodeOutput:
        """Return one name; the widget's range leaves room for what Save Image appends."""
        parts = [part for part in folder.replace("\\", "/").split("/") if part.strip(" .")]
        # An error message names no file.
        last = "error" if isinstance(text, ErrorText) else text
        try:
            names = [safe_filename(part, longest_bytes=longest_bytes) for part in (*parts, last)]
        except ValueError as error:  # longest_bytes came over a connection
            raise host.BadInput(str(error)) from None
        return io.NodeOutput("/".join(names))
