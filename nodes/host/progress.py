"""What the page shows of a run: a bar, the text as it grows, previews."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import comfy.utils
from server import PromptServer

from ..._advice import Edge, remark, with_advice
from ...captioning.events import Watcher
from ...texts.characters import whole_characters
from . import convert
from .running import interrupted
from .sent import SentLog, send_log

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ...captioning.events import Sent
    from ...captioning.job import Result
    from ...refine.progress import Progress

_SHOW_EVERY_S = 0.1
_SHOWN_CHARS = 300
_PREVIEW_SIDE_PX = 512
_HALF_TOKENS = 100
"""The bar shows half of a request after so many tokens."""
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)")

PAGE = Edge(again="queue again", options="Ollama Options")
"""What a person at ComfyUI's page can do about an error."""


class NodeWatcher(Watcher):
    """Shows a run on its node: a bar, the text as it grows, and on request what was sent.

    Args:
        node_id: The running node's id; None outside a graph.
        stages: How many stages the run has. Each takes an equal part of the bar.
    """

    def __init__(self, node_id: str | None, stages: int = 1) -> None:
        self._node_id = node_id
        self._stages = stages
        self._stage = 0
        self._title = ""
        self._count = 1
        self._done = 0
        self._texts: dict[int, list[str]] = {}
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)
        self._waiting = ""
        self._since = 0.0
        self._shown_at = 0.0
        self.notes: list[str] = []
        self._sent = SentLog()

    def cancelled(self) -> bool:
        if self._waiting and time.monotonic() - self._shown_at >= 1.0:
            self._show(f"{self._waiting} ({time.monotonic() - self._since:.0f} s)")
        return interrupted()

    def stage(self, title: str, model: str, count: int) -> None:
        self._title, self._count, self._done = f"{title} with {model}", count, 0
        self._texts.clear()
        self._stage += 1
        self._sent.stage(self._title, count)
        self._show_progress()
        self._wait(self._title)

    def loading(self, model: str) -> None:
        self._wait(f"loading {model}")

    def sent(self, index: int, request: Sent) -> None:
        self._sent.add(index, request)
        self._texts.pop(index, None)  # of an answer that is asked for again

    def token(self, index: int, piece: str) -> None:
        self._waiting = ""
        self._texts.setdefault(index, []).append(piece)
        if time.monotonic() - self._shown_at >= _SHOW_EVERY_S:
            self._show(self._heading(), _end_of("".join(self._texts[index])))
            self._show_progress()

    def finished(self, index: int, result: Result) -> None:
        self._texts.pop(index, None)
        self._done += 1
        self._show_progress()
        if result.error is not None:
            self._show(self._heading(), f"Error: {with_advice(result.error, PAGE)}")
        elif result.answer is not None:
            text, cut = _end_of(result.text), remark(result.answer, PAGE)
            self._show(*filter(None, (self._heading(), text, cut)))
        if self._done < self._count:
            self._wait(self._title)

    def waiting(self, reason: str, seconds: float) -> None:
        self._wait(f"{self._title}: {reason}, trying again")
        self._show(f"{self._title}: {reason}, trying again in {seconds:g} s")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def show_sent(self) -> None:
        """Give the page what was sent, for when its user asks."""
        send_log(self._node_id, self._sent)

    def show_cancelled(self) -> None:
        """Show how far the run came, in place of the last live text."""
        before = f"{self._title}: " if self._title else ""
        after = f" after {self._done} of {self._count}" if self._title else ""
        self._show(f"{before}cancelled{after}")

    def _heading(self) -> str:
        if self._count == 1:
            return self._title
        return f"{self._title}: {min(self._done + 1, self._count)} of {self._count}"

    def _show_progress(self) -> None:
        if interrupted():  # the bar would raise ComfyUI's own exception: no unload, no status
            return
        # An answer's length is not known: each token moves the bar by less than the one before.
        counts = [len(pieces) for pieces in [*self._texts.values()]]
        begun = sum(count / (count + _HALF_TOKENS) for count in counts)
        done = (self._stage - 1) * self._count + self._done + begun
        total = self._stages * self._count
        self._bar.update_absolute(round(100 * done), 100 * total)

    def _wait(self, text: str) -> None:
        self._waiting, self._since = text, time.monotonic()

    def _show(self, *lines: str) -> None:
        self._shown_at = time.monotonic()
        show(self._node_id, *lines)


def _end_of(text: str) -> str:
    """The last characters of a text, with dots where some are missing."""
    return text if len(text) <= _SHOWN_CHARS else f"... {text[-_SHOWN_CHARS:]}"


class RefineProgress:
    """Shows the refiner's events on the node.

    Args:
        node_id: The running node's id; None outside a graph.
        count: How many images the whole run has.
        what: What it has in place of images.
    """

    def __init__(self, node_id: str | None, count: int, what: str = "image") -> None:
        self._node_id = node_id
        self._all = f"the {what}" if count == 1 else f"{count} {what}s"
        self._began = time.monotonic()
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def __call__(self, event: Progress) -> None:
        """Show one event."""
        if interrupted():  # the bar would raise ComfyUI's own exception: no "cancelled" on the node
            return
        self.say(event.text)
        if event.stage != "refine":
            return
        preview = event.preview() if event.step else None
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_SIDE_PX)
        self._bar.update_absolute(event.done, event.total, shown)

    def finished(self, last: torch.Tensor | None, advice: str = "") -> None:
        """Show the time taken, and the last result in place of a preview.

        Args:
            last: an image (1, H, W, C), float 0 to 1; None: there is none.
            advice: one sentence to show as well, or "".
        """
        from PIL import Image

        if last is not None:
            self.show_result(Image.fromarray(convert.pixels(last[..., :3].expand(-1, -1, -1, 3))()))
        done = f"refined {self._all} in {time.monotonic() - self._began:.1f} s"
        self.say(*filter(None, (done, advice)))

    def show_result(self, image: Image.Image) -> None:
        """Show a refined image in place of the last preview."""
        self._bar.update_absolute(
            self._bar.total, preview=("JPEG", image.convert("RGB"), _PREVIEW_SIDE_PX)
        )

    def say(self, *lines: str) -> None:
        """Show a text on the node."""
        show(self._node_id, *lines)


def show(node_id: str | None, *lines: str) -> None:
    """Show a text on a running node; nothing where there is no page or no node."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        # ComfyUI encodes it as UTF-8, and a character it cannot encode would end the run.
        text = whole_characters("\n".join(lines))
        # The page takes it for HTML, and Nodes 2.0 for Markdown: "<" would hide the word behind it,
        # "![" would load an image, and lines would run into one another.
        text = _MARKUP.sub("\\g<0>\u200b", text).replace("\n", "  \n")
        server.send_progress_text(text, node_id)
