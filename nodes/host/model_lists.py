"""The names of installed models for a list on a page, without ever making the page wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ...llm.errors import LLMError

if TYPE_CHECKING:
    from ...llm.backend import Backend, Model

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""A list younger than this is given as it is."""
WAIT_S = 0.25
"""The longest that `names` waits for the server."""
REST_S = 5.0
"""After a failure nobody waits for this long; the look itself goes on behind."""


START_DELAY_S = 0.3
"""Before the first look, which ComfyUI causes while it loads packs. What the look imports cost the
loading thread 21 of 55 ms of CPU (2 cores, ComfyUI 0.33.0)."""


class ModelListCache:
    """Remembers what a server has; looks again in the background when somebody asks.

    ComfyUI builds the description of a node on the thread that serves the page, for every request
    and every queued prompt, so a server that is off or hangs must cost next to nothing there. The
    first look of the process is never waited for, and after a wait in vain nobody waits until the
    server has answered: a list that comes then is shown when the page asks once more.
    """

    def __init__(self, open_backend: Callable[[], Backend]) -> None:
        self._open = open_backend
        self._lock = threading.Lock()
        self._models: list[Model] = []
        self._looked_at = float("-inf")
        self._failed_at = float("-inf")
        self._hangs = False
        self._look: threading.Thread | None = None
        self._looks = 0
        self._listed = threading.Event()

    def names(self, capability: str) -> list[str]:
        """Return model names: those with `capability`, then those not known, then the others.

        Args:
            capability: "vision" or "completion", in Ollama's words.
        """
        now = time.monotonic()
        if now - self._looked_at > FRESH_S:
            listed = self._start_look()
            # ComfyUI asks first while it loads the pack, long before there is a page to fill.
            rests = self._hangs or now - self._failed_at <= REST_S
            if self._looks > 1 and not rests:
                self._hangs = not listed.wait(WAIT_S)
        return [model.name for model in sorted(self._models, key=lambda m: _rank(m, capability))]

    def _start_look(self) -> threading.Event:
        with self._lock:
            if self._look is None or not self._look.is_alive():
                self._looks += 1
                self._listed = threading.Event()
                self._look = threading.Thread(
                    target=self._run,
                    args=(self._listed, START_DELAY_S if self._looks == 1 else 0.0),
                    name="image-refinery-models",
                    daemon=True,
                )
                self._look.start()
            return self._listed

    def _run(self, listed: threading.Event, delay_s: float) -> None:
        time.sleep(delay_s)
        try:
            with closing(self._open()) as backend:
                models = backend.list()
                # What was found out before is kept while the rest is asked for again.
                known = {model.digest: model.capabilities for model in self._models}
                self._models = [
                    replace(model, capabilities=known.get(model.digest))
                    if model.capabilities is None
                    else model
                    for model in models
                ]
                self._looked_at = time.monotonic()
                self._failed_at, self._hangs = float("-inf"), False
                listed.set()
                # Servers before 0.30 tell capabilities one model at a time: once per digest.
                self._models = [backend.show(model) for model in models]
        except LLMError as error:
            self._failed_at = time.monotonic()
            log.debug("The list of models could not be read: %s", error)
        finally:
            listed.set()


def _rank(model: Model, capability: str) -> tuple[int, str]:
    if model.capabilities is None:
        return 1, model.name.lower()
    return (0 if capability in model.capabilities else 2), model.name.lower()
