"""Which models are loaded, for whom, and until when."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import Protocol

from .library import Model
from .process import LoadFailed, Worker
from .wire import (
    NUM_CTX_DEFAULT,
    NUM_CTX_LOWEST_WITH_VISION,
    ApiError,
    LoadOptions,
    parse_keep_alive,
)

log = logging.getLogger(__name__)

MOST_MODELS = 3
"""Loaded at a time, as in Ollama."""
LONGEST_QUEUE = 512
"""Requests that may wait, as in Ollama."""
KEEP_ALIVE_DEFAULT_S = 300.0
_FOREVER = timedelta(days=365 * 292)  # what Ollama's "for ever" comes to: the range of its clock


class ClientGone(Exception):
    """The client closed its connection while its request was worked on."""


class Client(Protocol):
    """Whoever waits for an answer, and may go away."""

    @property
    def gone(self) -> bool:
        """Whether the connection is closed."""
        ...

    def on_gone(self, callback: Callable[[], object] | None) -> None:
        """Have `callback` called when the connection closes, at once if it is; None: nothing."""
        ...


@dataclass(frozen=True)
class Loaded:
    """One line of /api/ps."""

    model: Model
    size: int
    size_vram: int
    expires_at: datetime
    context_length: int
    pid: int


@dataclass
class _Slot:
    """A model in memory, or on its way in or out. Guarded by the engine's condition."""

    model: Model
    num_ctx: int
    options: LoadOptions
    worker: Worker
    keep_alive_s: float
    busy: bool = True
    ready: bool = False
    stopping: bool = False
    unload_asked: bool = False
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> float:
        """When to unload, on the monotonic clock; `math.inf` while busy or for ever."""
        if self.busy or self.stopping:
            return math.inf
        return self.idle_since + (0.0 if self.unload_asked else self.keep_alive_s)

    def line(self) -> Loaded:
        size, size_vram = self.worker.memory
        left = self.keep_alive_s
        if not self.busy:
            left = max(0.0, self.due - time.monotonic())
        lifetime = timedelta(seconds=min(left, _FOREVER.total_seconds()))
        return Loaded(
            model=self.model,
            size=size or self.model.size,  # while it loads, the files are what is known
            size_vram=size_vram,
            expires_at=datetime.now(timezone.utc) + lifetime,
            context_length=self.num_ctx,
            pid=self.worker.pid,
        )


@dataclass(frozen=True)
class Lease:
    """A model for the use of one request."""

    worker: Worker
    load_s: float


