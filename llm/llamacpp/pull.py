"""Fetch the models that are known here from the model hub into the user's folder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .library import LATEST, models_folder

if TYPE_CHECKING:
    import requests

ENDPOINT_VARIABLE = "HF_ENDPOINT"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_ENDPOINT = "https://huggingface.co"
_TIMEOUT_S = (10, 60)  # connect, and silence between two pieces
_ATTEMPTS = 4  # a broken download goes on where it stopped
_PIECE = 1 << 14  # what is lost when a connection breaks, at most
_HASHED_AT_ONCE = 1 << 20
_REPORT_EVERY_S = 0.1


class PullError(Exception):
    """The model could not be fetched; the message says why and what to do."""


class NotPullable(PullError):
    """The name is not one that can be fetched."""


@dataclass(frozen=True)
class Source:
    """Where a model lies on the hub; the projector first, so that a half-fetched vision model does
    not pass for a text model."""

    repository: str
    files: tuple[str, ...]


PULLABLE = {
    "smolvlm:256m": Source(
        "ggml-org/SmolVLM-256M-Instruct-GGUF",
        ("mmproj-SmolVLM-256M-Instruct-Q8_0.gguf", "SmolVLM-256M-Instruct-Q8_0.gguf"),
    ),
    "smolvlm:500m": Source(
        "ggml-org/SmolVLM-500M-Instruct-GGUF",
        ("mmproj-SmolVLM-500M-Instruct-Q8_0.gguf", "SmolVLM-500M-Instruct-Q8_0.gguf"),
    ),
    "smolvlm2:2.2b": Source(
        "ggml-org/SmolVLM2-2.2B-Instruct-GGUF",
        ("mmproj-SmolVLM2-2.2B-Instruct-Q8_0.gguf", "SmolVLM2-2.2B-Instruct-Q4_K_M.gguf"),
    ),
    "qwen2.5:1.5b": Source(
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF", ("qwen2.5-1.5b-instruct-q4_k_m.gguf",)
    ),
}


@dataclass(frozen=True)
class PullStatus:
    """One line of Ollama's pull.

    Attributes:
        status: Ollama's text.
        digest: "sha256:..." of the file that is fetched; "" where the line is about no file.
        total: bytes of that file.
        completed: bytes that are here.
    """

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


def pull(
    name: str,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """Fetch a model and return its full name.

    Args:
        name: one of `PULLABLE`, or such a name without its tag ("smolvlm").
        folder: where to; None: `models_folder()`.
        progress: called with (bytes here, bytes in all) of the file that is fetched; what it raises
            stops the fetching, which the next call takes up again.

    Raises:
        NotPullable: the name is unknown.
        PullError: no network, a file that differs from the hub's, or no room.
    """
    for status in pull_steps(name, folder=folder):
        if progress and status.total:
            progress(status.completed, status.total)
    return full_name(name)


def full_name(name: str) -> str:
    """Return the name in `PULLABLE` that is meant.

    >>> full_name("SmolVLM"), full_name("smolvlm:latest"), full_name("smolvlm:500m")
    ('smolvlm:256m', 'smolvlm:256m', 'smolvlm:500m')

    Raises:
        NotPullable: there is none.
    """
    wanted = name.strip().lower()
    wanted = LATEST.get(wanted.removesuffix(":latest"), wanted)
    if wanted not in PULLABLE:
        known = ", ".join(PULLABLE)
        raise NotPullable(f"The embedded engine cannot fetch '{name}', only these: {known}.")
    return wanted


def pull_steps(name: str, *, folder: Path | None = None) -> Generator[PullStatus, None, None]:
    """Fetch a model and yield what `ollama pull` would say; closing the generator stops it.

    Raises:
        as `pull` does.
    """
    import requests

    yield PullStatus("pulling manifest")
    full = full_name(name)
    source = PULLABLE[full]
    folder = folder or models_folder()
    try:
        with requests.Session() as session:
            facts = _file_facts(session, source)
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.files:
                yield from _fetch(session, source, file, folder, *facts[file])
    except requests.RequestException as error:
        raise PullError(_network_sentence(full, source, folder, _short(error))) from error
    except OSError as error:
        raise PullError(f"Cannot write '{full}' into {folder}: {error}.") from error
    yield PullStatus("writing manifest")
    yield PullStatus("success")


def _endpoint() -> str:
    return (os.environ.get(ENDPOINT_VARIABLE, "").strip() or _ENDPOINT).rstrip("/")


def _network_sentence(name: str, source: Source, folder: Path, reason: str) -> str:
    files = " and ".join(source.files)
    return (
        f"Cannot fetch '{name}' from {_endpoint()} ({reason}): check the network, or put {files} "
        f"of {source.repository} into {folder} by hand."
    )


def _short(error: Exception) -> str:
    """Return the innermost cause; the outer layers repeat addresses."""
    cause: Any = error
    while getattr(cause, "reason", None) or getattr(cause, "args", ()):
        inner = getattr(cause, "reason", None) or cause.args[0]
        if not isinstance(inner, Exception):
            break
        cause = inner
    return " ".join(str(cause).split())[:200]


def _file_facts(session: requests.Session, source: Source) -> dict[str, tuple[int, str]]:
    """Return size in bytes and SHA-256 (empty where the hub gives none) of the source's files."""
    import requests

    if os.environ.get(OFFLINE_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on"):
        raise requests.ConnectionError(f"{OFFLINE_VARIABLE} is set")
    url = f"{_endpoint()}/api/models/{source.repository}/tree/main"
    response = session.get(url, timeout=_TIMEOUT_S)
    response.raise_for_status()
    try:
        entries: dict[str, Any] = {entry["path"]: entry for entry in response.json()}
        hashes: dict[str, Any] = {file: entries[file].get("lfs") or {} for file in source.files}
        return {
            file: (int(entries[file]["size"]), str(hashes[file].get("oid", "")))
            for file in source.files
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PullError(
            f"{url} does not list {' and '.join(source.files)} as expected; is {ENDPOINT_VARIABLE} "
            "set to a mirror that does not work?"
        ) from error


def _fetch(
    session: requests.Session, source: Source, file: str, folder: Path, size: int, sha256: str
) -> Iterator[PullStatus]:
    target, part = folder / file, folder / f"{file}.part"
    label = sha256 or hashlib.sha256(file.encode()).hexdigest()

    def status(completed: int) -> PullStatus:
        return PullStatus(f"pulling {label[:12]}", f"sha256:{label}", size, completed)

    if target.is_file() and target.stat().st_size == size:
        yield status(size)
        return
    url = f"{_endpoint()}/{source.repository}/resolve/main/{file}"
    for completed in _download(session, url, part, size):
        yield status(completed)
    yield PullStatus("verifying sha256 digest")
    if part.stat().st_size != size or (sha256 and _sha256(part) != sha256):
        part.unlink()
        raise PullError(f"{file} came damaged from {_endpoint()} and was deleted; pull again.")
    os.replace(part, target)


def _download(session: requests.Session, url: str, part: Path, size: int) -> Iterator[int]:
    """Fetch into `part`, going on where an earlier try stopped; yield the bytes that are here."""
    import requests

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            yield from _download_once(session, url, part, size)
            return
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
            if attempt == _ATTEMPTS:
                raise


def _download_once(session: requests.Session, url: str, part: Path, size: int) -> Iterator[int]:
    here = part.stat().st_size if part.is_file() else 0
    if here > size:
        part.unlink()
        here = 0
    yield here
    if here == size:
        return
    headers = {"Range": f"bytes={here}-", "Accept-Encoding": "identity"}
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        resumed = response.status_code == 206  # else the server sends all of it again
        here = here if resumed else 0
        reported = 0.0
        with part.open("ab" if resumed else "wb") as file:
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                here += len(piece)
                if time.monotonic() - reported >= _REPORT_EVERY_S or here >= size:
                    reported = time.monotonic()
                    yield here


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
