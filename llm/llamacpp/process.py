"""Start, watch and end the worker process that runs one model."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import threading
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, cast

from ..servers import EMBEDDED, Server
from .library import Model as LocalModel

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
    """The process ended, during the load or later; the message is llama.cpp's reason."""


@dataclass(frozen=True)
class LoadOptions:
    """The options of a load; changing one of them reloads the model.

    Attributes:
        num_ctx: context in tokens.
        num_gpu: layers on the GPU; None: as many as fit.
        num_batch: tokens processed together; None: llama.cpp's default.
        num_thread: CPU threads; None: llama.cpp's default, one per physical core.
        use_mmap: whether the weights are mapped instead of read.
        num_parallel: requests that it answers at a time; each has num_ctx tokens.
    """

    num_ctx: int
    num_gpu: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    use_mmap: bool = True
    num_parallel: int = 1

    def covers(self, other: LoadOptions) -> bool:
        """Return whether a model with these options can serve one that asks for the others.

        >>> LoadOptions(4096, num_parallel=4).covers(LoadOptions(4096, num_parallel=2))
        True
        """
        same = self == replace(other, num_parallel=self.num_parallel)
        return same and self.num_parallel >= other.num_parallel


class Worker:
    """A worker process; the constructor starts it without waiting for the model."""

    def __init__(self, model: LocalModel, options: LoadOptions) -> None:
        self.options = options
        self._key = secrets.token_urlsafe(32)
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._buffers: dict[tuple[str, str, str], float] = {}
        self._projector_device = "CPU"
        self._url = ""
        self._known = threading.Event()
        self._killed = False
        self._process = self._start()
        settings = {
            **asdict(options),
            "alias": model.name,
            "model": os.fspath(model.path),
            "mmproj": os.fspath(model.mmproj) if model.mmproj else None,
            "api_key": self._key,
        }
        # A worker that died immediately is reported by is_ready, with its reason.
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
        """Whether it can still answer; a killed process is alive for a moment."""
        return self.alive and not self._killed

    @property
    def memory(self) -> tuple[int, int]:
        """Total bytes and bytes on GPUs, as llama.cpp reported them; (0, 0) before that."""
        sizes = [(device, mib) for (_, device, _), mib in list(self._buffers.items())]
        total = sum(mib for _, mib in sizes)
        on_gpu = sum(mib for device, mib in sizes if not _is_host(device))
        return round(total * _MIB), round(on_gpu * _MIB)

    def is_ready(self, wait_s: float) -> bool:
        """Wait up to `wait_s` seconds for the load; return whether the model is loaded.

        Raises:
            WorkerEnded: the load failed; the message is llama.cpp's reason.
        """
        if not self._known.wait(wait_s):
            return False
        if self._url:
            return True
        self.wait_until_gone()
        raise WorkerEnded(self._reason())

    def forget_log(self) -> None:
        """Clear the log: an error of an earlier request does not explain a later crash."""
        self._log.clear()

    def kill(self) -> None:
        """End the process immediately; nothing in it needs saving."""
        self._killed = True
        self._process.kill()

    def wait_until_gone(self) -> None:
        """Block until the process has ended, its log is read and its pipes are closed."""
        self._process.wait()
        for reader in self._readers:
            reader.join()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def end_reason(self) -> str:
        """Return in a few words why the process ended; end it if it is still running."""
        try:
            # A crash closes the connection a moment before the process is gone.
            self._process.wait(_DYING_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.wait_until_gone()
        return f"llama.cpp has stopped: {self._reason()}"

    @property
    def server(self) -> Server:
        """The address and key of its HTTP API, once it is ready."""
        return Server(name=EMBEDDED, kind=EMBEDDED, url=self._url, api_key=self._key)

    def _read_stdout(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                # Ignore other output.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._url = str(json.loads(line)["listening"])
                    self._known.set()
        self._known.set()

    def _read_stderr(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                self._log.append(line)
                log.debug("%s", line)
                if not self._url:
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


def _environment() -> dict[str, str]:
    return {
        # By default OpenMP's threads spin while they wait for each other. With another program on
        # the same cores, two threads were ten times slower than one (measured: 4 and 75 tokens/s).
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
