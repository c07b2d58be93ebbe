"""The wildcards in a list of folders, and their lines.

A name is looked up among the files found, and is never joined to a path, so no name can lead
outside the folders.
"""

from __future__ import annotations

import codecs
import fnmatch
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

log = logging.getLogger(__name__)

COMMENT_MARKS = ("#", "//", ";")
_TEXT = ".txt"
_SUFFIXES = (_TEXT, ".yaml", ".yml", ".json")
_MAX_FOLDERS = 10_000
"""A link may lead to a whole disk."""
HASH_LINE = r"\n[ \t]*#[ \t][^\n]*"
"""A comment in a choice or an entry: a later line `# ...`, but not `#fff`."""
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*::")


@dataclass(frozen=True, eq=False, slots=True)
class Line:
    """A line of a wildcard file and its weight; a line is equal only to itself."""

    weight: float
    text: str


Source: TypeAlias = "Path | tuple[Line, ...]"
"""A text file, or the lines of a collection."""


@dataclass
class _Folder:
    """What is below one folder: text files by name, and (folder, file) of collections."""

    texts: dict[str, Path] = field(default_factory=dict[str, Path])
    collections: list[tuple[str, Path]] = field(default_factory=list[tuple[str, Path]])
    collected: dict[str, tuple[Line, ...]] | None = None


class WildcardFiles:
    """The wildcards below `folders`, by name, in lower case.

    A .txt file is one wildcard: its name is its path without extension. A .yaml or .json file has
    many: a name is the file's folder and the keys. If a name is there twice, the first folder
    counts, and in a folder the text file. The folders are searched once, on first use, and
    collections are read when a name is not a text file's. Links are followed.

    Attributes:
        problems: one sentence for each collection that cannot be used, of those read so far.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.problems: list[str] = []
        self._paths = folders
        self._folders: list[_Folder] | None = None
        self._names: dict[Callable[[str], str], list[tuple[str, Source]]] = {}
        self._lines: dict[Path, tuple[Line, ...]] = {}
        self._lines_by_name: dict[str, tuple[Line, ...]] = {}

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return [name for name, _ in self._all(str)]

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Return a value that changes when a file is added, removed or edited."""
        found = [
            path
            for folder in self._found()
            for path in (*folder.texts.values(), *(path for _, path in folder.collections))
        ]
        states = ((path, path.stat()) for path in sorted(found) if path.exists())
        return tuple((str(path), state.st_mtime_ns, state.st_size) for path, state in states)

    def lines(self, name: str) -> tuple[Line, ...]:
        """Return the lines of the wildcards that a name matches; none if there is none.

        A `*` in the name matches anything. A name that is not at the top is searched for in all
        folders, as a wildcard and then as a folder. Blanks and hyphens count as one where the name
        is not there as it is written.

        Raises:
            OSError: a file cannot be read.
        """
        if name not in self._lines_by_name:  # each of many texts looks up the same names
            lines = tuple(line for source in self._find(name) for line in self._read(source))
            self._lines_by_name[name] = lines
        return self._lines_by_name[name]

    def _find(self, name: str) -> Sequence[Source]:
        wanted = name.replace("\\", "/").lower()
        if "*" not in wanted:
            for folder in self._found():
                source = folder.texts.get(wanted) or self._collected(folder).get(wanted)
                if source is not None:
                    return [source]
        for spelling in (str, _hyphenated):
            if found := _matching(self._all(spelling), spelling(wanted)):
                return found
        return []

    def _found(self) -> list[_Folder]:
        if self._folders is None:
            self._folders = []
            for top in self._paths:
                folder = _Folder()
                self._folders.append(folder)
                for name, path in files_below(top, _SUFFIXES, follow=True):
                    if path.suffix.lower() == _TEXT:
                        folder.texts.setdefault(name.lower(), path)
                    else:
                        folder.collections.append((name.rpartition("/")[0].lower(), path))
        return self._folders

    def _collected(self, folder: _Folder) -> dict[str, tuple[Line, ...]]:
        if folder.collected is None:
            folder.collected = {}
            for above, path in folder.collections:
                from .wildcard_collections import read

                try:
                    lines, problem = read(path)
                except OSError as error:
                    lines, problem = {}, error.strerror or str(error)
                if problem:
                    self.problems.append(
                        f"{path.name} cannot be read ({problem}). Correct the file, or remove it "
                        f"from {path.parent}."
                    )
                for name, own in lines.items():
                    folder.collected.setdefault(f"{above}/{name}" if above else name, own)
        return folder.collected

    def _all(self, spelling: Callable[[str], str]) -> list[tuple[str, Source]]:
        """Return all names in a spelling, sorted, with their sources."""
        if spelling not in self._names:
            found: dict[str, Source] = {}
            for folder in self._found():
                for name, source in (*folder.texts.items(), *self._collected(folder).items()):
                    found.setdefault(name, source)
            self._names[spelling] = [(spelling(name), found[name]) for name in sorted(found)]
        return self._names[spelling]

    def _read(self, source: Source) -> tuple[Line, ...]:
        if not isinstance(source, Path):
            return source
        if source not in self._lines:
            self._lines[source] = tuple(_parse(decode(source.read_bytes())))
        return self._lines[source]


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


