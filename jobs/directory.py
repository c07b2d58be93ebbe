"""The directory of a job: its lock, and a manifest of what its answers depend on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout

from .._version import __version__
from ..files.whole import written_whole
from .rows import has_rows

MANIFEST = "manifest.json"
_LOCK = "lock"
_PLACES = "outputs.json"
_FORMAT = 1


class JobError(Exception):
    """A job cannot be run in its directory as it was asked for."""

    code = "R511"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a job's directory; make it where it is missing.

    Raises:
        JobError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise JobError(
            f"Another process is working on the job in {folder}. Wait until it has ended, or name "
            "another directory."
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"The job directory {folder} cannot be written ({reason}).") from error
    try:
        yield
    finally:
        lock.release()


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """Return the fingerprint in a job's manifest; {} for a new job.

    Raises:
        JobError: the manifest cannot be read.
    """
    return _read(folder)[1] if (folder / MANIFEST).exists() else {}


def _read(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / MANIFEST
    try:
        found: Any = json.loads(path.read_text("utf-8"))
        return str(found["version"]), cast("dict[str, Any]", found["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{path} cannot be read ({error}). Name another directory.") from error


def check_manifest(folder: Path, fingerprint: Mapping[str, Any]) -> str:
    """Write the manifest of a job without rows, or compare it; return a warning, or "".

    Args:
        fingerprint: what a job's answers depend on, as JSON values by their names.

    Raises:
        JobError: the job was begun with other settings; the message names the first difference.
    """
    path = folder / MANIFEST
    wanted: dict[str, Any] = json.loads(json.dumps(dict(fingerprint)))
    if not path.exists() or not has_rows(folder):
        content = {"format": _FORMAT, "version": __version__, "fingerprint": wanted}
        with written_whole(path) as file:
            json.dump(content, file, indent=2)
        return ""
    version, before = _read(folder)
    for name in sorted({*before, *wanted}):
        if before.get(name) != wanted.get(name):
            raise JobError(
                f"The job in {folder} was begun with {name} {_shown(before.get(name))}, and now it "
                f"is {_shown(wanted.get(name))}. Use the same settings, or name another directory."
            )
    if version != __version__:
        return f"The job was begun with version {version} of the pack, and this is {__version__}."
    return ""


def own_places(folder: Path) -> set[str]:
    """Return the files and folders that a job has written, and so may replace."""
    try:
        found: Any = json.loads((folder / _PLACES).read_text("utf-8"))
    except (OSError, ValueError):
        return set()
    return set(cast("list[str]", found))


def add_own_places(folder: Path, places: Iterable[Path]) -> None:
    """Record files and folders that a job is about to write.

    Raises:
        OSError: the record cannot be written.
    """
    before = own_places(folder)
    after = before | {str(place.absolute()) for place in places}
    if after != before:
        with written_whole(folder / _PLACES) as file:
            json.dump(sorted(after), file, indent=2)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
