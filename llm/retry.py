"""Ask again where that is safe: nothing of an answer has come, and the reason passes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from .errors import Cancelled, ConnectionBroke, OllamaError, ServerBusy, ServerUnreachable
from .http import POLL_S, CancelCheck

T = TypeVar("T")

_BUSY = 503
_BREAKS = 2
"""A connection that breaks each time is a crash that the request causes: no use to go on."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how long a request is asked again; the pause doubles each time.

    Attributes:
        count: how many times more at most; 0: never. A broken connection: twice at most.
        limit_s: seconds after the first failure when the last try may begin.
        start_s: the same for a server that has not answered yet: it may be starting, or not there.
        first_pause_s: before the first try more, in seconds.
    """

    count: int = 5
    limit_s: float = 20.0
    start_s: float = 3.0
    first_pause_s: float = 0.5

    def pause_s(
        self, error: OllamaError, *, tried: int, since_s: float, answered: bool
    ) -> float | None:
        """Return how long to wait before asking again, or None where that is not for us.

        Args:
            tried: how many times it was asked again already.
            since_s: seconds since the first failure.
            answered: the server has answered something before.

        >>> Retries().pause_s(ServerBusy("m", "u", "busy"), tried=2, since_s=1.5, answered=True)
        2.0
        >>> Retries().pause_s(OllamaError("any other"), tried=0, since_s=0.0, answered=True)
        """
        count, limit_s = self.count, self.limit_s
        if isinstance(error, ServerUnreachable):
            if not error.refused:
                return None
            limit_s = self.limit_s if answered else self.start_s
        elif isinstance(error, ConnectionBroke):
            count = min(count, _BREAKS)
        elif not (isinstance(error, ServerBusy) and error.status == _BUSY):
            return None
        pause_s = self.first_pause_s * 2**tried
        return pause_s if tried < count and since_s + pause_s <= limit_s else None


def patiently(
    ask: Callable[[], T],
    retries: Retries,
    *,
    place: str,
    answered: bool = True,
    cancelled: CancelCheck | None = None,
    told: Callable[[OllamaError, float], None] | None = None,
) -> T:
    """Return what `ask` gives, asking again after what passes by itself.

    `ask` must raise something else (IncompleteAnswer) once a part of the answer has come.

    Args:
        place: of the server, for the error of a cancel.
        answered: the server has answered something before.
        cancelled: polled while waiting.
        told: hears of each pause: what went wrong, and for how many seconds it waits.

    Raises:
        Cancelled: while waiting.
        OllamaError: what `ask` raised last.
    """
    begun: float | None = None
    tried = 0
    while True:
        try:
            return ask()
        except OllamaError as error:
            begun = begun or time.monotonic()
            since_s = time.monotonic() - begun
            pause_s = retries.pause_s(error, tried=tried, since_s=since_s, answered=answered)
            if pause_s is None:
                raise
            if told is not None:
                told(error, pause_s)
        _pause(pause_s, place, cancelled)
        tried += 1


def _pause(seconds: float, place: str, cancelled: CancelCheck | None) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if cancelled is not None and cancelled():
            raise Cancelled(place)
        time.sleep(min(left, POLL_S))
