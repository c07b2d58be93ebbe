"""Unload the models that a language-model server holds."""

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

    Failure is logged as a warning: the result of the run is not lost for it. A server that is busy,
    or breaks the connection, is asked again. One that refuses connections holds nothing.

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
    """Unload `model` in a thread, so that a cancelled run returns immediately. Bounded in time."""
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
    """Wait for the unloads of cancelled runs: a new run must not load what they unload.

    They are bounded in time; `cancelled` ends the wait, not the unloads.
    """
    with _lock:
        threads = list(_pending)
    for thread in threads:
        while thread.is_alive() and not (cancelled is not None and cancelled()):
            thread.join(timeout=POLL_S)
