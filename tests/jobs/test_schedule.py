"""How workers share the images of a job."""

from __future__ import annotations

import threading
import time

from image_refinery.jobs.schedule import ChunkSizes, Supply


def test_what_is_given_back_goes_to_another_worker() -> None:
    supply = Supply([1, 2, 3])
    assert supply.take(lambda there: 3) == [1, 2, 3]
    taken: list[list[int]] = []
    other = threading.Thread(target=lambda: taken.append(supply.take(lambda there: 9)))
    other.start()
    time.sleep(0.05)
    assert other.is_alive(), "it waits: the first may return some"
    supply.put_back([2, 3])
    other.join(5)
    assert taken == [[2, 3]]
    supply.put_back()
    assert supply.take(lambda there: 1) == []


def test_a_feeder_is_waited_for() -> None:
    supply = Supply(["a"], feeders=1)
    assert supply.take(lambda there: 5) == ["a"], "and one works on it"
    taken: list[list[str]] = []
    worker = threading.Thread(target=lambda: taken.append(supply.take(lambda there: 5)))
    worker.start()
    time.sleep(0.05)
    assert worker.is_alive(), "it waits: the feeder may add some"
    supply.add(["b"])
    worker.join(5)
    assert taken == [["b"]]
    supply.put_back()
    supply.put_back()
    supply.end_feeding()
    assert supply.take(lambda there: 5) == []


def test_the_last_chunks_are_small_so_that_all_end_together() -> None:
    sizes = ChunkSizes(100, swaps=False, workers=2)
    assert [sizes(there) for there in (1000, 300, 40, 3, 1)] == [100, 75, 10, 1, 1]
    swapping = ChunkSizes(100, swaps=True, workers=2)
    assert swapping(3) == 12, "each costs a swap, too"


def test_times_that_make_no_sense_give_the_usual_size() -> None:
    sizes = ChunkSizes(None, swaps=True, workers=1)
    assert sizes(10_000) == 8
    sizes.learn(8, 5.0)
    assert sizes(10_000) == 64
    sizes.learn(64, 1.0)
    assert sizes(10_000) == 250
