"""Progress on stderr, and Ctrl-C as a cancel that leaves nothing running."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..captioning.events import Watcher
from ..captioning.job import Result
from ..llm.errors import capital
from ..memory import finish_pending_unloads
from .terminal import CANCELLED

_TAIL_CHARACTERS = 40
_DOING = {"describe": "Describing", "rewrite": "Rewriting"}


class TerminalWatcher(Watcher):
    """A bar per stage with the end of the growing text; plain lines where stderr is no terminal."""

    def __init__(
        self, stop: threading.Event, described: Callable[[int, Result], None] | None = None
    ) -> None:
        self._stop = stop
        self._described = described
        self._stage = ""
        self._bar: tqdm[Any] | None = None
        self._tail = ""

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def stage(self, title: str, model: str, count: int) -> None:
        self.close()
        self._stage = title
        heading = f"{_DOING.get(title, title)} with {model}"
        if sys.stderr.isatty():
            self._bar = tqdm(total=count, desc=heading, unit="image", file=sys.stderr)
        else:
            images = "1 image" if count == 1 else f"{count} images"
            print(f"{heading}: {images}", file=sys.stderr, flush=True)

    def loading(self, model: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str("loading the model")

    def token(self, index: int, piece: str) -> None:
        if self._bar is not None:
            self._tail = (self._tail + piece)[-_TAIL_CHARACTERS:]
            self._bar.set_postfix_str(" ".join(self._tail.split()), refresh=False)
            self._bar.update(0)

    def finished(self, index: int, result: Result) -> None:
        self._tail = ""
        if self._bar is not None:
            self._bar.update(1)
        if self._described and self._stage == "describe":
            self._described(index, result)

    def waiting(self, reason: str, seconds: float) -> None:
        self.note(f"{capital(reason)}, trying again in {seconds:g} s.")

    def note(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


WatcherFactory = Callable[
    [threading.Event, "Callable[[int, Result], None] | None"], TerminalWatcher
]


@contextmanager
def stop_on_ctrl_c() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets, in place of an exception at any odd moment.

    A second Ctrl-C ends the process: every file is written whole or not at all.
    """
    stop = threading.Event()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(CANCELLED)
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def watching(
    described: Callable[[int, Result], None] | None = None, make: WatcherFactory = TerminalWatcher
) -> Iterator[TerminalWatcher]:
    """Give a watcher that Ctrl-C stops; wait at the end for unloads in the background.

    Args:
        described: called with each result of the stage that describes, and its index.
        make: makes the watcher.
    """
    with stop_on_ctrl_c() as stop:
        watcher = make(stop, described)
        try:
            yield watcher
        finally:
            watcher.close()
            finish_pending_unloads()


def estimate(left: int, finished: int, seconds: float) -> str:
    """Return how long the images that are left would take, from those of a run.

    >>> estimate(1000, 20, 80.0)
    '4.0 s an image: the 1000 images that are left would take about 1:06:40.'
    """
    if not finished:
        return "No image was finished, so there is nothing to estimate from."
    each = seconds / finished
    hours, rest = divmod(round(each * left), 3600)
    time_left = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{each:.1f} s an image: the {left} images that are left would take about {time_left}."
