"""Prompt presets: text files to choose from, to which users can add their own.

A file may begin with a header, which sets options of the request:

    ---
    source: https://example.com/how-to-prompt
    date: 2026-11-30
    num_predict: 300
    format: {"type": "object", "properties": {"tags": {"type": "array"}}}
    ---
    The instructions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from .wildcard_files import decode, files_below

MAX_NUM_PREDICT = 131_072

_LONGEST_BYTES = 100_000
_KEYS = ("source", "date", "num_predict", "format")
# A key that is known must follow: some texts begin with a line of three dashes, too.
_START = re.compile(rf"---[ \t]*\r?\n(?=(?:{'|'.join(_KEYS)})[ \t]*:)")
_END = re.compile(r"^---[ \t\r]*$", re.MULTILINE)
_KEY = re.compile(r"^(\w+)[ \t]*:", re.MULTILINE)


class PresetError(ValueError):
    """There is no such preset, or its header cannot be used."""

    code = "R509"


class Preset(NamedTuple):
    """A preset file.

    Attributes:
        name: the file's path in its folder, without extension.
        text: the instructions.
        source: where the advice is from: a URL, or a few words.
        date: the day when the source was read, such as 2026-11-30.
        num_predict: limit of the answer in tokens; None: not set.
        format: "json", or a JSON schema, which is not checked here; None: not set.
        problem: why the header cannot be used, in one sentence; "": it can.
    """

    name: str
    text: str
    source: str = ""
    date: str = ""
    num_predict: int | None = None
    format: str | dict[str, Any] | None = None
    problem: str = ""


def presets(folders: Sequence[Path]) -> dict[str, Preset]:
    """Return the presets by their files' names; if names are equal, the first folder wins.

    Empty, very long and unreadable files are left out.
    """
    found: dict[str, Preset] = {}
    for folder in folders:
        for name, path in files_below(folder, (".txt",)):
            if name not in found and (text := _read(path)):
                preset = parse_preset(name, text)
                if preset.text or preset.problem:
                    found[name] = preset
    return dict(sorted(found.items(), key=lambda entry: entry[0].lower()))


def ready_instructions(folders: Sequence[Path]) -> dict[str, str]:
    """Return only the texts of `presets`."""
    return {name: preset.text for name, preset in presets(folders).items()}


def parse_preset(name: str, text: str) -> Preset:
    """Return the preset in a file's text.

    >>> preset = parse_preset("tags", "---\\nnum_predict: 300\\nformat: json\\n---\\nWrite tags.")
    >>> preset.text, preset.num_predict, preset.format
    ('Write tags.', 300, 'json')
    >>> parse_preset("tags", "---\\nnum_predict: many\\n---\\nWrite tags.").problem
    'The header of the preset "tags" cannot be used: num_predict is "many", but must be a whole \
number from 1 to 131072.'
    >>> parse_preset("rule", "---\\nA text between rules\\n---").text
    '---\\nA text between rules\\n---'
    """
    start = _START.match(text)
    if start is None:
        return Preset(name=name, text=text)
    end = _END.search(text, start.end())
    try:
        if end is None:
            raise ValueError("no line --- ends it")
        body, header = text[end.end() :].strip(), _parse_header(text[start.end() : end.start()])
    except ValueError as error:
        problem = f'The header of the preset "{name}" cannot be used: {error}.'
        return Preset(name=name, text=text[end.end() :].strip() if end else text, problem=problem)
    return Preset(name=name, text=body, **header)


def _parse_header(header: str) -> dict[str, Any]:
    _, *parts = _KEY.split(header)
    read: dict[str, Any] = {}
    for key, raw in zip(parts[::2], parts[1::2], strict=True):
        value = raw.strip()
        if key not in _KEYS:
            raise ValueError(f'"{key}" must be one of {", ".join(_KEYS)}')
        if key in read:
            raise ValueError(f"{key} is there twice")
        if not value:
            raise ValueError(f"{key} is empty")
        read[key] = _PARSERS.get(key, str)(value)
    return read


def _parse_date(value: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        raise ValueError(f'date is "{_shown(value)}", but must have the form 2026-11-30')
    return value


def _parse_num_predict(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= MAX_NUM_PREDICT:
        raise ValueError(
            f'num_predict is "{_shown(value)}", but must be a whole number from 1 to '
            f"{MAX_NUM_PREDICT}"
        )
    return int(value)


def _parse_format(value: str) -> str | dict[str, Any]:
    if value.lower() == "json":
        return "json"
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"format is neither the word json nor a JSON schema ({error})") from None
    if not isinstance(schema, dict):
        raise ValueError("format must be the word json, or a JSON schema in braces")
    return cast("dict[str, Any]", schema)


def _shown(value: str) -> str:
    return " ".join(value.split())[:40]


_PARSERS = {"date": _parse_date, "num_predict": _parse_num_predict, "format": _parse_format}


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:  # deleted, or no permission: list only usable files
        return ""
    return decode(data).strip() if len(data) <= _LONGEST_BYTES else ""
