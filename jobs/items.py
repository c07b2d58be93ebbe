"""The images of a job: which there are, and ids that stay the same from run to run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..captioning.images import file_source
from ..files import UnreadableImage, about_data, about_file, open_image
from ..files.folders import IMAGE_SUFFIXES
from ..llm.errors import UnusableImage

if TYPE_CHECKING:
    from PIL import Image

LIST_SUFFIXES = (".txt", ".jsonl")


class Source(Protocol):
    """Where an image is that is no file on a disk."""

    def read(self, id: str) -> bytes:
        """Return the image file.

        Raises:
            UnreadableImage: it cannot be read.
        """
        ...

    def caption(self, id: str) -> bytes:
        """Return the caption file beside it; b"" if there is none."""
        ...


class Item(NamedTuple):
    """One image. A job may have a million of them.

    Attributes:
        id: its path inside its input, with slashes; stable when the input moves.
        root: the folder that the id is in.
        source: None: it is a file.
    """

    id: str
    root: str
    source: Source | None = None

    @property
    def path(self) -> Path:
        """The image file, if it is one (`source` is None)."""
        return Path(self.root, self.id)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path) if self.source is None else f"{self.root}/{self.id}"

    def open(self) -> Image.Image:
        """Return the image, upright; this is an `ImageSource`.

        Raises:
            UnusableImage: it cannot be read.
        """
        if self.source is None:
            return file_source(self.path)()
        try:
            return open_image(io.BytesIO(self.source.read(self.id)), self.name)
        except UnreadableImage as error:
            raise UnusableImage(str(error)) from error

    def read(self) -> bytes:
        """Return the image file as it is.

        Raises:
            OSError, UnreadableImage: it cannot be read.
        """
        return self.path.read_bytes() if self.source is None else self.source.read(self.id)

    def about(self) -> dict[str, str]:
        """Return the values of its placeholders, as `about_file`.

        Raises:
            UnreadableImage: the image cannot be read.
        """
        if self.source is None:
            return about_file(self.path)
        data = io.BytesIO(self.source.read(self.id))
        return about_data(data, PurePosixPath(self.name), self.source.caption(self.id))


class BadInputList(Exception):
    """An input of a job cannot be read, or two of its images have the same id."""

    code = "R510"


def find_items(inputs: Sequence[Path], *, recursive: bool = False) -> list[Item]:
    """Return the images of folders, list files and single files, in the order of the inputs.

    A list is a .txt file with one path in each line, or a .jsonl file with `file_name` in each line
    (Hugging Face's metadata.jsonl). Paths in a list are relative to its folder.

    Raises:
        BadInputList: an input does not exist or cannot be read, or two images have the same id.
    """
    items: list[Item] = []
    named = {one.with_suffix("") for one in inputs if one.suffix.lower() in IMAGE_SUFFIXES}
    for one in inputs:
        if one.suffix.lower() == ".txt" and one.with_suffix("") in named:
            continue  # with "folder/*": the caption of an image
        try:
            if one.is_dir():
                items += _in_folder(one, recursive)
            elif one.suffix.lower() in LIST_SUFFIXES:
                items += _in_list(one)
            elif one.is_file():
                items.append(Item(one.name, str(one.absolute().parent)))
            else:
                raise BadInputList(f"There is no file or folder {one}.")
        except OSError as error:
            reason = error.strerror or error
            raise BadInputList(f"{one} cannot be read ({reason}).") from error
    return _unique(items)


def is_inside(id: str) -> bool:
    """Return whether an id stays below any folder that it is joined to.

    >>> is_inside("a/b.png"), is_inside("../b.png"), is_inside("/b.png"), is_inside("C:/b.png")
    (True, False, False, False)
    """
    path = PurePosixPath(id)
    return not (path.is_absolute() or ".." in path.parts or PureWindowsPath(id).drive)


def _in_folder(folder: Path, recursive: bool) -> Iterator[Item]:
    root = str(folder.absolute())
    # os.scandir alone: a million Path objects take a minute.
    waiting = [""]
    seen = {os.path.realpath(root)}
    while waiting:
        inner = waiting.pop()
        below: list[str] = []
        names: list[str] = []
        with os.scandir(os.path.join(root, inner)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                id = f"{inner}/{entry.name}" if inner else entry.name
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file():
                    names.append(id)
                elif recursive and entry.is_dir() and _is_new(entry, seen):
                    below.append(id)
        yield from (Item(id, root) for id in sorted(names))
        waiting += sorted(below, reverse=True)


def _is_new(entry: os.DirEntry[str], seen: set[str]) -> bool:
    """Whether a folder was not seen before: a link may lead to a folder above it."""
    real = os.path.realpath(entry.path)
    if real in seen:
        return False
    seen.add(real)
    return True


def _in_list(file: Path) -> Iterator[Item]:
    root = str(file.absolute().parent)
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except ValueError as error:
        raise BadInputList(f"{file} is not a text file in UTF-8 ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = line.strip()
        if file.suffix.lower() == ".jsonl":
            name = _file_name(line)
            if not name:
                raise BadInputList(f"Line {number} of {file} is no JSON object with a file_name.")
        name = name.replace("\\", "/")
        if not os.path.exists(os.path.join(root, name)):
            raise BadInputList(f"Line {number} of {file} names no file: {name}.")
        yield Item(name, root)


def _file_name(line: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    name = cast("dict[str, Any]", row).get("file_name") if isinstance(row, dict) else None
    return name if isinstance(name, str) else ""


def _unique(items: Iterable[Item]) -> list[Item]:
    found: dict[str, Item] = {}
    for item in items:
        other = found.setdefault(item.id, item)
        if other.root != item.root:
            raise BadInputList(
                f"{other.name} and {item.name} would have the same id {item.id}. Begin a job for "
                "each input, or name the folder above both with --recursive."
            )
    return list(found.values())
