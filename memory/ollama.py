"""The models that an Ollama server holds."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from ..llm.errors import Cancelled, OllamaError
from ..llm.http import POLL_S, CancelCheck, Timeouts
from ..llm.retry import patiently
from ..llm.servers import EMBEDDED, Server
from ..ollama_client.client import UNLOAD_LIMIT_S, OllamaClient
from .report import Freed, log_freed

log = logging.getLogger(__name__)

_pending: set[threading.Thread] = set()
_lock = threading.Lock()


def unload_ollama(
    client: OllamaClient, model: str, *, cancelled: CancelCheck | None = None
) -> Freed:
    """Unload `model` and see it gone from /api/ps; a server that does not answer holds nothing.

    An unload that does not show within 15 s is logged as a warning: the run's result is not lost
    for it. A server that is busy, or breaks the connection, is asked again.

    Raises:
        Cancelled: `cancelled` said so; the model may still be loaded.
    """
    owner = "the embedded engine" if client.place == EMBEDDED else "Ollama"
    what = f'{owner}\'s model "{model}"'
    try:
        unloaded = patiently(
            lambda: client.unload(model, cancelled=cancelled),
            # One that refuses connections holds nothing, so it is not waited for.
            replace(client.retries, start_s=0.0),
            place=client.place,
            answered=False,
            cancelled=cancelled,
        )
    except Cancelled:
        raise
    except OllamaError as error:
        log.warning("Could not unload %s: %s", what, error)
        return Freed(what)
    if not unloaded.confirmed:
        log.warning(
            "Could not unload %s: the server still lists it after %g s.", what, UNLOAD_LIMIT_S
        )
    return Freed(what, unloaded.vram_bytes)


def unload_behind(server: Server, model: str) -> None:
    """Unload `model` in a thread: a cancelled run returns at once. Bounded in time."""

    def work() -> None:
        try:
            timeouts = Timeouts(connect_s=2.0, quick_s=UNLOAD_LIMIT_S)
            with OllamaClient(server, timeouts) as client:
                log_freed(log, unload_ollama(client, model))
        finally:
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
