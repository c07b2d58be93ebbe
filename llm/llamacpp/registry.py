"""Load models on demand, one worker process each, and unload them after their keep_alive."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from ..errors import Cancelled
from ..http import POLL_S, CancelCheck
from .library import Model as LocalModel
from .process import LoadOptions, Worker

log = logging.getLogger(__name__)

MAX_MODELS = 3
"""The most models loaded at a time, as in Ollama."""
DEFAULT_KEEP_ALIVE_S = 300.0


class LoadTimeout(Exception):
    """A model took too long to load; its process has ended."""


@dataclass
class _Slot:
    """A model that is loaded, loading or unloading. Guarded by the registry's condition."""

    model: LocalModel
    options: LoadOptions
    worker: Worker
    keep_alive_s: float
    requests: int = 1
    ready: bool = False
    stopping: bool = False
    unload_asked: bool = False
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def due_s(self) -> float:
        """When to unload, on the monotonic clock; `math.inf` while it is busy."""
        if self.requests or self.stopping:
            return math.inf
        return self.idle_since + (0.0 if self.unload_asked else self.keep_alive_s)

    def can_serve(self, model: LocalModel, options: LoadOptions) -> bool:
        """Whether this process can serve a request, so that no new one is needed."""
        same = self.model.digest == model.digest and self.options.covers(options)
        return same and self.worker.usable and not self.unload_asked

    @property
    def has_room(self) -> bool:
        """Whether it can take another request now; while it loads, it has only the first."""
        return self.ready and not self.stopping and self.requests < self.options.num_parallel


class Registry:
    """Loads models when they are needed; each has one process and `num_parallel` requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._slots: dict[str, _Slot] = {}
        self._closed = False
        self._keeper = threading.Thread(target=self._keep, name="llama.cpp keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """End every worker process, even a busy one, and wait for that; safe to call twice."""
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

    def loaded(self) -> list[tuple[LocalModel, LoadOptions, Worker]]:
        """Return every model whose process is running, including models that are still loading."""
        with self._changed:
            slots = [slot for slot in self._slots.values() if slot.worker.alive]
            return [(slot.model, slot.options, slot.worker) for slot in slots]

    def unload(self, name: str, limit_s: float, cancelled: CancelCheck | None) -> bool:
        """Unload a model as soon as it is idle; return False if that takes longer than `limit_s`.

        Raises:
            Cancelled: while waiting; the model is still unloaded later.
        """
        deadline = time.monotonic() + limit_s
        with self._changed:
            slot = self._slots.get(name)
            if slot is None:
                return True
            slot.unload_asked = True
            self._changed.notify_all()
            # Compare slots, not names: another request may load the model again.
            while self._slots.get(name) is slot:
                _check(cancelled)
                if time.monotonic() > deadline:
                    return False
                self._changed.wait(POLL_S)
        return True

    @contextlib.contextmanager
    def lease(
        self,
        model: LocalModel,
        options: LoadOptions,
        keep_alive_s: float | None,
        limit_s: float,
        cancelled: CancelCheck | None,
    ) -> Generator[Worker]:
        """Reserve room for one request in the loaded model; load it first if necessary.

        Args:
            keep_alive_s: seconds to keep it loaded afterwards; None: as before, else 300.
            limit_s: how many seconds a load may take.

        Raises:
            Cancelled: while waiting or loading; this ends a load.
            LoadTimeout: the load took longer than `limit_s`, and was ended.
            WorkerEnded: the load failed; the message is llama.cpp's reason.
            OSError: the process could not be started.
        """
        slot = self._acquire(model, options, keep_alive_s, cancelled)
        started = time.monotonic()
        try:
            if not slot.ready:
                while not slot.worker.is_ready(POLL_S):
                    _check(cancelled)
                    if time.monotonic() - started > limit_s:
                        raise LoadTimeout
                slot.ready = True
                log.info("Loaded %s in %.1f s.", model.name, time.monotonic() - started)
            elif slot.requests == 1:
                slot.worker.forget_log()
            yield slot.worker
        finally:
            self._release(slot)

    def abandon(self, worker: Worker) -> None:
        """End a process whose request nobody waits for any more, unless it has others too."""
        with self._changed:
            for slot in self._slots.values():
                if slot.worker is worker and slot.requests == 1:
                    worker.kill()

    def _acquire(
        self,
        model: LocalModel,
        options: LoadOptions,
        keep_alive_s: float | None,
        cancelled: CancelCheck | None,
    ) -> _Slot:
        with self._changed:
            while not self._closed:
                _check(cancelled)
                slot = self._slots.get(model.name)
                if slot is None and len(self._slots) < MAX_MODELS:
                    keep_alive_s = DEFAULT_KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
                    slot = _Slot(model, options, Worker(model, options), keep_alive_s)
                    self._slots[model.name] = slot
                    return slot
                if slot is None:
                    if self._evict_one():
                        continue
                elif slot.has_room and slot.can_serve(model, options):
                    slot.requests += 1
                    if keep_alive_s is not None:
                        slot.keep_alive_s = keep_alive_s
                    return slot
                elif not slot.requests and not slot.stopping:
                    self._stop(slot)
                    continue
                self._changed.wait(POLL_S)
        raise Cancelled  # the program ends

    def _release(self, slot: _Slot) -> None:
        with self._changed:
            slot.requests -= 1
            slot.idle_since = time.monotonic()
            if not slot.stopping and not (slot.ready and slot.worker.usable):
                self._stop(slot)
            self._changed.notify_all()

    def _evict_one(self) -> bool:
        idle = [slot for slot in self._slots.values() if not slot.requests and not slot.stopping]
        if idle:
            self._stop(min(idle, key=lambda slot: slot.idle_since))
        return bool(idle)

    def _stop(self, slot: _Slot) -> None:
        """End the process and wait for that; the condition is released during the wait."""
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
        """Unload models that are due; sleep until the next is due, or until something changes."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due = [slot for slot in self._slots.values() if slot.due_s <= now]
                if due:
                    self._stop(due[0])
                    continue
                next_due = min((slot.due_s for slot in self._slots.values()), default=math.inf)
                self._changed.wait(min(next_due - now, threading.TIMEOUT_MAX))


def _check(cancelled: CancelCheck | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled
