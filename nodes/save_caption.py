"""Save Caption: a text file with the image's own name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
from comfy_api.latest import io

from ..files import EXISTING, caption_file, caption_files, inside, same_name_message, write_caption
from . import host
from .llm_inputs import ErrorText

_PLACES = ("input", "output")
_SAME_NAME = ("refuse", "full name")
_SHOWN_LINES = 5
_NAME_IS_EMPTY = "name is empty. Link names of Load Images From Folder, or write one."


class SaveCaption(io.ComfyNode):
    """(text, file), lists: one caption file for each name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The image's name, the text, and where and how it is written."""
        return host.schema(
            node_id="RefinerySaveCaption",
            display_name="Save Caption",
            category="refinery",
            description=(
                "Writes a caption file with the image's own name and .txt, as trainers of LoRAs "
                "expect it, inside ComfyUI's input or output folder."
            ),
            search_aliases=["caption", "dataset", "lora training", "save text", "txt"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "name",
                    default="",
                    tooltip="The image's name, such as cats/one.png: link names of Load Images "
                    "From Folder. The caption is cats/one.txt.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    lazy=True,
                    tooltip="The caption, such as description of LLM Image Refine. An error "
                    "message is not written.",
                ),
                io.Combo.Input(
                    "place",
                    options=list(_PLACES),
                    default=_PLACES[0],
                    tooltip="input: beside the image in ComfyUI's input folder. output: under "
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
                    tooltip="If the file exists: leave it, replace it, or add the text at its end.",
                ),
                io.Boolean.Input(
                    "keep_line_breaks",
                    default=False,
                    optional=True,
                    tooltip="Off: write one line, as trainers read it. kohya's scripts ignore "
                    "further lines, OneTrainer picks one at random.",
                ),
                io.Combo.Input(
                    "same_name",
                    options=list(_SAME_NAME),
                    default=_SAME_NAME[0],
                    optional=True,
                    tooltip="If a.jpg and a.png are in one list: refuse the second one, or name "
                    "its caption a.png.txt.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="The text as it came, without prefix and suffix.",
                ),
                io.String.Output(
                    display_name="file",
                    is_output_list=True,
                    tooltip="The caption file inside its place.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: list[str | None] | None = None) -> bool | str:
        """Refuse an empty name before anything runs; a linked one is None here."""
        empty = any(one is not None and not one.strip() for one in name or ())
        return _NAME_IS_EMPTY if empty else True

    @classmethod
    def check_lazy_status(cls, text: Any, **inputs: list[Any]) -> list[str]:
        """Look at the names first, so that a bad one is refused before a model writes the text."""
        _plan(cls, inputs)
        return ["text"]

    @classmethod
    def execute(cls, text: list[str], **inputs: list[Any]) -> io.NodeOutput:
        """Write every text that is no error, and say what became of each.

        Raises:
            ValueError: a name leads out of its folder, or files could not be written. The other
                files are written.
        """
        captions = _plan(cls, inputs, len(text))
        texts = [text[min(index, len(text) - 1)] for index in range(len(captions))]
        counts = {"written": 0, "skipped": 0, "refused": 0}
        lines: list[str] = []
        refused: list[str] = []
        failed: list[str] = []
        for caption, one in zip(captions, texts, strict=True):
            try:
                outcome, line = _save(caption, one)
            except ValueError as error:
                failed.append(str(error))
                continue
            counts[outcome] += 1
            lines.append(line)
            if outcome == "refused":
                refused.append(line)
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        if failed:
            more = f" ({len(failed)} could not be written, {summary}.)" if len(texts) > 1 else ""
            host.show(host.node_id(cls), f"Error: {failed[0]}{more}")
            raise ValueError(f"{failed[0]}{more}")
        host.show(host.node_id(cls), f"{summary}.", *refused[:_SHOWN_LINES])
        ui = {"text": lines, "summary": [summary]}
        return io.NodeOutput(texts, [caption.shown for caption in captions], ui=ui)


class _Caption(NamedTuple):
    """Where one text is written, and how.

    Attributes:
        file: None where another image of the list has the file that `shown` names.
    """

    name: str
    shown: str
    file: Path | None
    place: str
    how: dict[str, Any]


def _plan(node: type[io.ComfyNode], inputs: dict[str, list[Any]], texts: int = 1) -> list[_Caption]:
    """Return one caption for each name, or for each text where those are more.

    Raises:
        ValueError: a name or a choice cannot be used.
    """
    try:
        count = max([texts, *map(len, inputs.values())])
        rows = [
            {id: values[min(index, len(values) - 1)] for id, values in inputs.items()}
            for index in range(count)
        ]
        images = [_image(row) for row in rows]
        full_names = rows[0].get("same_name", _SAME_NAME[0]) == _SAME_NAME[1]
        return [
            _caption(row, image, file)
            for row, image, file in zip(
                rows, images, caption_files(images, full_names=full_names), strict=True
            )
        ]
    except ValueError as error:
        host.show(host.node_id(node), f"Error: {error}")
        raise


def _image(row: dict[str, Any]) -> Path:
    if row["place"] not in _PLACES:  # older hosts do not check a list's value
        raise ValueError(f'place is "{row["place"]}", but must be one of {list(_PLACES)}.')
    if not row["name"].strip():
        raise ValueError(_NAME_IS_EMPTY)
    subfolder = row.get("subfolder", "")
    name = f"{subfolder}/{row['name']}" if subfolder.strip() else row["name"]
    return inside(_folder(row["place"]), name)


def _caption(row: dict[str, Any], image: Path, file: Path | None) -> _Caption:
    folder = _folder(row["place"])
    shown = (file or caption_file(image)).relative_to(folder).as_posix()
    # The name may be a link that leads out.
    checked = inside(folder, shown)
    how = {id: row[id] for id in ("prefix", "suffix", "keep_line_breaks") if id in row}
    how["existing"] = row.get("existing", EXISTING[0])
    return _Caption(row["name"], shown, file and checked, row["place"], how)


def _folder(place: str) -> Path:
    if place == _PLACES[0]:
        return Path(folder_paths.get_input_directory())
    return Path(folder_paths.get_output_directory())


def _save(caption: _Caption, text: str) -> tuple[str, str]:
    """Write one caption; return "written", "skipped" or "refused", and a line about it.

    Raises:
        ValueError: the file cannot be written.
    """
    shown = caption.shown
    if caption.file is None:
        return "refused", (
            f'{same_name_message(caption.name, shown)}, or set same_name to "{_SAME_NAME[1]}".'
        )
    if isinstance(text, ErrorText):
        return "refused", f"{shown} was not written. {text}"
    try:
        written = write_caption(caption.file, text, **caption.how)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown} is not in UTF-8, so that nothing can be appended: save it as UTF-8, or "
            'choose "overwrite".'
        ) from error
    except OSError as error:
        raise ValueError(
            f"{shown} could not be written into ComfyUI's {caption.place} folder: "
            f"{error.strerror or error}. Try another name or subfolder."
        ) from error
    if written:
        return "written", shown
    return "skipped", f"{shown} exists and was left as it is."
