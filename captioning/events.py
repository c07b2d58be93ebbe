"""The watcher of a run: it follows the progress and can cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Result


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

    def token(self, index: int, piece: str) -> None:
        """Called for each chunk of the answer to request `index` of the stage."""

    def finished(self, index: int, result: Result) -> None:
        """Called when request `index` of the stage has ended."""

    def waiting(self, reason: str, seconds: float) -> None:
        """Called before a retry: a request failed, and is sent again after `seconds`."""

    def note(self, text: str) -> None:
        """Called with one sentence about the whole run for its user."""
