"""Save Caption: a text file with the image's own name."""

from __future__ import annotations

from dataclasses import dataclass
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


def _string(tooltip: str, **more: Any) -> Any:
    return host.widget(
        lambda id: io.String.Input(id, default="", tooltip=tooltip, **more), default=""
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of one caption, in their order; lists give one caption for each entry."""

    name: str = _string(
        "The image's name, such as cats/one.png: link names of Load Images From Folder. The "
        "caption is cats/one.txt."
    )
    text: str = _string(
        "The caption, such as description of LLM Image Refine. An error message is not written.",
        multiline=True,
        lazy=True,
    )
    place: str = host.choice(
        _PLACES,
        "input: beside the image in ComfyUI's input folder. output: under the same name in "
        "ComfyUI's output folder.",
        optional=False,
    )
    subfolder: str = _string(
        "A folder inside that place to put in front of the name.", optional=True
    )
    prefix: str = _string(
        'Put before the text as it is, such as a trigger word: "ohwx, ".', optional=True
    )
    suffix: str = _string("Put after the text as it is.", optional=True)
    existing: str = host.choice(
        EXISTING,
        "If the file exists: leave it, replace it, or add the text at its end.",
    )
    keep_line_breaks: bool = host.switch(
        False,
        "Off: write one line, as trainers read it. kohya's scripts ignore further "
        "lines, OneTrainer picks one at random.",
    )
    same_name: str = host.choice(
        _SAME_NAME,
        "If a.jpg and a.png are in one list: refuse the second one, or name its caption a.png.txt.",
    )


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
            inputs=host.widgets(Inputs),
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
    def check_lazy_status(cls, **values: list[Any]) -> list[str]:
        """Look at the names first, so that a bad one is refused before a model writes the text."""
        _plan(cls, host.read_rows(Inputs, values))
        return ["text"]

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Write every text that is no error, and say what became of each.

        Raises:
            ValueError: a name leads out of its folder, or files could not be written. The other
                files are written.
        """
        rows = host.read_rows(Inputs, values)
        captions = _plan(cls, rows)
        texts = [row.text for row in rows]
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
        row: the inputs.
        shown: the file inside its place, for messages.
        file: None where another image of the list has the file that `shown` names.
    """

    row: Inputs
    shown: str
    file: Path | None


def _plan(node: type[io.ComfyNode], rows: list[Inputs]) -> list[_Caption]:
    """Return one caption for each row.

    Raises:
        ValueError: a name or a choice cannot be used.
    """
    try:
        images = [_image(row) for row in rows]
        files = caption_files(images, full_names=rows[0].same_name == _SAME_NAME[1])
        return [_caption(*each) for each in zip(rows, images, files, strict=True)]
    except ValueError as error:
        host.show(host.node_id(node), f"Error: {error}")
        raise


def _image(row: Inputs) -> Path:
    if row.place not in _PLACES:  # older hosts do not check a list's value
        raise ValueError(f'place is "{row.place}", but must be one of {list(_PLACES)}.')
    if not row.name.strip():
        raise ValueError(_NAME_IS_EMPTY)
    name = f"{row.subfolder}/{row.name}" if row.subfolder.strip() else row.name
    return inside(_folder(row.place), name)


def _caption(row: Inputs, image: Path, file: Path | None) -> _Caption:
    folder = _folder(row.place)
    shown = (file or caption_file(image)).relative_to(folder).as_posix()
    # The name may be a link that leads out.
    checked = inside(folder, shown)
    return _Caption(row, shown, file and checked)


def _folder(place: str) -> Path:
    if place == _PLACES[0]:
        return Path(folder_paths.get_input_directory())
    return Path(folder_paths.get_output_directory())


def _save(caption: _Caption, text: str) -> tuple[str, str]:
    """Write one caption; return "written", "skipped" or "refused", and a line about it.

    Raises:
        ValueError: the file cannot be written.
    """
    shown, row = caption.shown, caption.row
    if caption.file is None:
        return "refused", (
            f'{same_name_message(row.name, shown)}, or set same_name to "{_SAME_NAME[1]}".'
        )
    if isinstance(text, ErrorText):
        return "refused", f"{shown} was not written. {text}"
    try:
        written = write_caption(
            caption.file,
            text,
            prefix=row.prefix,
            suffix=row.suffix,
            existing=row.existing,
            keep_line_breaks=row.keep_line_breaks,
        )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{shown} is not in UTF-8, so that nothing can be appended: save it as UTF-8, or "
            'choose "overwrite".'
        ) from error
    except OSError as error:
        raise ValueError(
            f"{shown} could not be written into ComfyUI's {row.place} folder: "
            f"{error.strerror or error}. Try another name or subfolder."
        ) from error
    if written:
        return "written", shown
    return "skipped", f"{shown} exists and was left as it is."
