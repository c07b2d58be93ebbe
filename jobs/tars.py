"""Images in WebDataset shards: tar files with image, caption and more of each key side by side."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ..files import UnreadableImage
from ..files.folders import IMAGE_SUFFIXES
from .source import MAX_IMAGE_BYTES, BadInputList

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""The compressed ones only for an error that says what they are."""

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_ZEROS = bytes(512)
"""The block after the last member."""


class Member(NamedTuple):
    """A `Source` of one image in a tar file, and of its caption (size 0: it has none)."""

    tar: str
    offset: int
    size: int
    caption_offset: int = 0
    caption_size: int = 0

    def read(self, id: str) -> bytes:
        if self.size > MAX_IMAGE_BYTES:
            raise UnreadableImage(f"{id} is damaged or too large ({self.size} bytes).")
        return self._read(self.offset, self.size, id)

    def caption(self, id: str) -> bytes:
        size = min(self.caption_size, MAX_IMAGE_BYTES)
        return self._read(self.caption_offset, size, id) if size else b""

    def _read(self, offset: int, size: int, id: str) -> bytes:
        try:
            with open(self.tar, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise UnreadableImage(f"{id} cannot be read ({error.strerror or error}).") from error
        if len(data) < size:
            raise UnreadableImage(f"{id} cannot be read: {self.tar} has become shorter.")
        return data


def images_in_tar(file: Path) -> Iterator[tuple[str, Member]]:
    """Yield the names of the images in an uncompressed tar file, and where they are.

    The caption of an image is the member of the same key that ends in .txt.

    Raises:
        BadInputList: it is compressed, damaged or cut off.
        OSError: it cannot be read.
    """
    path = str(file.absolute())
    # A tar of a million members: a TarInfo takes a kilobyte.
    images: list[tuple[str, int, int]] = []
    captions: dict[str, tuple[int, int]] = {}
    with file.open("rb") as opened:
        for member in _members(file, opened):
            suffix = posixpath.splitext(member.name)[1].lower()
            hidden = posixpath.basename(member.name).startswith(".")
            if suffix in IMAGE_SUFFIXES and not hidden:
                images.append((member.name, member.offset_data, member.size))
            elif suffix == ".txt":
                captions[member.name] = member.offset_data, member.size
    for name, offset, size in images:
        found = (captions[one] for one in _caption_names(name) if one in captions)
        yield name, Member(path, offset, size, *next(found, (0, 0)))


def _caption_names(name: str) -> tuple[str, str]:
    """
    >>> _caption_names("cats/one.left.jpg")
    ('cats/one.left.txt', 'cats/one.txt')
    """
    folder, base = posixpath.split(name)
    # WebDataset's key ends at the first dot of the file's name.
    return f"{posixpath.splitext(name)[0]}.txt", posixpath.join(folder, base.split(".")[0] + ".txt")


def _members(file: Path, opened: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files in a tar file."""
    if opened.read(6).startswith(_COMPRESSED):
        raise BadInputList(
            f"{file} is a compressed tar file, and only uncompressed ones can be read. Decompress "
            "it first."
        )
    total = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    try:
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # it keeps all  # pyright: ignore[reportAttributeAccessIssue]
                if member.size < 0 or member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"{member.name} is not whole")
                if member.isreg() and not member.issparse():
                    yield member
            # Of a damaged header in the middle, tarfile says nothing.
            opened.seek(tar.offset)
            if opened.read(len(_ZEROS)) != _ZEROS:
                raise tarfile.ReadError(f"no member at byte {tar.offset}")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise BadInputList(
            f"{file} is no tar file, or is damaged or cut off ({error}). Copy it again."
        ) from error
