"""Text To Filename: a name that every system takes."""

from __future__ import annotations

from comfy_api.latest import io

from ..texts.filenames import LONGEST_BYTES, safe_filename
from . import host


class TextToFilename(io.ComfyNode):
    """Thin: one text in, one name out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A text, its longest length, and a folder to put in front."""
        return host.schema(
            node_id="RefineryTextToFilename",
            display_name="Text To Filename",
            category="refinery",
            description=(
                "Makes a file name of a text, safe on Windows, macOS and Linux, for the "
                "filename_prefix of Save Image. The same text always gives the same name."
            ),
            search_aliases=[
                "filename",
                "slug",
                "sanitize",
                "save image name",
                "file name too long",
            ],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="Any text, such as a description. Letters of all scripts stay; "
                    "slashes, line breaks and what Windows forbids become spaces.",
                ),
                io.Int.Input(
                    "longest_bytes",
                    default=120,
                    min=8,
                    max=LONGEST_BYTES - 15,
                    optional=True,
                    tooltip="Longest name in bytes; a letter has 1 to 4. Systems take 255, and "
                    "Save Image appends a number and an ending.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="Subfolder of the output folder, such as captions/cats. Each part is "
                    "made safe in the same way.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="filename",
                    tooltip="For filename_prefix of Save Image: the folder, if any, and the name, "
                    "without an ending.",
                )
            ],
        )

    @classmethod
    def execute(cls, text: str, longest_bytes: int = 120, folder: str = "") -> io.NodeOutput:
        """Return one name; the widget's range leaves room for what Save Image appends."""
        parts = [part for part in folder.replace("\\", "/").split("/") if part.strip(" .")]
        names = [safe_filename(part, longest_bytes=longest_bytes) for part in (*parts, text)]
        return io.NodeOutput("/".join(names))
