"""The watcher of a run: it follows the progress and can cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..llm.backend import Message, Think
    from ..llm.http import Json
    from .job import Result


class Sent(NamedTuple):
    """One request as it is sent, without the server's address and key.

    Attributes:
        server: its name.
        messages: with their images.
        options: by Ollama's names, without those that the server does not support.
        think: None: not sent.
        format: None: not sent.
    """

    server: str
    model: str
    messages: Sequence[Message]
    options: Mapping[str, Any]
    think: Think | None = None
    format: str | Json | None = None


class Watcher:
    """Receives the events of a run, and can stop it. The methods do nothing unless overridden.

    With `StageOptions.parallel` above 1, several threads call them.
    """

    def cancelled(self) -> bool:
        """Return True to stop the run; polled at least every 0.1 s."""
        return False

    def stage(self, title: str, model: str, count: int) -> None:
        """Called when a stage begins: "describe", "rewrite" or "process", with `count` requests."""

    def loading(self, model: str) -> None:
        """Called before the server loads a model."""

    def sent(self, index: int, request: Sent) -> None:
        """Called before request `index` of the stage is sent; again if it is sent changed."""

    def token(self, index: int, piece: str) -> None:
        """Called for each chunk of the answer to request `index` of the stage."""

    def finished(self, index: int, result: Result) -> None:
        """Called when request `index` of the stage has ended."""

    def waiting(self, reason: str, seconds: float) -> None:
        """Called before a retry: a request failed, and is sent again after `seconds`."""

    def kept(self, title: str, count: int, requests: int) -> None:
        """Called when a stage has ended of which `count` answers were kept from earlier runs."""
        self.note(f"{count} of {requests} answers ({title}) were kept from earlier requests.")

    def note(self, text: str) -> None:
        """Called with one sentence about the whole run for its user."""
