"""Several requests at a time in one loaded model of the embedded engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Stage, TextJob
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import process as process_texts
from image_refinery.llm.backend import collect
from image_refinery.llm.errors import Cancelled, IncompleteAnswer
from image_refinery.memory import StageMemory

LONG = {"num_predict": 4000, "num_ctx": 4096}
"""Options of an answer that is still running when the others are looked at."""
LONG_PROMPT = "long " * 800


def start(user: Any) -> Any:
    """Return the pieces of a long answer; a test in which they do not come fails in time."""
    deadline = time.monotonic() + 60
    return user.start("slow", options=LONG, cancelled=lambda: time.monotonic() > deadline)


def test_as_many_answers_as_were_asked_for_run_at_the_same_time(user: Any) -> None:
    user.load("slow", options=LONG, parallel=3)
    streams = [start(user) for _ in range(3)]
    for stream in streams:
        assert next(stream)
    fourth = user.behind("slow", options={**LONG, "num_predict": 4})
    time.sleep(0.3)
    assert not fourth.done()
    assert len(user.pids()) == 1
    for stream in streams:
        assert next(stream)
    streams[0].close()
    assert fourth.result(60).answer_tokens == 4
    for stream in streams[1:]:
        assert next(stream)
        stream.close()


def test_each_has_the_whole_context(user: Any) -> None:
    """llama.cpp shares one context out among all requests."""
    long = {"num_predict": -1, "num_ctx": 1024}
    alone = user.chat("tiny", options=long)
    user.load("tiny", options=long, parallel=4)
    together = [user.behind("tiny", options=long) for _ in range(4)]
    assert [one.result(60).answer_tokens for one in together] == [alone.answer_tokens] * 4
    assert user.ps()["tiny"].context_length == 1024


def test_only_more_at_a_time_reload_the_model(user: Any) -> None:
    pids: list[int] = []
    for parallel in (1, 4, 2, 1):
        user.load("tiny", parallel=parallel)
        pids.append(user.pid())
    assert pids[0] != pids[1] == pids[2] == pids[3]


def test_the_memory_of_each_further_request_is_listed(user: Any) -> None:
    sizes: list[int] = []
    for parallel in (1, 2, 3):
        user.load("slow", options={"num_ctx": 4096}, parallel=parallel)
        sizes.append(user.ps()["slow"].size_bytes)
    second, third = sizes[1] - sizes[0], sizes[2] - sizes[1]
    assert second > 1_000_000 and third == pytest.approx(second, rel=0.2)


def test_a_request_that_is_given_up_leaves_the_others(user: Any) -> None:
    user.load("slow", options=LONG, parallel=2)
    pid = user.pid()
    other = start(user)
    assert next(other)
    leave = threading.Event()
    reading = user.behind("slow", LONG_PROMPT, options=LONG, cancelled=leave.is_set)
    time.sleep(0.2)
    leave.set()
    with pytest.raises(Cancelled):
        reading.result(10)
    assert next(other) and user.pid() == pid
    other.close()


def test_a_crash_ends_all_and_the_next_load_has_as_many(user: Any) -> None:
    user.load("slow", options=LONG, parallel=2)
    pid = user.pid()
    streams = [start(user) for _ in range(2)]
    for stream in streams:
        next(stream)
    os.kill(pid, signal.SIGTERM)
    for stream in streams:
        with pytest.raises(IncompleteAnswer, match=r"llama\.cpp has stopped"):
            collect(stream)
    assert user.ps() == {}
    again = [start(user) for _ in range(2)]
    assert next(again[0]) and next(again[1]) and user.pid() != pid
    for stream in again:
        stream.close()


def test_an_unload_waits_for_all_of_them(user: Any, until: Any) -> None:
    user.load("slow", options=LONG, parallel=2)
    streams = [start(user) for _ in range(2)]
    for stream in streams:
        next(stream)
    unload = threading.Thread(target=user.engine.unload, args=("slow",))
    unload.start()
    streams[0].close()
    time.sleep(0.3)
    assert next(streams[1]) and unload.is_alive()
    streams[1].close()
    unload.join(10)
    until(lambda: not user.ps(), "unloaded")


class Counts(Watcher):
    """Counts how many answers of a run are being written at a time; cancels at a number of them."""

    def __init__(self, cancel_at: int = 99) -> None:
        self.running: set[int] = set()
        self.most = 0
        self._cancel_at = cancel_at

    def cancelled(self) -> bool:
        return self.most >= self._cancel_at

    def token(self, index: int, piece: str) -> None:
        self.running.add(index)
        self.most = max(self.most, len(self.running))

    def finished(self, number: int, result: Any) -> None:
        self.running.discard(number)


def stage(user: Any, parallel: int, **options: Any) -> Stage:
    settings = StageOptions(parallel=parallel)
    return Stage(model="slow", options=user.options(**options), settings=settings)


def test_a_run_computes_as_many_answers_as_its_stage_says(user: Any) -> None:
    job = TextJob(stage=stage(user, 4, num_predict=100), texts=["a", "b", "c", "d"])
    watcher = Counts()
    results = process_texts(user.engine, job, memory=StageMemory(), watcher=watcher)
    assert [result.error for result in results] == [None] * 4
    assert watcher.most == 4
    assert user.ps() == {}


def test_a_cancelled_run_leaves_nothing(user: Any, until: Any) -> None:
    job = TextJob(stage=stage(user, 3, **LONG), texts=["a", "b", "c"])
    started = time.monotonic()
    with pytest.raises(Cancelled):
        process_texts(user.engine, job, memory=StageMemory(), watcher=Counts(cancel_at=3))
    assert time.monotonic() - started < 10
    until(lambda: not user.ps(), "unloaded")
