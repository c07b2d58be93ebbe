"""Wildcards in YAML and JSON files: nested keys with lists, as one collection in one file.

    artists:                    # __artists/dutch__: one of the two
      dutch:
        - Rembrandt van Rijn
        - 2::Vincent van Gogh   # or {text: Vincent van Gogh, weight: 2}
    title: just one entry       # __title__

A file that holds only a list has its own name. Everything else in such files is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from .wildcard_files import Line, decode, split_weight, without_hash_lines

MAX_BYTES = 64 * 1024 * 1024
MAX_NAMES = 200_000
"""Aliases in YAML can name the same lists again and again."""
_MAX_LEVELS = 40
_NO_TEXT = re.compile(r"[-+]?[\d._]*(?:e[-+]?\d+)?|~|null|true|false", re.IGNORECASE)
_NOTHING = ("~", "null")
_MERGE = "<<"


class Collection(NamedTuple):
    """The wildcards of one file.

    Attributes:
        lines: by name: the path of keys, in lower case.
        problem: why the file cannot be read, in a few words; "": it can.
    """

    lines: dict[str, tuple[Line, ...]]
    problem: str = ""


class _Unusable(ValueError):
    """The file is well-formed, but beyond a limit."""


class _Bare(str):
    """A number, or YAML without quotation marks: text as an entry of a list only."""

    __slots__ = ()


_read: dict[Path, tuple[tuple[int, int], Collection]] = {}


def read(path: Path) -> Collection:
    """Return a file's wildcards, which stay in memory until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    state = path.stat()
    stamp = (state.st_mtime_ns, state.st_size)
    known = _read.get(path)
    if known is None or known[0] != stamp:
        known = _read[path] = (stamp, _parse(path, state.st_size))
    return known[1]


def _parse(path: Path, size: int) -> Collection:
    if size > MAX_BYTES:
        return Collection({}, f"it has more than {MAX_BYTES // 1024**2} MiB")
    text = decode(path.read_bytes())
    try:
        roots = [_json(text)] if path.suffix.lower() == ".json" else list(_yaml(text))
        return Collection(_named(roots, path.stem))
    except RecursionError:
        return Collection({}, f"it has more than {_MAX_LEVELS} levels")
    except ValueError as error:
        return Collection({}, str(error))


def _json(text: str) -> Any:
    # a number is an entry as it is written
    return json.loads(text, parse_int=_Bare, parse_float=_Bare, parse_constant=_Bare)


def _yaml(text: str) -> Iterator[Any]:
    """Yield each document, made of events: no tag makes an object, no alias is copied."""
    import yaml

    # the parser of libyaml is fourteen times as fast, and not in every build of PyYAML
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events = yaml.parse(text, Loader=loader)
    anchors: dict[str, Any] = {}

    def node(event: Any, level: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            value = event.value if event.style else _Bare(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _Unusable(f"*{event.anchor} has no &{event.anchor} before it")
            return anchors[event.anchor]
        elif level >= _MAX_LEVELS:
            raise _Unusable(f"it has more than {_MAX_LEVELS} levels")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(inner := next(events), yaml.SequenceEndEvent):
                value.append(node(inner, level + 1))
        else:
            value = {}
            while not isinstance(inner := next(events), yaml.MappingEndEvent):
                key = node(inner, level + 1)
                entry = node(next(events), level + 1)
                if isinstance(key, str):
                    value[key] = entry
        if event.anchor is not None:
            anchors[event.anchor] = value
        return value

    try:
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                yield node(event, 0)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"{line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _named(roots: list[Any], stem: str) -> dict[str, tuple[Line, ...]]:
    """Return all lists by the path of their keys; that of a file with a list only is its name."""
    found: dict[str, tuple[Line, ...]] = {}
    # an alias names a list again, and its lines are made once
    made: dict[int, tuple[Line, ...]] = {}
    seen = 0

    def add(prefix: str, value: Any, level: int) -> None:
        nonlocal seen
        seen += 1
        if seen > MAX_NAMES:
            raise _Unusable(f"it has more than {MAX_NAMES:,} names")
        if level > _MAX_LEVELS:
            raise _Unusable(f"it has more than {_MAX_LEVELS} levels")
        if isinstance(value, dict):
            entries = cast("dict[str, Any]", value)
            # keys beside a merge key count before what it merges
            for key in sorted(entries, key=lambda key: key == _MERGE):
                name = key.strip().replace("\\", "/").strip("/").lower()
                add("/".join(filter(None, (prefix, "" if key == _MERGE else name))), entries[key],
                    level + 1)  # fmt: skip
            return
        if id(value) not in made:
            made[id(value)] = tuple(_lines(value))
        if prefix and made[id(value)]:
            found.setdefault(prefix, made[id(value)])

    for root in roots:
        if isinstance(root, (dict, list)):
            add("" if isinstance(root, dict) else stem.lower(), root, 0)
    return found


def _lines(value: Any) -> Iterator[Line]:
    if isinstance(value, str):
        if not (isinstance(value, _Bare) and _NO_TEXT.fullmatch(value)):
            yield from _line(value)
    elif isinstance(value, list):
        for entry in cast("list[Any]", value):
            if isinstance(entry, str):
                if not (isinstance(entry, _Bare) and entry in _NOTHING):
                    yield from _line(entry)
            elif isinstance(entry, dict):
                fields = cast("dict[str, Any]", entry)
                text = fields.get("text") or fields.get("content")
                if isinstance(text, str):
                    yield from _line(text, fields.get("weight"))


def _line(text: str, weight: object = None) -> Iterator[Line]:
    if "\n" in text:
        text = without_hash_lines(f"\n{text}")
    text = text.strip()
    if not text:
        return
    if isinstance(weight, str) and (found := split_weight(f"{weight}::"))[1] == "":
        yield Line(found[0], text)
    else:
        yield Line(*split_weight(text))
