"""Progress on stderr, and Ctrl-C as a cancel that leaves nothing running."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from .._advice import remark
from ..captioning.events import Watcher
from ..captioning.job import Result
from ..memory import finish_pending_unloads
from .terminal import TERMINAL

_TAIL_CHARACTERS = 40


class TerminalWatcher(Watcher):
    """A bar per stage with the end of the growing text; plain lines where stderr is no terminal."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._bar: tqdm[Any] | None = None
        self._tail = ""

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def stage(self, title: str, model: str, count: int) -> None:
        self.close()
        heading = f"{title} with {model}"
        if sys.stderr.isatty():
            self._bar = tqdm(total=count, desc=heading, unit="image", file=sys.stderr)
        else:
            print(f"{heading}: {count} to do", file=sys.stderr, flush=True)

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
        if result.answer and result.answer.remark:
            self._say(remark(result.answer, TERMINAL))

    def waiting(self, reason: str, seconds: float) -> None:
        self._say(f"{reason}, trying again in {seconds:g} s")

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def stop_on_ctrl_c() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets, in place of an exception at any odd moment."""
    stop = threading.Event()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def watching() -> Iterator[TerminalWatcher]:
    """Give a watcher that Ctrl-C stops; wait at the end for unloads that go on behind."""
    with stop_on_ctrl_c() as stop:
        watcher = TerminalWatcher(stop)
        try:
            yield watcher
        finally:
            watcher.close()
            finish_pending_unloads()
