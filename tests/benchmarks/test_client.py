"""The benchmark of the client's time, with small pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "client.py"


@pytest.mark.slow
def test_its_rows_make_sense(tmp_path: Path) -> None:
    file = tmp_path / "client.json"
    few = ["--rounds", "2", "--sides", "64", "512", "1600", "--output", str(file)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = {row["side_px"]: row for row in json.loads(file.read_text("utf-8"))["rows"]}
    assert set(rows) == {64, 512, 1600}
    for row in rows.values():
        for way in (row["ours"], row["peers"]):
            assert way["requests"] == 1
            assert 0 < way["first_byte_ms"] <= way["total_ms"]
        assert row["ratio"] == row["peers"]["total_ms"] / row["ours"]["total_ms"]
    assert rows[512]["ours"]["body_bytes"] < rows[512]["peers"]["body_bytes"] / 3
    # Ours sends no more than 1344 px a side.
    assert rows[1600]["ours"]["body_bytes"] < rows[1600]["peers"]["body_bytes"] / 4
    assert done.stdout.count("| 1600 |") == 1
