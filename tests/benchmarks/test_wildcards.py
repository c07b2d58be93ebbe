"""The benchmark of large collections of wildcards, with a small one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "wildcards.py"


@pytest.mark.slow
def test_its_figures_make_sense(tmp_path: Path) -> None:
    file = tmp_path / "wildcards.json"
    few = ["--rounds", "1", "--names", "40", "--lines", "5", "--texts", "30"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few, "--output", str(file)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text("utf-8"))
    assert result["names"] == 40 and result["lines"] == 200
    assert 0 < result["stays_mb"] <= result["most_mb"]
    assert all(seconds > 0 for seconds in result["steps"].values())
    assert "| first lookup |" in done.stdout
    ours = [row for row in result["texts"] if row["way"] == "this pack"]
    assert [(row["files"], row["texts"]) for row in ours] == [
        (files, count) for files in ("one YAML file", "small text files") for count in (3, 30)
    ]
    assert all(row["seconds"] > 0 and row["first_s"] > 0 for row in result["texts"])
