"""The benchmark of jobs: what it makes of its measurements, and the listing of a few files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/jobs.py, as a run of it sees itself."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_jobs", BENCHMARKS / "jobs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pause_between_rows_begins_a_chunk(jobs: Any) -> None:
    times = [5.0, 5.1, 8.0, 8.1, 8.2, 20.0]
    assert jobs.chunks_of(times) == [(2, 0.0), (3, 3.1), (1, 11.8)]
    assert jobs.chunks_of(times[:1]) == [(1, 0.0)]


def test_both_ways_find_all_files(jobs: Any) -> None:
    rows = jobs.listing(1600)
    assert [(row["way"], row["files"]) for row in rows] == [
        (way, count) for count in (100, 400, 1600) for way in ("find_items", "Path.rglob")
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert "| 1,600 | find_items |" in jobs.to_markdown({"machine": "here", "files": rows})


@pytest.mark.parametrize(("last_s", "sentences"), [(0.7, 0), (0.9, 1)])
def test_a_file_must_not_take_twice_as_long_among_four_times_as_many(
    jobs: Any, last_s: float, sentences: int
) -> None:
    taken = {100: 0.05, 400: 0.1, 1600: last_s}
    rows = [
        {"way": way, "files": count, "seconds": seconds * times}
        for count, seconds in taken.items()
        for way, times in (("find_items", 1), ("Path.rglob", 9))
    ]
    assert len(jobs.missed({"files": rows})) == sentences


@pytest.mark.parametrize(("share", "sentences"), [(0.019, 0), (0.021, 1)])
def test_swaps_of_the_learned_chunks_are_judged(jobs: Any, share: float, sentences: int) -> None:
    swaps = {"share": 0.05, "share_after_learning": share}
    assert len(jobs.missed({"swaps": swaps})) == sentences