def without_hash_lines(text: str) -> str:
    """Return a text without the lines after its first that are comments.

    >>> without_hash_lines("{\\n  # warm\\n #f00\\n}")
    '{\\n #f00\\n}'
    """
    return re.sub(HASH_LINE, "", text)


def files_below(
    folder: Path, suffixes: Sequence[str], *, follow: bool = False
) -> Iterator[tuple[str, Path]]:
    """Yield the files with these suffixes below a folder, each with its name, sorted.

    Args:
        folder: the folder; it may be a link.
        suffixes: such as ".txt", in lower case.
        follow: follow links that lead out of the folder, to folders and to files that have one of
            the suffixes, too. A folder that links to one above it ends there.
    """
    top = folder.resolve()
    # the real paths of a folder and of those that lead to it, by its path
    chains: dict[str, tuple[Path, ...]] = {str(top): (top,)}
    for count, (parent, inner, names) in enumerate(os.walk(top, followlinks=follow)):
        if count >= _MAX_FOLDERS:
            log.warning("%s has more than %d folders: the others are left out.", top, _MAX_FOLDERS)
            return
        inner.sort()
        if follow:
            chain = chains.pop(parent)
            for name in tuple(inner):
                real = (chain[-1] / name).resolve()
                if any(above.is_relative_to(real) for above in chain):
                    inner.remove(name)
                else:
                    chains[os.path.join(parent, name)] = (*chain, real)
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() not in suffixes or not path.is_file():
                continue
            if not path.is_symlink() or _may_lead(path.resolve(), top, suffixes if follow else ()):
                yield path.relative_to(top).with_suffix("").as_posix(), path


def _may_lead(target: Path, top: Path, suffixes: Sequence[str]) -> bool:
    """A link called x.txt must not show a file that is no text, such as a key."""
    return target.is_relative_to(top) or target.suffix.lower() in suffixes


def _hyphenated(name: str) -> str:
    """Impact Pack writes a blank in a file's name as a hyphen."""
    return name.replace(" ", "-")


def _matching(names: Sequence[tuple[str, Source]], wanted: str) -> list[Source]:
    """Return the sources of the names that fit: a glob, a name, or the name of a folder."""
    if "*" in wanted:
        return [source for name, source in names if _fits(name, wanted)] or [
            source for name, source in names if _fits(name, f"*/{wanted}")
        ]
    return (
        [source for name, source in names if name == wanted]
        or [source for name, source in names if name.endswith(f"/{wanted}")]
        or [source for name, source in names if f"/{wanted}/" in f"/{name}"]
    )


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
