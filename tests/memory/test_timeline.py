"""The timeline of a run: its periods follow each other, and the curve keeps the peaks."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from image_refinery.memory import timeline
from image_refinery.memory.timeline import MAX_POINTS, Timeline, meter_of


def test_periods_follow_each_other_with_the_memory_at_their_ends() -> None:
    sizes = iter(range(0, 10_000, 100))
    with Timeline(lambda: next(sizes)) as made:
        made.begin("llava", "load")
        made.begin("llava", "describe", stand_in=True)
        made.begin("llava", "describe")  # the next image
        made.begin("llava", "unload")
        made.end(gone=True)
        made.end()
    load, work, unload = made.periods
    assert [one.what for one in made.periods] == ["load", "describe", "unload"]
    assert work.stand_in and not load.stand_in
    assert (load.gone, unload.gone) == (None, True)
    assert load.start_s <= load.end_s <= work.start_s <= work.end_s <= unload.start_s
    for one in made.periods:
        assert one.start_bytes < one.end_bytes == one.peak_bytes


def test_a_peak_inside_a_period_is_found_by_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "SAMPLE_S", 0.001)
    used = [10]
    with Timeline(lambda: used[0]) as made:
        made.begin("llava", "load")
        used[0] = 99
        until = len(made.samples) + 2
        while len(made.samples) < until:
            time.sleep(0.001)
        used[0] = 20
        made.end()
    (period,) = made.periods
    assert (period.start_bytes, period.peak_bytes, period.end_bytes) == (10, 99, 20)
    assert not made._thread.is_alive()


def test_a_period_that_an_error_ends_has_an_end() -> None:
    with pytest.raises(RuntimeError), Timeline(lambda: 1) as made:
        made.begin("llava", "load")
        raise RuntimeError
    assert [(one.what, one.peak_bytes) for one in made.periods] == [("load", 1)]


@pytest.mark.parametrize("count", [0, 1, MAX_POINTS, MAX_POINTS + 1, 25_000])
def test_a_curve_has_few_points_and_all_peaks(count: int) -> None:
    made = Timeline(lambda: 0)
    made.samples = [(float(at), at % 1000) for at in range(count)]
    points = made.curve()
    assert len(points) <= MAX_POINTS and points == sorted(points)
    assert max(points, key=lambda one: one[1], default=0) == max(
        made.samples, key=lambda one: one[1], default=0
    )


def test_without_a_gpu_the_ram_of_this_process_and_those_it_started_is_measured() -> None:
    meter = meter_of("cpu")
    assert "RAM" in meter.of and 0 < meter.used() < meter.total_bytes
    code = "data = b'x' * 200_000_000; print(len(data), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline()
        with_child = meter.used()
        child.communicate(b"\n")
    assert 150_000_000 < with_child - meter.used() < 1_000_000_000


def test_on_a_gpu_the_memory_of_the_card_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [6_000]
    cuda = SimpleNamespace(mem_get_info=lambda: (free[0], 8_000))
    fake: Any = SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", fake)
    meter = meter_of("cuda:0")
    assert (meter.of, meter.total_bytes) == ("GPU memory in use, by all programs", 8_000)
    assert meter.used() == 2_000
    free[0] = 500
    assert meter.used() == 7_500
