"""Slow work in a thread, which the user can cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from ...refine import RefineCancelled
from . import interrupted
from .checkpoints import DOWNLOAD, DOWNLOADED_MODEL

T = TypeVar("T")

_POLL_S = 0.1


def wait_for(work: Callable[[], T], on_second: Callable[[int], None]) -> T:
    """Do slow work in a thread and return its result; a cancel leaves it to finish alone.

    Args:
        work: Done in the thread, which has none of ComfyUI's inference mode: that holds for one
            thread only, and weights that are loaded inside it could not be moved outside it.
        on_second: Called at the start and every full second, with the seconds passed.

    Raises:
        RefineCancelled: the user cancelled.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (it belongs to the node that waits)
            future.set_exception(error)
        else:
            future.set_result(result)

    began, last = time.monotonic(), -1
    threading.Thread(target=run, name="image-refinery-load", daemon=True).start()
    while not wait([future], timeout=_POLL_S).done:
        if interrupted():
            raise RefineCancelled("Cancelled while the checkpoint was loading.")
        if (seconds := int(time.monotonic() - began)) > last:
            on_second(seconds)
            last = seconds
    return future.result()


def wait_for_checkpoint(checkpoint: str, work: Callable[[], T], say: Callable[[str], None]) -> T:
    """Read a checkpoint in a thread, as `wait_for` does, and say how long that takes.

    Args:
        checkpoint: as the checkpoint widget names it.
        say: shows a text on the node.

    Raises:
        RefineCancelled: the user cancelled.
    """
    what = "loading the checkpoint"
    if checkpoint == DOWNLOAD:
        what = f"downloading {DOWNLOADED_MODEL}"
    try:
        return wait_for(work, lambda seconds: say(f"{what} ({seconds} s)" if seconds else what))
    except RefineCancelled:
        say("cancelled")  # "loading" is no longer true
        raise
