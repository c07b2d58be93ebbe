"""The images of a job: which there are, and ids that stay the same from run to run."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..captioning.images import file_source
from ..files import (
    UnreadableImage,
    about_data,
    about_file,
    caption_beside,
    one_caption,
    open_image,
)
from ..files.folders import IMAGE_SUFFIXES
from ..llm.errors import UnusableImage
from . import tars
from .addresses import images_at
from .source import BadInputList, Source
from .tables import paths_in_parquet

if TYPE_CHECKING:
    from PIL import Image

LIST_SUFFIXES = (".txt", ".jsonl", ".parquet")


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

    def caption(self) -> str:
        """Return the caption beside it as one line; "" if there is none.

        Raises:
            UnreadableImage: what holds it cannot be read.
        """
        beside = caption_beside(self.path) if self.source is None else self.source.caption(self.id)
        return one_caption(beside)

    def about(self) -> dict[str, str]:
        """Return the values of its placeholders, as `about_file`.

        Raises:
            UnreadableImage: the image cannot be read.
        """
        if self.source is None:
            return about_file(self.path)
        data = io.BytesIO(self.source.read(self.id))
        return about_data(data, PurePosixPath(self.name), self.source.caption(self.id))


def find_items(
    inputs: Sequence[Path | str],
    *,
    recursive: bool = False,
    patterns: Sequence[str] = (),
    column: str = "",
) -> list[Item]:
    """Return the images of folders, lists, tar files, addresses and single files, in that order.

    A list is a .txt file with one path in each line, a .jsonl file with `file_name` in each line
    (Hugging Face's metadata.jsonl), or a .parquet file with a column of paths. Paths in a list are
    relative to its folder, and may lead to tar files.

    Args:
        inputs: a text is an address such as s3://bucket/folder. It may lead anywhere: only for
            what the user of this machine wrote, never for what a workflow brought.
        recursive: include subfolders.
        patterns: only ids that match one of them, such as "cats/*.png"; case does not matter.
        column: of paths in parquet files; "": the first usual one.

    Raises:
        BadInputList: an input does not exist or cannot be read, or two images have the same id.
    """
    found = _in_inputs(inputs, recursive, column)
    if patterns:
        matches = re.compile("|".join(fnmatch.translate(one.lower()) for one in patterns)).match
        found = (item for item in found if matches(item.id.lower()))
    return _unique(found)


def _in_inputs(inputs: Sequence[Path | str], recursive: bool, column: str) -> Iterator[Item]:
    named = {
        one.with_suffix("")
        for one in inputs
        if isinstance(one, Path) and one.suffix.lower() in IMAGE_SUFFIXES
    }
    for one in inputs:
        if isinstance(one, str):
            root, source, ids = images_at(one, recursive=recursive)
            yield from (Item(id, root, source) for id in ids)
            continue
        if one.suffix.lower() == ".txt" and one.with_suffix("") in named:
            continue  # with "folder/*": the caption of an image
        try:
            if one.is_dir():
                yield from _in_folder(one, recursive)
            elif one.suffix.lower() in LIST_SUFFIXES:
                yield from _in_list(one, column)
            elif one.is_file():
                yield from _in_file(one.name, str(one.absolute().parent))
            else:
                raise BadInputList(f"There is no file or folder {one}.")
        except OSError as error:
            reason = error.strerror or error
            raise BadInputList(f"{one} cannot be read ({reason}).") from error


def is_inside(id: str) -> bool:
    """Return whether an id stays below any folder that it is joined to.

    >>> is_inside("a/b.png"), is_inside("../b.png"), is_inside("/b.png"), is_inside("C:/b.png")
    (True, False, False, False)
    """
    path = PurePosixPath(id.replace("\\", "/"))
    drive = PureWindowsPath(id).drive
    return not (path.is_absolute() or ".." in path.parts or drive or "\0" in id)


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


def _in_file(name: str, root: str) -> Iterator[Item]:
    """Yield an image file, or the images of a tar file."""
    if name.lower().endswith(tars.SUFFIXES):
        for inner, member in tars.images_in_tar(Path(root, name)):
            yield Item(f"{name}/{inner}", root, member)
    else:
        yield Item(name, root)


def _in_list(file: Path, column: str) -> Iterator[Item]:
    root = str(file.absolute().parent)
    if file.suffix.lower() == ".parquet":
        names, called = paths_in_parquet(file, column), "Row"
    else:
        names, called = _lines(file), "Line"
    for number, name in names:
        name = name.replace("\\", "/")
        if not os.path.exists(os.path.join(root, name)):
            raise BadInputList(f"{called} {number} of {file} names no file: {name}.")
        yield from _in_file(name, root)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbers of lines, and the path in each."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except ValueError as error:
        raise BadInputList(f"{file} is not a text file in UTF-8 ({error}).") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name and file.suffix.lower() == ".jsonl":
            name = _file_name(line)
            if not name:
                raise BadInputList(f"Line {number} of {file} is no JSON object with a file_name.")
        if name:
            yield number, name


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
