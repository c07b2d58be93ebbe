"""The benchmark of the time for each token, with answers of a fraction of a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "tokens.py"


@pytest.mark.slow
def test_its_rows_make_sense(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    few = ["--rounds", "1", "--seconds", "0.5", "--output", str(file)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few], capture_output=True, text=True, timeout=600
    )
    assert done.returncode in (0, 1), done.stderr  # 1: too slow, and time is not tried here
    rows = {
        (row["way"], row["wanted_rate"]): row for row in json.loads(file.read_text("utf-8"))["rows"]
    }
    for rate in (1000, 100):
        live, plain = rows["live display", rate], rows["no display", rate]
        assert live["tokens"] == plain["tokens"] == rate // 2
        seconds = live["tokens"] / live["reached_rate"]  # half a one, more on a busy machine
        assert 2 <= live["texts_shown"] <= 10 * seconds + 4, "as it grows, ten times a second"
        assert plain["texts_shown"] == 0
        assert min(live["cpu_us_per_token"], plain["cpu_us_per_token"]) > 0
        assert 0 < live["reached_rate"] < 1.1 * rate, "the server keeps its pace"
    missed = rows["live display", 1000]["cpu_us_per_token"] >= 100
    assert done.returncode == missed
    assert ("MISSED" in done.stdout) == missed
