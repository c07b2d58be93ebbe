"""A PromptServer that keeps what it is told to send."""

from types import SimpleNamespace
from typing import Any


class PromptServer:
    instance: "PromptServer"

    def __init__(self) -> None:
        self.client_id: str | None = None
        self.sent_texts: list[tuple[str, str]] = []
        """(node id, text) of every send_progress_text, in order."""
        self.events: list[tuple[str, object, str | None]] = []
        """(event, data, client) of every send_sync, in order."""
        self.handlers: dict[str, Any] = {}
        """The functions of the routes, by their paths."""
        self.routes = SimpleNamespace(
            get=lambda path: lambda handler: self.handlers.setdefault(path, handler)
        )

    def send_sync(self, event: str, data: object, sid: str | None = None) -> None:
        self.events.append((event, data, sid))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        text.encode("utf-8")  # as the real one does: a half of a surrogate pair is an error
        self.sent_texts.append((node_id, text))


PromptServer.instance = PromptServer()
