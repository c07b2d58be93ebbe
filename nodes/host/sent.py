"""What a node sent to its server, as the text of the page's dialog "Show What Was Sent"."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server import PromptServer

if TYPE_CHECKING:
    from ...captioning.events import Sent
    from ...llm.backend import Message

EVENT = "imagerefinery.sent"
MAX_REQUESTS = 3
"""Requests of a stage that are kept as text; the others are only counted."""


class SentLog:
    """The requests of a run, stage by stage. Several threads may add to it."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []

    def stage(self, title: str, count: int) -> None:
        """Begin a stage of `count` requests."""
        self._stages.append(_Stage(title, count))

    def add(self, index: int, request: Sent) -> None:
        """Keep a request, in place of an earlier one of the same index."""
        sent = self._stages[-1].sent
        if sent.get(index) or len(sent) < MAX_REQUESTS:
            sent[index] = _request_text(request)
        else:
            sent[index] = ""

    def text(self) -> str:
        """Return what was sent; "" if that was nothing."""
        if not any(stage.sent for stage in self._stages):
            return ""
        return "\n\n".join(stage.text() for stage in self._stages)


class _Stage:
    def __init__(self, title: str, count: int) -> None:
        self.title = title
        self.count = count
        self.sent: dict[int, str] = {}

    def text(self) -> str:
        shown = sorted((index, text) for index, text in self.sent.items() if text)
        lines = [f"=== {self.title}: {len(self.sent)} of {self.count} sent ==="]
        lines += [f"--- {index + 1} of {self.count} ---\n{text}" for index, text in shown]
        if more := len(self.sent) - len(shown):
            lines.append(f"... and {more} more, not shown.")
        return "\n\n".join(lines)


def send_log(node_id: str | None, log: SentLog) -> None:
    """Send a log to the page that queued the run; nothing where there is none."""
    server = getattr(PromptServer, "instance", None)
    # Without a client the event would go to every page.
    if server is not None and node_id is not None and server.client_id is not None:
        server.send_sync(EVENT, {"node": node_id, "text": log.text()}, server.client_id)


def _request_text(request: Sent) -> str:
    settings = {
        "server": request.server,
        "model": request.model,
        "options": dict(request.options),
        "think": request.think,
        "format": request.format,
    }
    lines = [
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
        if value is not None
    ]
    return "\n\n".join(["\n".join(lines), *map(_message_text, request.messages)])


def _message_text(message: Message) -> str:
    lines = [f"[{message.get('role', '')}]", message.get("content", "")]
    if images := message.get("images"):
        lines.append(_images_text(images))
    return "\n".join(lines)


def _images_text(images: Sequence[str]) -> str:
    """Return the number of images, their size and format."""
    from PIL import Image

    first = Image.open(io.BytesIO(base64.b64decode(images[0])))  # reads the header only
    size = f"{first.width} x {first.height} {first.format}"
    kilobytes = -(-sum(map(len, images)) * 3 // 4000)
    if len(images) == 1:
        return f"[1 image, {size}, {kilobytes} kB]"
    return f"[{len(images)} images, the first {size}, {kilobytes} kB in all]"