class Engine:
    """Loads models on demand, one process each, and one request at a time for each."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        self._waiting = 0
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name="embedded keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """End every worker process, whatever it does, and wait for that; idempotent."""
        with self._changed:
            self._closed = True
            workers = [slot.worker for slot in self._slots.values()]
            for worker in workers:
                worker.kill()
            self._changed.notify_all()
        for worker in workers:
            worker.wait_until_gone()
        self._keeper.join()
        with self._changed:
            self._slots.clear()

    def loaded(self) -> list[Loaded]:
        """Return every model whose process runs, also those that are still loading."""
        with self._changed:
            return [slot.line() for slot in self._slots.values() if slot.worker.alive]

    def unload(self, model: Model) -> None:
        """Have the model unloaded as soon as nobody uses it; returns at once, as Ollama does."""
        with self._changed:
            slot = self._slots.get(model.name)
            if slot:
                slot.unload_asked = True
                self._changed.notify_all()

    @contextlib.contextmanager
    def lease(
        self, model: Model, options: LoadOptions, keep_alive_s: float | None, client: Client
    ) -> Generator[Lease, None, None]:
        """Give the loaded model to one request, loading it first where need be.

        Args:
            keep_alive_s: seconds to keep it afterwards; None: as before, else Ollama's default.

        Raises:
            ClientGone: the client went away while waiting or loading; a load is then ended.
            ApiError: 500 with llama.cpp's reason, 503 when too many requests wait.
        """
        started = time.monotonic()
        slot = self._acquire(model, options, keep_alive_s, client)
        try:
            if not slot.ready:
                self._finish_load(slot, client)
                log.info("Loaded %s in %.1f s.", model.name, time.monotonic() - started)
            yield Lease(slot.worker, time.monotonic() - started)
        finally:
            client.on_gone(None)
            self._release(slot)

    def _acquire(
        self, model: Model, options: LoadOptions, keep_alive_s: float | None, client: Client
    ) -> _Slot:
        num_ctx = effective_num_ctx(model, options)
        client.on_gone(self._notify)
        try:
            with self._changed, self._queued():
                while True:
                    if client.gone:
                        raise ClientGone
                    if self._closed:
                        text = "the embedded engine is closing"
                        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, text)
                    slot = self._slots.get(model.name)
                    if slot is None and len(self._slots) < MOST_MODELS:
                        return self._begin_load(model, num_ctx, options, keep_alive_s)
                    if slot is None:
                        if self._evict_one():
                            continue
                    elif not slot.busy and not slot.stopping:
                        same = (slot.num_ctx, _but_num_ctx(slot.options), slot.model.digest) == (
                            num_ctx,
                            _but_num_ctx(options),
                            model.digest,
                        )
                        if same and slot.worker.usable and not slot.unload_asked:
                            slot.busy = True
                            if keep_alive_s is not None:
                                slot.keep_alive_s = keep_alive_s
                            return slot
                        self._stop(slot)
                        continue
                    self._changed.wait()
        finally:
            client.on_gone(None)

    @contextlib.contextmanager
    def _queued(self) -> Generator[None, None, None]:
        if self._waiting >= LONGEST_QUEUE:
            text = "server busy, please try again.  maximum pending requests exceeded"
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, text)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _begin_load(
        self, model: Model, num_ctx: int, options: LoadOptions, keep_alive_s: float | None
    ) -> _Slot:
        try:
            worker = Worker(model, num_ctx, options)
        except OSError as error:
            text = f"no process could be started for '{model.name}': {error}"
            raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        keep_alive_s = default_keep_alive_s() if keep_alive_s is None else keep_alive_s
        slot = _Slot(model, num_ctx, options, worker, keep_alive_s)
        self._slots[model.name] = slot
        return slot

    def _finish_load(self, slot: _Slot, client: Client) -> None:
        client.on_gone(slot.worker.kill)
        try:
            slot.worker.wait_until_ready()
        except LoadFailed as error:
            if client.gone:
                raise ClientGone from error
            text = f"failed to load model '{slot.model.name}': {error}"
            raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        finally:
            client.on_gone(None)
        slot.ready = True

    def _release(self, slot: _Slot) -> None:
        with self._changed:
            slot.busy = False
            slot.idle_since = time.monotonic()
            if not slot.ready or not slot.worker.usable:
                self._stop(slot)
            self._changed.notify_all()

    def _evict_one(self) -> bool:
        idle = [slot for slot in self._slots.values() if not slot.busy and not slot.stopping]
        if idle:
            self._stop(min(idle, key=lambda slot: slot.idle_since))
        return bool(idle)

    def _stop(self, slot: _Slot) -> None:
        """End the process and wait for it, with the condition held only before and after."""
        slot.stopping = True
        slot.worker.kill()
        self._changed.release()
        try:
            slot.worker.wait_until_gone()
        finally:
            self._changed.acquire()
        if self._slots.get(slot.model.name) is slot:
            del self._slots[slot.model.name]
        self._changed.notify_all()
        if slot.ready:
            log.info("Unloaded %s.", slot.model.name)

    def _keep(self) -> None:
        """Unload what is due; sleeps until then, or until something changes."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due = [slot for slot in self._slots.values() if slot.due <= now]
                if due:
                    self._stop(due[0])
                    continue
                next_due = min((slot.due for slot in self._slots.values()), default=math.inf)
                self._changed.wait(min(next_due - now, threading.TIMEOUT_MAX))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def effective_num_ctx(model: Model, options: LoadOptions) -> int:
    """Return the context in tokens that a request gets: as asked, else `OLLAMA_CONTEXT_LENGTH`,
    else 4096; at least 2048 for a vision model, and never more than the model was trained for."""
    default = os.environ.get("OLLAMA_CONTEXT_LENGTH", "")
    num_ctx = options.num_ctx or (int(default) if default.isdecimal() else 0) or NUM_CTX_DEFAULT
    if model.mmproj:
        num_ctx = max(num_ctx, NUM_CTX_LOWEST_WITH_VISION)
    return min(num_ctx, model.header.context_length or num_ctx)


def default_keep_alive_s() -> float:
    """Return `OLLAMA_KEEP_ALIVE` (also a number without a unit) in seconds, else 300."""
    text = os.environ.get("OLLAMA_KEEP_ALIVE", "").strip()
    with contextlib.suppress(ValueError):
        return parse_keep_alive(int(text)) or 0.0
    try:
        return parse_keep_alive(text) or 0.0 if text else KEEP_ALIVE_DEFAULT_S
    except ApiError:
        return KEEP_ALIVE_DEFAULT_S


def _but_num_ctx(options: LoadOptions) -> tuple[object, ...]:
    return options.num_gpu, options.num_batch, options.num_thread, options.use_mmap
