"""Names that stay inside a folder, and the pictures in it."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..texts.filenames import is_device

CHECKPOINT_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Checkpoints that run code when they are read; they are refused."""
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jfif")
)


class OutsideFolder(ValueError):
    """A name leads out of the folder that it must stay in."""


def inside(folder: Path, name: str) -> Path:
    """Return the path that `name` has in `folder`; "" and "." are the folder itself.

    The same names are refused on every system, so that a workflow means the same everywhere.

    Raises:
        OutsideFolder: the name is absolute, has `..`, a drive or a null byte in it, is a device of
            Windows, or a link leads out.
    """
    parts = name.replace("\\", "/").split("/")
    bad = any(part == ".." or set(part) & {"\0", ":"} or is_device(part) for part in parts)
    path = folder.joinpath(*parts) if not bad and parts[0] != "~" else None
    if path is None or (parts[0] == "" and len(parts) > 1) or not _stays(folder, path):
        raise OutsideFolder(
            f'"{name}" cannot be used in {folder}: write a path inside that folder, such as cats '
            "or cats/one.png."
        )
    return path


def find_pictures(
    folder: Path, *, pattern: str = "*", recursive: bool = False, follow_links: bool = False
) -> list[Path]:
    """Return the picture files of a folder, sorted as a person counts: 2.png before 10.png.

    Args:
        pattern: of the file's name, such as `cat*.png`; large and small letters are the same.
        recursive: folders in it as well.
        follow_links: links that lead out of the folder as well, and with `recursive` links to
            folders. Only for a folder that the user of this machine named, never for a workflow.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"There is no folder {folder}.")
    found = [
        path
        for path in _named(folder, pattern, recursive, follow_links)
        if follow_links or _stays(folder, path)
    ]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def count_links_out(folder: Path, *, pattern: str = "*", recursive: bool = False) -> int:
    """Return how many image files `find_pictures` leaves out: links that lead out of the folder."""
    named = _named(folder, pattern, recursive, follow_links=False)
    return sum(not _stays(folder, path) for path in named)


def subfolders(folder: Path, *, deepest: int = 3, most: int = 500) -> list[str]:
    """Return the names of the folders in a folder, for a list to choose from."""
    found: list[str] = []
    level = [folder]
    for _ in range(deepest):
        level = [inner for place in level for inner in _folders_in(place)]
        found += [inner.relative_to(folder).as_posix() for inner in level]
        if len(found) >= most:
            break
    return sorted(found, key=_natural)[:most]


def _folders_in(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:  # gone, or not ours to look into
        return []


def _named(folder: Path, pattern: str, recursive: bool, follow_links: bool) -> Iterator[Path]:
    """Image files by their names; links among them may lead out."""
    wanted = (pattern.strip() or "*").lower()
    for path in _walk(folder, recursive, follow_links):
        name = path.name.lower()
        if path.suffix.lower() in PICTURE_SUFFIXES and fnmatch.fnmatchcase(name, wanted):
            yield path


def _walk(folder: Path, recursive: bool, follow_links: bool) -> Iterator[Path]:
    seen: set[str] = set()
    for place, inner, names in os.walk(folder, followlinks=follow_links):
        if follow_links:
            if (real := os.path.realpath(place)) in seen:  # a link to a folder above it
                inner.clear()
                continue
            seen.add(real)
        if not recursive:
            inner.clear()
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _stays(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """
    >>> sorted(["b10.png", "b2.png", "B1.png", "a.png"], key=_natural)
    ['a.png', 'B1.png', 'b2.png', 'b10.png']
    """
    pieces = re.split(r"([0-9]+)", name.lower())
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces], name
