"""Names that stay inside a folder, and the images in it."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..texts.filenames import is_device

CHECKPOINT_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Checkpoints that can run code when they are read; they are refused."""
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jfif")
)


class OutsideFolder(ValueError):
    """A name leads outside the folder that it must stay in."""

    code = "R502"


class NoFolder(NotADirectoryError):
    """There is no such folder."""

    code = "R504"


class NoImages(ValueError):
    """There is no image to work on."""

    code = "R505"


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`; "" and "." are the folder itself.

    Refuses the same names on every system, so that a workflow works the same everywhere.

    Raises:
        OutsideFolder: the name is absolute, contains `..`, a drive or a null byte, is a Windows
            device, or is a link that leads outside.
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


def find_images(
    folder: Path, *, pattern: str = "*", recursive: bool = False, follow_links: bool = False
) -> list[Path]:
    """Return the image files of a folder in natural order: 2.png before 10.png.

    Args:
        pattern: of the file's name, such as `cat*.png`; case does not matter.
        recursive: include subfolders.
        follow_links: include links that lead outside the folder, and with `recursive` links to
            folders. Only for a folder chosen by the user of this machine, never by a workflow.

    Raises:
        NoFolder: the folder does not exist.
    """
    if not folder.is_dir():
        raise NoFolder(f"There is no folder {folder}.")
    found = [
        path
        for path in _named(folder, pattern, recursive, follow_links)
        if follow_links or _stays(folder, path)
    ]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def count_links_out(folder: Path, *, pattern: str = "*", recursive: bool = False) -> int:
    """Return how many image files `find_images` leaves out because they are links to outside."""
    named = _named(folder, pattern, recursive, follow_links=False)
    return sum(not _stays(folder, path) for path in named)


def subfolders(folder: Path, *, deepest: int = 3, most: int = 500) -> list[str]:
    """Return the names of a folder's subfolders, for a list of choices."""
    found: list[str] = []
    level = [folder]
    for _ in range(deepest):
        level = [inner for outer in level for inner in _folders_in(outer)]
        found += [inner.relative_to(folder).as_posix() for inner in level]
        if len(found) >= most:
            break
    return sorted(found, key=_natural)[:most]


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:  # deleted, or no permission
        return []


def _named(folder: Path, pattern: str, recursive: bool, follow_links: bool) -> Iterator[Path]:
    """Yield the image files that match a pattern, including links that lead outside."""
    wanted = (pattern.strip() or "*").lower()
    for path in _walk(folder, recursive, follow_links):
        name = path.name.lower()
        if path.suffix.lower() in IMAGE_SUFFIXES and fnmatch.fnmatchcase(name, wanted):
            yield path


def _walk(folder: Path, recursive: bool, follow_links: bool) -> Iterator[Path]:
    seen: set[str] = set()
    for parent, inner, names in os.walk(folder, followlinks=follow_links):
        if follow_links:
            if (real := os.path.realpath(parent)) in seen:  # a link to a folder above it
                inner.clear()
                continue
            seen.add(real)
        if not recursive:
            inner.clear()
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _stays(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """
    >>> sorted(["b10.png", "b2.png", "B1.png", "a.png"], key=_natural)
    ['a.png', 'B1.png', 'b2.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", name.lower())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts], name
