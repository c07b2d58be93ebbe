"""Who watches a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Result


class Watcher:
    """Hears what a run does, and can stop it. The default methods do nothing: override some.

    With `StageOptions.parallel`, several threads call it.
    """

    def cancelled(self) -> bool:
        """Polled at least every 0.1 s; True stops the run."""
        return False

    def stage(self, title: str, model: str, count: int) -> None:
        """A stage begins: "describe", "rewrite" or "process", its model, and how many requests."""

    def loading(self, model: str) -> None:
        """The server is asked to load a model."""

    def token(self, index: int, piece: str) -> None:
        """A piece of the answer to request `index` of the stage came."""

    def finished(self, index: int, result: Result) -> None:
        """Request `index` of the stage has ended."""

    def waiting(self, reason: str, seconds: float) -> None:
        """A request failed in a way that may pass; it is sent again after `seconds`."""

    def note(self, text: str) -> None:
        """Something about the whole run that its user should know, as a sentence."""
