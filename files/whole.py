"""Write a file whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def written_whole(file: Path) -> Iterator[TextIO]:
    """Give a text file that takes the place of `file` at the end of the block.

    Raises:
        OSError: it cannot be written.
    """
    with (
        draft_of(file) as draft,
        # Names of files on Linux may be no UTF-8.
        draft.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as text,
    ):
        yield text


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `file` at the end of the block.

    Raises:
        OSError: it cannot be written.
    """
    draft = draft_path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        os.replace(draft, file)
    except OSError as error:
        # A full disk, or a folder without permission; Pillow's own errors have no number.
        if error.errno is not None and error.filename in (None, str(draft)):
            error.filename = str(file)
        raise
    finally:
        draft.unlink(missing_ok=True)


def draft_path(file: Path) -> Path:
    """Return where a file is written before it takes its place: the same each time."""
    # Short: the name of `file` may be as long as a name can be.
    unique = zlib.crc32(os.fsencode(file.name))
    return file.with_name(f"{file.stem[:40]}-{unique:08x}.new")
