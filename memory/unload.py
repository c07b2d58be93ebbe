"""Unload models from a language-model server."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from ..llm.backend import Backend
from ..llm.errors import LLMError
from ..llm.http import POLL_S, CancelCheck
from ..llm.retry import with_retries
from .report import Freed, log_freed

log = logging.getLogger(__name__)

_pending: set[threading.Thread] = set()
_lock = threading.Lock()


def unload_model(backend: Backend, model: str, *, cancelled: CancelCheck | None = None) -> Freed:
    """Unload `model` and wait until the server no longer lists it.

    A failure is logged as a warning and does not fail the run. If the server is busy or the
    connection breaks, this retries. A server that refuses connections has no models loaded.

    Raises:
        Cancelled: `cancelled` returned True; the model may still be loaded.
    """
    owner = backend.server.product or "the server"
    what = f'{owner}\'s model "{model}"'
    try:
        unloaded = with_retries(
            lambda: backend.unload(model, cancelled=cancelled),
            replace(backend.retries, start_s=0.0),
            answered=False,
            cancelled=cancelled,
        )
    except LLMError as error:
        log.warning("Could not unload %s: %s", what, error)
        return Freed(what)
    if not unloaded.possible:
        log.debug("%s stays loaded: the server cannot be asked to unload it.", what)
    elif not unloaded.confirmed:
        log.warning("Could not unload %s: the server still lists it.", what)
    return Freed(what, unloaded.vram_bytes)


def unload_in_background(backend: Backend, model: str) -> None:
    """Unload `model` in a thread, within a limited time, so that a cancel returns immediately."""
    own = backend.copy()

    def work() -> None:
        try:
            log_freed(log, unload_model(own, model))
        finally:
            own.close()
            with _lock:
                _pending.discard(threading.current_thread())

    thread = threading.Thread(target=work, name="image-refinery-unload", daemon=True)
    with _lock:
        _pending.add(thread)
    thread.start()


def finish_pending_unloads(cancelled: CancelCheck | None = None) -> None:
    """Wait for the unloads of cancelled runs, so that they do not unload a new run's models.

    They take a limited time. `cancelled` ends the wait, not the unloads.
    """
    with _lock:
        threads = list(_pending)
    for thread in threads:
        while thread.is_alive() and not (cancelled is not None and cancelled()):
            thread.join(timeout=POLL_S)
