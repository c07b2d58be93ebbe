"""One loaded model seen from outside: the worker process, its memory, and its answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from .library import Model
from .wire import ApiError, LoadOptions

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("worker.py")
_MIB = 1 << 20
_LOG_LINES = 200
_DYING_S = 1.0
_SIGKILL = 9  # not in the signal module on Windows, where no exit status is -9
_BUFFER = re.compile(r"(\w+):\s+(\S+)\s+(\w+) buffer size =\s+([\d.]+) MiB")
_PROJECTOR_DEVICE = re.compile(r"CLIP using (\S+) backend")
_PROJECTOR_SIZE = re.compile(r"load_hparams: model size:\s+([\d.]+) MiB")
# The most telling kind of line first.
_REASONS = (
    re.compile(r"(GGML_ASSERT.*)"),
    re.compile(r"error loading model: (.*)"),
    re.compile(r"^[\d.]+ E (?:\w+\s+)?\S+: (.*)"),
)


class WorkerEnded(Exception):
    """The process ended: killed by us, or by a crash. The message says how."""


class LoadFailed(Exception):
    """llama.cpp could not load the model; the message is its reason."""


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; `final` is llama.cpp's last word on it (finish_reason, timings)."""

    text: str = ""
    thinking: str = ""
    final: dict[str, Any] | None = None


class Worker:
    """A worker process. `start` returns at once; `wait_until_ready` waits for the model."""

    def __init__(self, model: Model, num_ctx: int, options: LoadOptions) -> None:
        self._key = secrets.token_urlsafe(32)
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._buffers: dict[tuple[str, str, str], float] = {}
        self._projector_device = "CPU"
        self._address = ""
        self._known = threading.Event()
        self._killed = False
        self._process = self._start()
        settings = {
            **asdict(options),
            "model": os.fspath(model.path),
            "mmproj": os.fspath(model.mmproj) if model.mmproj else None,
            "num_ctx": num_ctx,
            "api_key": self._key,
        }
        # A worker that died at once is reported by wait_until_ready, with its reason.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(json.dumps(settings).encode() + b"\n")
            self._stdin.flush()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, os.fspath(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._stdin = cast("IO[bytes]", process.stdin)
        self._readers = [
            threading.Thread(target=target, args=(stream,), daemon=True, name="llama.cpp log")
            for target, stream in (
                (self._read_stdout, process.stdout),
                (self._read_stderr, process.stderr),
            )
        ]
        for reader in self._readers:
            reader.start()
        return process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def usable(self) -> bool:
        """Whether it can still answer; a killed process lives on for a moment."""
        return self.alive and not self._killed

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes in all and bytes on GPUs, as llama.cpp reported them; (0, 0) before it did."""
        sizes = [(device, mib) for (_, device, _), mib in list(self._buffers.items())]
        total = sum(mib for _, mib in sizes)
        on_gpu = sum(mib for device, mib in sizes if not _is_host(device))
        return round(total * _MIB), round(on_gpu * _MIB)

    def wait_until_ready(self) -> None:
        """Block until the model is loaded; `kill` from another thread ends the wait.

        Raises:
            LoadFailed: with llama.cpp's reason.
        """
        self._known.wait()
        if self._address:
            return
        self._process.wait()
        for reader in self._readers:
            reader.join()
        raise LoadFailed(self._reason())

    def kill(self) -> None:
        """End the process at once; nothing in it needs saving."""
        self._killed = True
        self._process.kill()

    def wait_until_gone(self) -> None:
        """Block until the process has ended and its pipes are closed."""
        self._process.wait()
        for reader in self._readers:
            reader.join()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def end_reason(self) -> str:
        """Return one sentence on why the process broke off; ends it where it still runs."""
        try:
            # A crash closes the connection a moment before the process is gone.
            self._process.wait(_DYING_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        return f"llama.cpp has stopped (exit status {self._process.returncode}): {self._reason()}"

    def open_chat(self, body: dict[str, Any]) -> Answer:
        """Send a chat request in llama.cpp's form.

        Raises:
            WorkerEnded: the process is gone.
        """
        address = urlsplit(self._address)
        connection = http.client.HTTPConnection(address.hostname or "", address.port or 0)
        try:
            connection.connect()
            return Answer(self, connection, self._key, body)
        except OSError as error:
            connection.close()
            raise WorkerEnded(str(error)) from error

    def _read_stdout(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                # Whatever else is printed is not ours.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._address = str(json.loads(line)["listening"])
                    self._known.set()
        self._known.set()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                self._log.append(line)
                log.debug("%s", line)
                if not self._address:
                    self._note_memory(line)

    def _note_memory(self, line: str) -> None:
        if match := _BUFFER.search(line):
            self._buffers[match[1], match[2], match[3]] = float(match[4])
        elif match := _PROJECTOR_DEVICE.search(line):
            self._projector_device = match[1]
        elif match := _PROJECTOR_SIZE.search(line):
            self._buffers["projector", self._projector_device, "model"] = float(match[1])

    def _reason(self) -> str:
        if self._process.returncode == -_SIGKILL and not self._killed:
            return "the system killed it, most likely because it was out of memory"
        lines = list(self._log)
        for pattern in _REASONS:
            found = next((match for match in map(pattern.search, lines) if match), None)
            if found:
                return found[1].strip()
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"exit status {self._process.returncode}, {said}"


class Answer:
    """The answer to one chat request; iterate over it, and close it."""

    def __init__(
        self,
        worker: Worker,
        connection: http.client.HTTPConnection,
        key: str,
        body: dict[str, Any],
    ) -> None:
        self._worker = worker
        self._connection = connection
        self._socket = cast("socket.socket", connection.sock)
        self._key = key
        self._body = body

    def stop(self) -> None:
        """Make llama.cpp stop writing this answer; may be called from any thread."""
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the pieces as they come; the first wait covers all work on the prompt.

        Raises:
            ApiError: llama.cpp refused the request.
            WorkerEnded: the connection broke, since the process ended or `stop` was called.
        """
        try:
            yield from self._chunks(self._response())
        except (OSError, http.client.HTTPException) as error:
            raise WorkerEnded(f"the connection to llama.cpp broke: {error}") from error

    def _response(self) -> http.client.HTTPResponse:
        body = json.dumps(self._body).encode()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        response = self._connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise _refusal(response.status, response.read())
        return response

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[Chunk]:
        finish_reason = None
        for line in response:
            if not line.startswith((b"data: ", b"error: ")):
                continue
            payload = line.partition(b": ")[2]
            if payload.strip() == b"[DONE]":
                return
            event = json.loads(payload)
            if line.startswith(b"error: ") or "error" in event:
                raise _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, payload)
            for choice in event["choices"]:
                delta = choice["delta"]
                finish_reason = choice["finish_reason"] or finish_reason
                text, thinking = delta.get("content"), delta.get("reasoning_content")
                if text or thinking:
                    yield Chunk(text or "", thinking or "")
            if "timings" in event and not event["choices"]:
                yield Chunk(final={"finish_reason": finish_reason, **event})
        raise WorkerEnded("the answer broke off")


def _environment() -> dict[str, str]:
    return {
        # OpenMP's threads spin while they wait for each other. With another program on the same
        # cores that made two threads ten times slower than one (measured: 4 and 75 tokens/s).
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        # Without this a crash of llama.cpp starts a debugger, which takes seconds.
        "GGML_NO_BACKTRACE": "1",
    }


def _is_host(device: str) -> bool:
    """
    >>> [_is_host(name) for name in ("CPU", "CPU_Mapped", "CUDA_Host", "CUDA0", "MTL0")]
    [True, True, True, False, False]
    """
    return device.startswith("CPU") or device.endswith("_Host")


def _refusal(status: int, payload: bytes) -> ApiError:
    try:
        error = json.loads(payload)
        error = error.get("error", error)
        text, kind, status = error["message"], error.get("type"), int(error.get("code", status))
    except (ValueError, KeyError, AttributeError):
        return ApiError(
            status, payload.decode("utf-8", "replace").strip() or "llama.cpp said nothing"
        )
    if kind == "exceed_context_size_error":
        text = (
            "the prompt is longer than the context length currently available to the model; "
            f"it has {error['n_prompt_tokens']} tokens and num_ctx is {error['n_ctx']}"
        )
    return ApiError(status, text)
