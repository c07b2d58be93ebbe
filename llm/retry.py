"""Retry after temporary failures, but only while no part of an answer has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .errors import (
    Cancelled,
    ConnectionBroke,
    LLMError,
    OutOfMemory,
    ServerBusy,
    ServerUnreachable,
)
from .http import POLL_S, CancelCheck

T = TypeVar("T")

_BUSY = 503
_MAX_BREAKS = 2
"""A connection that breaks every time means that the request crashes the server."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how long to retry; the pause doubles each time.

    Attributes:
        count: the most retries; 0: none. After a broken connection: 2 at most.
        limit_s: the last retry starts within this many seconds after the first failure.
        start_s: the same for a server that has not answered yet: it may be starting, or absent.
        first_pause_s: seconds before the first retry.
    """

    count: int = 5
    limit_s: float = 20.0
    start_s: float = 3.0
    first_pause_s: float = 0.5

    def pause_s(
        self, error: LLMError, *, tried: int, since_s: float, answered: bool
    ) -> float | None:
        """Return the seconds to wait before the next retry, or None for no retry.

        Args:
            tried: retries so far.
            since_s: seconds since the first failure.
            answered: the server has answered something before.

        >>> from image_refinery.llm.servers import Server
        >>> busy = ServerBusy("m", Server(), "busy")
        >>> Retries().pause_s(busy, tried=2, since_s=1.5, answered=True)
        2.0
        >>> Retries().pause_s(LLMError("any other"), tried=0, since_s=0.0, answered=True)
        """
        count, limit_s = self.count, self.limit_s
        if isinstance(error, ServerUnreachable):
            if not error.refused:
                return None
            limit_s = self.limit_s if answered else self.start_s
        elif isinstance(error, ConnectionBroke):
            count = min(count, _MAX_BREAKS)
        elif not (isinstance(error, ServerBusy) and error.status == _BUSY):
            return None
        pause_s = self.first_pause_s * 2**tried
        return pause_s if tried < count and since_s + pause_s <= limit_s else None


def with_retries(
    request: Callable[[], T],
    retries: Retries,
    *,
    answered: bool = True,
    cancelled: CancelCheck | None = None,
    on_retry: Callable[[LLMError, float], None] | None = None,
    make_room: Callable[[], bool] | None = None,
) -> T:
    """Return what `request` returns; call it again after temporary failures.

    `request` must raise a different error (IncompleteAnswer) once part of the answer has arrived.

    Args:
        answered: the server has answered something before.
        cancelled: polled while waiting.
        on_retry: called before each pause with the error and the seconds.
        make_room: called after OutOfMemory; returns True if it freed memory, to try again.

    Raises:
        Cancelled: `cancelled` returned True while waiting.
        LLMError: the last error of `request`.
    """
    started: float | None = None
    tried = 0
    while True:
        try:
            return request()
        except OutOfMemory:
            if make_room is None or not make_room():
                raise
            continue
        except LLMError as error:
            started = started or time.monotonic()
            since_s = time.monotonic() - started
            pause_s = retries.pause_s(error, tried=tried, since_s=since_s, answered=answered)
            if pause_s is None:
                raise
            if on_retry is not None:
                on_retry(error, pause_s)
        deadline = time.monotonic() + pause_s
        while (left_s := deadline - time.monotonic()) > 0:
            if cancelled is not None and cancelled():
                raise Cancelled
            time.sleep(min(left_s, POLL_S))
        tried += 1
