"""Who watches a run; apart from `stages`, which ComfyUI need not import when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ..llm.errors import OllamaError

if TYPE_CHECKING:
    from ..ollama_client.client import Answer

Outcome: TypeAlias = "Answer | OllamaError"
"""What became of one image in one stage."""


class Watcher:
    """Sees what a run does, and can stop it; this one looks away. Subclass what you need."""

    def cancelled(self) -> bool:
        """Asked at least every 0.1 s; True stops the run."""
        return False

    def stage(self, title: str, model: str, count: int) -> None:
        """A stage begins: "describe", "rewrite" or "process", its model, and how many requests."""

    def loading(self, model: str) -> None:
        """The server is asked to load a model."""

    def token(self, index: int, piece: str) -> None:
        """A piece of the answer for request `index` came."""

    def finished(self, index: int, outcome: Outcome) -> None:
        """Request `index` of the stage has ended; `Answer.remark` says if it was cut."""

    def waiting(self, reason: str, seconds: float) -> None:
        """A request failed in a way that passes by itself; it is sent again after `seconds`."""
