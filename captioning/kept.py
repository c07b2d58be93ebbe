"""Keep finished answers in a file, so that the same request is not sent twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from .._program import PACK
from ..llm.backend import Answer, Message, Model
from ..llm.servers import Server, keeps_answers

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE_NAME = "answers.db"
MAX_BYTES = 200_000_000

_WAL_BYTES = 4_100_000
"""SQLite's write-ahead log: it is written back after 1000 pages of 4096 bytes."""
_POLL_S = 0.01
_BUSY_S = 10.0
"""How long to wait for another process that writes."""
_FORMAT = 1
"""Part of each key; changes when answers are stored or read in another way."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers
    (key BLOB PRIMARY KEY, used REAL NOT NULL, answer TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_use ON answers (used);
"""
_REMOVE_A_TENTH = """
DELETE FROM answers WHERE key IN
    (SELECT key FROM answers ORDER BY used LIMIT 1 + (SELECT count(*) FROM answers) / 10);
"""

_logged: set[str] = set()


def answer_key(
    model: Model,
    server: Server,
    messages: Sequence[Message],
    *,
    options: Mapping[str, Any],
    think: bool | str | None,
    format: str | Mapping[str, Any] | None,
    rules: Sequence[Sequence[str]] = (),
) -> bytes:
    """Return a digest of all that an answer depends on.

    Args:
        messages: with their images as they are sent.
        options: those that were chosen by the user or the pack; a num_ctx that a run computes
            would change with the length of another stage's prompt.
        rules: other settings that change an answer.
    """
    # Without a digest, a model of the same name on another server is another model.
    where = [model.remote_host, model.digest] if model.digest else [server.url]
    parts = [_FORMAT, model.name, where, messages, options, think, format, rules]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


class KeptAnswers:
    """Answers by their keys, in an SQLite file. The least recently used ones are removed first.

    Several threads and processes may use a file at a time. No method raises: a file that cannot be
    used keeps nothing, and the log says so once. A damaged file is set aside.

    Args:
        path: of the file; it and its folder are made when the first answer is kept.
        max_bytes: size that the file does not exceed.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._lock = Lock()

    def get(self, key: bytes) -> Answer | None:
        """Return the answer with this key, or None."""

        def find(connection: sqlite3.Connection) -> str | None:
            query = "SELECT answer FROM answers WHERE key = ?"
            row: tuple[str] | None = connection.execute(query, (key,)).fetchone()
            return row[0] if row else None

        if not os.path.exists(self.path) or (text := self._do(find, None)) is None:
            return None
        update = "UPDATE answers SET used = ? WHERE key = ?"
        self._do(lambda connection: connection.execute(update, (time.time(), key)), None)
        try:
            return replace(Answer(**json.loads(text)), kept=True)
        except (ValueError, TypeError):  # by a later release
            return None

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, unless it is incomplete."""
        if answer.remark:
            return
        known = {name: value for name, value in asdict(answer).items() if value}
        row = key, time.time(), json.dumps(known, ensure_ascii=False)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
            removed = 1
            while removed and _size(connection) + _WAL_BYTES > self._max_bytes:
                removed = connection.execute(_REMOVE_A_TENTH).rowcount

        self._do(insert, None)

    def totals(self) -> tuple[int, int]:
        """Return how many answers are kept, and the bytes that they take."""

        def count(connection: sqlite3.Connection) -> tuple[int, int]:
            row: tuple[int] = connection.execute("SELECT count(*) FROM answers").fetchone()
            return row[0], _size(connection)

        return self._do(count, (0, 0)) if os.path.exists(self.path) else (0, 0)

    def clear(self) -> int:
        """Remove all answers; return how many there were."""

        def delete(connection: sqlite3.Connection) -> int:
            count = connection.execute("DELETE FROM answers").rowcount
            connection.execute("VACUUM")
            return count

        return self._do(delete, 0) if os.path.exists(self.path) else 0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _do(self, action: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Return what `action` returns; where the file cannot be used, `default`."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self.path)
                return action(self._connection)
            except (sqlite3.OperationalError, OSError) as error:
                # A full disk, a missing permission, another process that writes too long.
                _log_once(f"Answers are not kept: {self.path} cannot be used ({error}).")
            except sqlite3.DatabaseError as error:
                self._close()
                self._set_aside(error)
        return default

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"{self.path.stem}-damaged{self.path.suffix}")
        try:
            self.path.replace(aside)
            for ending in ("-wal", "-shm"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
        except OSError as problem:
            _log_once(f"{self.path} is damaged ({error}), and cannot be renamed ({problem}).")
            return
        log.warning(
            "%s was damaged (%s). It is now %s; answers are kept in a new file.",
            self.path,
            error,
            aside.name,
        )


def answers_path() -> Path:
    """Return the path of the file: for a pack in custom_nodes, in ComfyUI's user folder."""
    if PACK.parent.name == "custom_nodes":
        return PACK.parents[1] / "user" / "image-refinery" / FILE_NAME
    import platformdirs

    return Path(platformdirs.user_data_dir("image-refinery", appauthor=False)) / FILE_NAME


@contextmanager
def open_answers(
    path: Path | None = None, *, config: Path | None = None
) -> Iterator[KeptAnswers | None]:
    """Yield the kept answers; None if image-refinery.toml has `keep_answers = false`.

    Args:
        path: of the file; None: `answers_path()`.
        config: path of image-refinery.toml; None: `llm.servers.config_path()`.

    Raises:
        ServerConfigError: image-refinery.toml cannot be read.
    """
    if not keeps_answers(config):
        yield None
        return
    with closing(KeptAnswers(path or answers_path())) as answers:
        yield answers


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        # Readers and a writer at a time; after a power cut the last answers may be missing, but the
        # file is not damaged.
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Set the journal's mode; wait for another process that is doing it, which SQLite does not."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
            time.sleep(_POLL_S)


def _size(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file that are in use."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _log_once(line: str) -> None:
    if line not in _logged:
        _logged.add(line)
        log.warning("%s", line)
