"""The names of the models of all servers for a list on a page, without making the page wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ...llm.errors import LLMError

if TYPE_CHECKING:
    from ...llm.backend import Backend, Model

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""A list younger than this is given as it is."""
WAIT_S = 0.25
"""The longest that `names` waits for the server."""
REST_S = 5.0
"""After a failure, nobody waits for this long, while the server is asked in the background."""


START_DELAY_S = 0.3
"""Before the first look, which ComfyUI causes while it loads packs. What the look imports cost the
loading thread 21 of 55 ms of CPU (2 cores, ComfyUI 0.33.0)."""


class Source(NamedTuple):
    """A server to list: what its models are called after " @ ", "" for the default, and how."""

    name: str
    open: Callable[[], Backend]


class ModelListCache:
    """Remembers the models of servers, and lists them again in the background when asked.

    ComfyUI builds the description of a node on the thread that serves the page, for every request
    and every queued prompt, so a server that is off or hangs must cost next to nothing there. The
    first look of the process is never waited for, and after a wait in vain nobody waits until the
    server has answered: a list that comes then is shown when the page asks once more.
    """

    def __init__(self, sources: Callable[[], Iterable[Source]]) -> None:
        self._sources = sources
        self._lock = threading.Lock()
        self._models: dict[str, list[Model]] = {}
        self._looked_at = float("-inf")
        self._failed_at = float("-inf")
        self._hangs = False
        self._look: threading.Thread | None = None
        self._looks = 0
        self._listed = threading.Event()

    def names(self, capability: str) -> list[str]:
        """Return model names: those with `capability`, then those not known, then the others.

        Those of the default server come first, then "model @ server" of every other server.

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
        return [
            f"{model.name} @ {server}" if server else model.name
            for server, models in list(self._models.items())
            for model in sorted(models, key=lambda m: _rank(m, capability))
        ]

    def server_names(self) -> list[str]:
        """Return the names of the servers that had models at the last look, but the default."""
        return [name for name, models in list(self._models.items()) if name and models]

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
            seen: set[str] = set()
            for source in self._sources():
                self._list(source, seen, listed)
        except LLMError as error:
            log.debug("The servers cannot be listed: %s", error)
        finally:
            listed.set()

    def _list(self, source: Source, seen: set[str], listed: threading.Event) -> None:
        """List one server, unless it has another name as well; one that is off has no models."""
        try:
            with closing(source.open()) as backend:
                if backend.server.url in seen:
                    return
                seen.add(backend.server.url)
                models = backend.list()
                # What was found out before is kept while the rest is asked for again.
                before = self._models.get(source.name, ())
                known = {(model.name, model.digest): model.capabilities for model in before}
                self._models[source.name] = [
                    replace(model, capabilities=known.get((model.name, model.digest)))
                    if model.capabilities is None
                    else model
                    for model in models
                ]
                if not source.name:
                    self._looked_at = time.monotonic()
                    self._failed_at, self._hangs = float("-inf"), False
                    listed.set()
                # Ollama before 0.30 tells capabilities one model at a time: once per digest.
                self._models[source.name] = [backend.show(model) for model in models]
        except LLMError as error:
            log.debug("The models of %s cannot be listed: %s", source.name or "default", error)
            if not source.name:
                self._failed_at = time.monotonic()
            else:
                self._models.pop(source.name, None)


def _rank(model: Model, capability: str) -> tuple[int, str]:
    if model.capabilities is None:
        return 1, model.name.lower()
    return (0 if capability in model.capabilities else 2), model.name.lower()
