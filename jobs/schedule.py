"""How the workers of a job share its images: in chunks, by what each finishes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")

CHUNK = 250
"""Images between two swaps of models: at 20 s for a swap and 4 s an image, 2 % of the time."""

_MOST = 2000
_FIRST, _SECOND = 8, 64
"""Chunks by whose times a worker learns what a swap takes."""
_SWAP_SHARE = 0.02
_SPLIT = 8
"""The last chunks are at least this part of a whole one: each costs a swap, too."""


class Supply(Generic[T]):
    """Images, or what else workers take; they return what they cannot finish.

    Args:
        items: what is there.
        feeders: how many others still add to it.
    """

    def __init__(self, items: Iterable[T] = (), *, feeders: int = 0) -> None:
        self._items = deque(items)
        self._feeders = feeders
        self._busy = 0
        self._changed = Condition()

    def take(self, size: Callable[[int], int]) -> list[T]:
        """Return the next items, or none if there are no more; then call `put_back`.

        Waits while there are none, but another worker may return or add some.

        Args:
            size: returns how many to take, of so many that are there.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or not self._busy + self._feeders)
            count = min(len(self._items), max(1, size(len(self._items))))
            if count:
                self._busy += 1
            return [self._items.popleft() for _ in range(count)]

    def put_back(self, rest: Iterable[T] = ()) -> None:
        """End the work on what was taken; return what was not finished."""
        with self._changed:
            self._items.extend(rest)
            self._busy -= 1
            self._changed.notify_all()

    def add(self, items: Iterable[T]) -> None:
        """Add items; for feeders."""
        with self._changed:
            self._items.extend(items)
            self._changed.notify_all()

    def end_feeding(self) -> None:
        """Called once by each feeder, when it adds no more."""
        with self._changed:
            self._feeders -= 1
            self._changed.notify_all()


class ChunkSizes:
    """How many images a worker takes at a time.

    A chunk costs a worker with two models one swap of c seconds, and each image t seconds. c and t
    are learned from the first two chunks; 50 c / t images keep the swap at 2 %.

    Args:
        fixed: this size always; None: learn it.
        swaps: whether the worker swaps models at all.
        workers: how many share the images: near the end each takes less, so that all end together.
    """

    def __init__(self, fixed: int | None, *, swaps: bool, workers: int) -> None:
        self._size = fixed or (_FIRST if swaps else CHUNK)
        self._learns = swaps and fixed is None
        self._swaps = swaps
        self._workers = workers
        self._times: list[tuple[int, float]] = []

    def __call__(self, there: int) -> int:
        """Return how many of the images that are there to take."""
        if self._workers == 1:
            return self._size
        least = max(1, self._size // _SPLIT) if self._swaps else 1
        return min(self._size, max(least, there // (2 * self._workers)))

    def learn(self, count: int, seconds: float) -> None:
        """Note how long a chunk took.

        >>> sizes = ChunkSizes(None, swaps=True, workers=1)
        >>> sizes.learn(8, 20 + 8 * 4.0); sizes.learn(64, 20 + 64 * 4.0); sizes(10_000)
        250
        """
        if not self._learns:
            return
        self._times.append((count, seconds))
        if len(self._times) == 1:
            self._size = _SECOND
            return
        self._learns = False
        (few, short), (many, long) = sorted(self._times)
        each = (long - short) / (many - few) if many > few else 0.0
        swap = short - few * each
        # Answers that were kept, or another program, may make nonsense of the two times.
        usable = each > 0 and swap > 0
        wanted = round(swap / each / _SWAP_SHARE) if usable else CHUNK
        self._size = max(_SECOND, min(wanted, _MOST))
