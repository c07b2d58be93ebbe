"""Record which model held the memory when, and how long each load and unload took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

SAMPLE_S = 0.25
MAX_POINTS = 200
"""Of a curve."""


class Meter(NamedTuple):
    """How memory is measured.

    Attributes:
        of: whose memory it is, in words.
        total_bytes: all there is.
        used: returns how much is used now.
    """

    of: str
    total_bytes: int
    used: Callable[[], int]


@dataclass
class Period:
    """What a model did from one moment to another.

    Attributes:
        who: the model.
        what: "load", "unload", or its work.
        stand_in: it is a stand-in model.
        gone: after an unload, whether the server confirms it; None: it was not asked.
    """

    who: str
    what: str
    start_s: float
    start_bytes: int
    stand_in: bool = False
    gone: bool | None = None
    end_s: float = 0.0
    end_bytes: int = 0
    peak_bytes: int = 0


class Timeline:
    """The periods of a run that have ended, and the memory in use, sampled by a thread.

    A context manager: the clock starts at 0 when it is entered.
    """

    def __init__(self, used: Callable[[], int]) -> None:
        self.periods: list[Period] = []
        self.samples: list[tuple[float, int]] = []
        self._used = used
        self._open: Period | None = None
        self._start = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, name="memory", daemon=True)

    def __enter__(self) -> Timeline:
        self._start = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stop.set()
        self._thread.join()

    def begin(self, who: str, what: str, *, stand_in: bool = False) -> None:
        """End the current period and begin another, unless it is of the same model and work."""
        if self._open and (self._open.who, self._open.what) == (who, what):
            return
        self.end()
        self._open = Period(who, what, *self._sample(), stand_in=stand_in)

    def end(self, *, gone: bool | None = None) -> None:
        """End the current period, if there is one."""
        if period := self._open:
            period.end_s, period.end_bytes = self._sample()
            period.gone = gone
            inside = [size for at, size in self.samples if at >= period.start_s]
            period.peak_bytes = max(inside)
            self.periods.append(period)
            self._open = None

    def curve(self) -> list[tuple[float, int]]:
        """Return at most `MAX_POINTS` samples: the highest of each part of the time."""
        samples = sorted(self.samples)
        size = max(1, -(-len(samples) // MAX_POINTS))
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [max(part, key=lambda sample: sample[1]) for part in parts]

    def _sample(self) -> tuple[float, int]:
        sample = (round(time.monotonic() - self._start, 3), self._used())
        self.samples.append(sample)
        return sample

    def _keep_sampling(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()


def meter_of(device: str) -> Meter:
    """Return the meter of a GPU that reports its memory, else of this program's RAM."""
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        import torch

        info: Callable[[], tuple[int, int]] = getattr(torch, kind).mem_get_info
        total = info()[1]

        def used_on_card() -> int:
            free, _ = info()
            return total - free

        return Meter("GPU memory in use, by all programs", total, used_on_card)
    import psutil  # a dependency of accelerate, which diffusers uses for loading

    own = psutil.Process()

    def used_ram() -> int:
        used = 0
        for process in (own, *own.children(recursive=True)):
            try:
                used += int(process.memory_info().rss)
            except psutil.Error:  # it has ended
                continue
        return used

    total = int(psutil.virtual_memory().total)
    return Meter("RAM in use, by this program and the embedded engine", total, used_ram)
