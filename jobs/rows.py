"""The results of a job: rows in append-only files, which are the truth of what is done."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ..texts import safe_filename

FOLDER = "rows"
DONE, FAILED = "done", "failed"

_SYNC_S = 1.0
"""How much of a job a power cut may lose. A killed process loses nothing: each row is flushed."""

Row = dict[str, Any]
"""`id`, `status` ("done" or "failed"), and what the task adds."""

_FORM: dict[str, tuple[Any, type[Any] | tuple[type[Any], ...]]] = {
    "id": (None, str),
    "status": (None, str),
    "text": ("", str),
    "description": ("", str),
    "at": (0, (int, float)),
}
"""The type of each value of a row that is used as one, and what counts as missing."""

# Twice as quick as json.dumps and json.loads, which look at their arguments each time.
_encode = json.JSONEncoder(ensure_ascii=False).encode
_decode: Callable[[str], tuple[Any, int]] = json.JSONDecoder().raw_decode


def failure_of(error: Exception, kind: str = "") -> Row:
    """Return what a row says of an error, which has a `code`.

    Args:
        kind: in place of the name of its class.
    """
    code: str = getattr(error, "code", "")
    about = {"kind": kind or type(error).__name__, "code": code, "message": str(error)}
    return {"status": FAILED, "error": about}


def text_of(row: Row) -> str:
    r"""Return what a page shows of a result: its text, or the texts and files of a workflow.

    A refined image has its prompt, if that was its own.

    >>> text_of({"outputs": {"4": {"text": ["A ball."], "images": [{"filename": "a.png"}]}}})
    'A ball.\na.png'
    """
    if "text" in row:
        return row["text"]
    if "outputs" not in row:
        return row.get("prompt", "")
    shown = [one for node in row["outputs"].values() for values in node.values() for one in values]
    return "\n".join(one if isinstance(one, str) else one["filename"] for one in shown)


def has_rows(folder: Path) -> bool:
    """Return whether a job has a result, good or bad."""
    return any(file.stat().st_size for file in (folder / FOLDER).glob("*.jsonl"))


class RowLog:
    """Rows of one worker, one JSON object per line. Several threads may write to it."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._lock = Lock()
        self._synced = time.monotonic()
        # A server's name may hold what a file's name may not.
        name = f"{safe_filename(worker)}-{zlib.crc32(worker.encode()):08x}.jsonl"
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        self._file = path.open("ab")

    def write(self, row: Row, *, sync: bool = False) -> None:
        """Append a row. It survives the end of this process, and with `sync` a power cut."""
        line = _encode(row).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            if sync or time.monotonic() - self._synced >= _SYNC_S:
                self._sync()

    def close(self) -> None:
        """Write all to the disk."""
        with self._lock:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


class Place(NamedTuple):
    """Where a row is: the number of its file, and its first byte."""

    file: int
    offset: int
    status: str


class Rows:
    """The last row of each id; a success counts more than any failure.

    Only the places of rows are in memory: about 200 bytes for each id.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted((folder / FOLDER).glob("*.jsonl"))
        self.places: dict[str, Place] = {}
        for number, file in enumerate(self._files):
            for offset, row in _read(file):
                before = self.places.get(row["id"])
                if before is None or before.status != DONE or row["status"] == DONE:
                    self.places[row["id"]] = Place(number, offset, row["status"])

    def status(self, id: str) -> str:
        """Return "done", "failed", or "" for an id without a row."""
        place = self.places.get(id)
        return place.status if place else ""

    def get(self, id: str) -> Row:
        """Read the row of an id that has one."""
        place = self.places[id]
        with self._files[place.file].open("rb") as file:
            file.seek(place.offset)
            row: Any = json.loads(file.readline())
            return row

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, file by file."""
        for number, file in enumerate(self._files):
            for offset, row in _read(file):
                place = self.places.get(row["id"])  # None: written since, by another process
                if place and place.offset == offset and place.file == number:
                    yield row


def _read(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield each whole row of a file, and where it begins."""
    offset = 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                text = line.decode("utf-8", "surrogatepass")
                row, end = _decode(text)
            except ValueError:  # a damaged line: its image is asked again
                pass
            else:
                if text[end:] == "\n" and _is_row(row):
                    yield offset, row
            offset += len(line)


def _is_row(value: Any) -> bool:
    """Whether a value has the form of a row: a job directory may come from somebody else."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name, default), kind) for name, (default, kind) in _FORM.items()
    )


def _drop_torn_line(path: Path) -> None:
    """Cut off what a power cut left of a last line, so that the next row does not join it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - 2**20)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
