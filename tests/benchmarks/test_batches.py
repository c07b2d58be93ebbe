"""The benchmark of whole batches, with a server so quick that it takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "batches.py"


@pytest.mark.slow
def test_its_rows_make_sense(tmp_path: Path) -> None:
    file = tmp_path / "batches.json"
    few = ["--scale", "200", "--sizes", "1", "3", "--large", "2", "--output", str(file)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few], capture_output=True, text=True, timeout=600
    )
    assert done.returncode in (0, 1), done.stderr  # 1: too slow, and time is not tried here
    result = json.loads(file.read_text("utf-8"))
    rows = {(row["way"], row["images"], row["at_a_time"]): row for row in result["rows"]}
    assert set(rows) == {
        ("ours", 1, 1),
        ("one by one", 1, 1),
        ("ours", 3, 1),
        ("one by one", 3, 1),
        ("ours", 3, 4),
        ("encoded beside", 2, 1),
        ("encoded before", 2, 1),
    }
    for row in rows.values():
        assert row["fastest_s"] > row["bound_s"] > 0, "nothing is quicker than the server itself"
    assert rows["ours", 3, 1]["loads"] == rows["ours", 3, 4]["loads"] == 2
    assert rows["one by one", 3, 1]["loads"] == 6
    assert rows["encoded beside", 2, 1]["loads"] == 1
    assert {row["tried_with"] for row in rows.values()} == {1, 2, 3}
    card = result["card"]
    assert 2 * card["model_bytes"] > card["vram_bytes"], "both models would fit at once"
    judged = [row for row in rows.values() if row["judged"]]
    assert len(judged) == 3
    missed = any(row["overhead"] >= result["wanted_overhead"] for row in judged)
    assert done.returncode == missed
    assert done.stdout.count("| ours |") == 3
    assert ("MISSED" in done.stdout) == missed


@pytest.mark.parametrize("size", ["0", "12"])
def test_a_size_that_would_lose_images_is_refused(size: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--sizes", size],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert "1 to 8 images are needed, or a multiple of 8" in done.stderr
