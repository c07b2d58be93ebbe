"""Images at addresses such as s3:// and https://, read by fsspec."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, cast

from .._program import install
from ..files import UnreadableImage
from ..files.folders import IMAGE_SUFFIXES
from .source import MAX_IMAGE_BYTES, BadInputList


class Remote:
    """A `Source` of the images below an address.

    Args:
        files: the file system of fsspec.
        root: what comes before each id, in the terms of the file system.
    """

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root

    def read(self, id: str) -> bytes:
        data = self._read(id, MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise UnreadableImage(f"{id} is damaged or too large.")
        return data

    def caption(self, id: str) -> bytes:
        name = posixpath.splitext(id)[0] + ".txt"
        try:
            return self._read(name, MAX_IMAGE_BYTES)
        except UnreadableImage as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return b""
            raise

    def _read(self, id: str, size: int) -> bytes:
        try:
            with self._files.open(f"{self._root}/{id}", "rb") as file:
                return file.read(size)
        except FileNotFoundError as error:
            raise UnreadableImage(f"{self._root}/{id} does not exist.") from error
        except Exception as error:
            # The driver of each protocol has other errors.
            raise UnreadableImage(f"{self._root}/{id} cannot be read ({error}).") from error


def images_at(address: str, *, recursive: bool = False) -> tuple[str, Remote, Iterator[str]]:
    """Return the address that ids are relative to, what reads the images there, and their ids.

    Args:
        address: a folder, or an image.

    Raises:
        BadInputList: it cannot be read, or its protocol needs a package that is missing.
    """
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError:
        raise BadInputList(f"Addresses need the package fsspec: {install('fsspec')}") from None
    protocol = address.split("://")[0].split("::")[0]
    try:
        files, path = cast("tuple[Any, str]", url_to_fs(address))
    except ImportError as error:
        package = str(known_implementations.get(protocol, {}).get("class", "")).split(".")[0]
        # fsspec has the class for https itself, and lacks only what it needs.
        package = {"": "fsspec", "fsspec": "aiohttp"}.get(package, package)
        raise BadInputList(
            f"{address} needs a package that is missing ({error}): {install(package)}"
        ) from error
    except Exception as error:
        raise BadInputList(f"{address} cannot be read ({error}).") from error
    root, shown = path.rstrip("/"), address.rstrip("/")
    if posixpath.splitext(root)[1].lower() in IMAGE_SUFFIXES:
        folder, name = posixpath.split(root)
        return posixpath.dirname(shown), Remote(files, folder), iter((name,))
    try:
        found: list[str] = files.find(path, maxdepth=None if recursive else 1)
        if not found and not files.exists(path):
            raise FileNotFoundError("there is nothing at this address")
    except Exception as error:
        raise BadInputList(f"{address} cannot be read ({error}).") from error
    return shown, Remote(files, root), _ids(found, f"{root}/")


def _ids(found: list[str], root: str) -> Iterator[str]:
    for name in found:
        id = name.removeprefix(root)
        hidden = any(part.startswith(".") for part in id.split("/"))
        is_image = posixpath.splitext(id)[1].lower() in IMAGE_SUFFIXES
        if name.startswith(root) and is_image and not hidden:
            yield id
