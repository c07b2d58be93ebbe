"""The wildcard files in a list of folders, and their lines.

A name is looked up among the files found, and is never joined to a path, so no name can lead
outside the folders.
"""

from __future__ import annotations

import codecs
import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMENT_MARKS = ("#", "//", ";")
_SUFFIX = ".txt"
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*::")


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a wildcard file and its weight; a line is equal only to itself."""

    weight: float
    text: str


class WildcardFiles:
    """Every .txt below `folders`, by name: its path without extension, in lower case.

    If two folders have a file of the same name, the first one wins. Links that lead outside a
    folder are left out. The folders are searched once, on first use.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._found: dict[str, Path] | None = None
        self._lines: dict[Path, tuple[Line, ...]] = {}

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._files())

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return a value that changes when a file is added, removed or edited."""
        paths = [path for path in sorted(self._files().values()) if path.exists()]
        states = ((path, path.stat()) for path in paths)
        return tuple((str(path), state.st_mtime_ns, state.st_size) for path, state in states)

    def lines(self, name: str) -> tuple[Line, ...]:
        """Return the lines of the files that a name matches; none if there is no such file.

        A `*` in the name matches anything. A name without a folder is searched for at the top, then
        in all folders.

        Raises:
            OSError: a file cannot be read.
        """
        return tuple(line for path in self._find(name) for line in self._read(path))

    def _find(self, name: str) -> list[Path]:
        files = self._files()
        wanted = name.replace("\\", "/").lower()
        if "*" in wanted:
            return [path for own, path in sorted(files.items()) if _fits(own, wanted)]
        if wanted in files:
            return [files[wanted]]
        if "/" in wanted:
            return []
        return [path for own, path in sorted(files.items()) if own.endswith(f"/{wanted}")]

    def _files(self) -> dict[str, Path]:
        if self._found is None:
            self._found = {}
            for folder in self._folders:
                for name, path in text_files(folder):
                    self._found.setdefault(name.lower(), path)
        return self._found

    def _read(self, path: Path) -> tuple[Line, ...]:
        if path not in self._lines:
            self._lines[path] = tuple(_parse(decode(path.read_bytes())))
        return self._lines[path]


def decode(data: bytes) -> str:
    """Return a text file's content: by its byte order mark, else as UTF-8, else as Windows-1252.

    >>> decode(b"caf\\xc3\\xa9") == decode(b"caf\\xe9") == decode("caf\\u00e9".encode("utf-16"))
    True
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def split_weight(text: str) -> tuple[float, str]:
    """Return the weight at the beginning of a choice (1.0 if there is none), and the rest.

    >>> split_weight("2::a"), split_weight(" 0.5 :: b"), split_weight("a::b")
    ((2.0, 'a'), (0.5, ' b'), (1.0, 'a::b'))
    """
    found = _WEIGHT.match(text)
    return (1.0, text) if found is None else (float(found[1]), text[found.end() :])


def text_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each .txt below a folder with its name, sorted, except links that lead outside."""
    top = folder.resolve()
    for parent, inner, names in os.walk(top):
        inner.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() != _SUFFIX or not path.is_file():
                continue
            if not path.is_symlink() or path.resolve().is_relative_to(top):
                yield path.relative_to(top).with_suffix("").as_posix(), path


def _parse(text: str) -> Iterator[Line]:
    for raw in text.splitlines():
        line = raw.strip()
        if line and not line.startswith(COMMENT_MARKS):
            weight, rest = split_weight(line)
            # an escaped mark begins a line that is not a comment, such as a hex color
            yield Line(weight, rest[1:] if rest.startswith("\\#") else rest)


def _fits(name: str, pattern: str) -> bool:
    """
    >>> _fits("colors/warm", "color*"), _fits("colors/warm", "**/warm"), _fits("warm", "**/warm")
    (True, True, True)
    >>> _fits("warm", "w[a]rm"), _fits("warm", "w?rm")
    (False, False)
    """
    plain = pattern.replace("[", "[[]").replace("?", "[?]")
    return fnmatch.fnmatchcase(name, plain) or fnmatch.fnmatchcase(name, plain.removeprefix("**/"))
