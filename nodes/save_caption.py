"""Save Caption: a text file with the image's own name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
from comfy_api.latest import io

from .._advice import with_code
from ..files import (
    EXISTING,
    NameTaken,
    NotWritten,
    caption_file,
    caption_files,
    inside,
    same_name_message,
    write_caption,
)
from . import host
from .llm_inputs import ErrorText

_PLACES = ("input", "output")
_SAME_NAME = ("refuse", "full name")
_NAME_IS_EMPTY = "name is empty. Connect names of Load Images From Folder, or write one."


def _string(tooltip: str, **more: Any) -> Any:
    return host.widget(
        lambda id: io.String.Input(id, default="", tooltip=tooltip, **more), default=""
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs of one caption, in their order; lists give one caption for each entry."""

    name: str = _string(
        "Image name, such as cats/one.png: connect names of Load Images From Folder. The caption "
        "becomes cats/one.txt."
    )
    text: str = _string(
        "Caption text, such as description of LLM Image Refine. Error messages are not written.",
        multiline=True,
        lazy=True,
    )
    place: str = host.choice(
        _PLACES,
        "Save beside the image in ComfyUI's input folder, or under the same name in the output "
        "folder.",
        optional=False,
        label="save to",
    )
    subfolder: str = _string("Subfolder to put in front of the name.", optional=True)
    prefix: str = _string(
        'Text to put before the caption, such as a trigger word with its comma: "ohwx, ".',
        optional=True,
    )
    suffix: str = _string("Text to put after the caption.", optional=True)
    existing: str = host.choice(
        EXISTING,
        "Keep the file, replace it, or append the new text to it.",
        label="if file exists",
    )
    keep_line_breaks: bool = host.switch(
        False,
        "Off: write one line, as trainers expect it. kohya's scripts ignore further lines, "
        "OneTrainer picks one at random.",
        hide=True,
    )
    same_name: str = host.choice(
        _SAME_NAME,
        "If a.jpg and a.png are in one list: refuse the second caption, or name it a.png.txt.",
        label="if names clash",
        hide=True,
    )


class SaveCaption(io.ComfyNode):
    """(text, file), lists: one caption file for each name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The image's name, the text, and where and how to write it."""
        return host.schema(
            node_id="RefinerySaveCaption",
            display_name="Save Caption",
            category="Image Refinery/Image",
            description=(
                "Writes a .txt caption with the image's own name, as LoRA trainers expect it, into "
                "ComfyUI's input or output folder."
            ),
            search_aliases=["caption", "dataset", "lora training", "save text", "txt", "captions"],
            is_input_list=True,
            is_output_node=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="The text, without prefix and suffix.",
                ),
                io.String.Output(
                    display_name="file",
                    is_output_list=True,
                    tooltip="Name of the caption file inside that folder.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: list[str | None] | None = None) -> bool | str:
        """Refuse an empty name before anything runs; a linked one is None here."""
        empty = any(one is not None and not one.strip() for one in name or ())
        return with_code(host.BadInput(_NAME_IS_EMPTY)) if empty else True

    @classmethod
    @host.shows_errors
    def check_lazy_status(cls, **values: list[Any]) -> list[str]:
        """Check the names first, so that a bad one is refused before a model writes the text."""
        _plan(host.read_rows(Inputs, values))
        return ["text"]

    @classmethod
    @host.shows_errors
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Write every text that is no error, and report what happened to each.

        Raises:
            BadInput, OutsideFolder: a name cannot be used.
            NotWritten: files could not be written. The other files are written.
        """
        rows = host.read_rows(Inputs, values)
        captions = _plan(rows)
        texts = [row.text for row in rows]
        counts = {"written": 0, "skipped": 0, "refused": 0}
        lines: list[str] = []
        refused: list[str] = []
        failed: list[str] = []
        for caption, one in zip(captions, texts, strict=True):
            try:
                outcome, line = _save(caption, one)
            except NotWritten as error:
                failed.append(str(error))
                continue
            counts[outcome] += 1
            lines.append(line)
            if outcome == "refused":
                refused.append(line)
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        if failed:
            more = f" ({len(failed)} could not be written, {summary}.)" if len(texts) > 1 else ""
            raise NotWritten(f"{failed[0]}{more}")
        host.show(host.node_id(cls), f"{summary}.", *refused[:1])
        ui = {"text": lines, "summary": [summary]}
        return io.NodeOutput(texts, [caption.shown for caption in captions], ui=ui)


class _Caption(NamedTuple):
    """Where one text is written, and how.

    Attributes:
        row: the inputs.
        shown: the file inside its folder, for messages.
        file: None where another image of the list has the file that `shown` names.
    """

    row: Inputs
    shown: str
    file: Path | None


def _plan(rows: list[Inputs]) -> list[_Caption]:
    """Return one caption for each row.

    Raises:
        BadInput, OutsideFolder: a name or a choice cannot be used.
    """
    images = [_image(row) for row in rows]
    files = caption_files(images, full_names=rows[0].same_name == _SAME_NAME[1])
    return [_caption(*each) for each in zip(rows, images, files, strict=True)]


def _image(row: Inputs) -> Path:
    if row.place not in _PLACES:  # older hosts do not check the value of a combo
        raise host.BadInput(f'save to is "{row.place}", but must be one of {list(_PLACES)}.')
    if not row.name.strip():
        raise host.BadInput(_NAME_IS_EMPTY)
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
        NotWritten: the file cannot be written.
    """
    shown, row = caption.shown, caption.row
    if caption.file is None:
        clash = same_name_message(row.name, shown)
        return "refused", with_code(
            NameTaken(f'{clash}, or set "if names clash" to "{_SAME_NAME[1]}".')
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
        raise NotWritten(
            f"Cannot append to {shown}, which is not UTF-8. Save it as UTF-8, or choose overwrite."
        ) from error
    except ValueError as error:  # of `existing`, which older hosts do not check
        raise host.BadInput(str(error)) from None
    except OSError as error:
        raise NotWritten(
            f"Cannot write {shown} into ComfyUI's {row.place} folder: "
            f"{error.strerror or error}. Try another name or subfolder."
        ) from error
    if written:
        return "written", shown
    return "skipped", f"{shown} exists and was kept."
