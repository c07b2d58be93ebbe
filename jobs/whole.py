"""Write a file whole or not at all."""

from __future__ import annotations

import os
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
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.new")
    # Names of files on Linux may be no UTF-8.
    with draft.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as text:
        yield text
    os.replace(draft, file)
