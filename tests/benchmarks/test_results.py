"""What the benchmarks write, and the page that is made of it: all of it must be of one run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded(file: str) -> Any:
    """Import a script of the checkout."""
    spec = importlib.util.spec_from_file_location(f"bench_{Path(file).stem}", ROOT / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two benchmarks, and the results of an older run."""
    for name in ("client", "page"):
        for file in (f"benchmarks/{name}.py", f"bench-output/{name}.json"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text("{}", "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("extra", "kept"), [([], []), (["client", "--rounds", "1"], ["client.json", "page.json"])]
)
def test_only_a_run_of_all_clears_the_results(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str], kept: list[str]
) -> None:
    dev = loaded("dev.py")
    there: list[str] = []

    def run(*_: object) -> int:
        there[:] = sorted(file.name for file in (checkout / "bench-output").iterdir())
        return 0

    monkeypatch.setattr(dev, "ROOT", checkout)
    monkeypatch.setattr(dev, "run", run)
    assert dev.bench(extra) == 0
    assert there == kept


def test_the_page_wants_all_results_but_that_of_comfyui(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = loaded("tools/performance_page.py")
    monkeypatch.setattr(tool, "BENCHMARKS", checkout / "benchmarks")
    monkeypatch.setattr(tool, "OUTPUT", checkout / "bench-output")
    assert set(tool.last_run()) == {"client", "page"}
    (checkout / "bench-output" / "page.json").unlink()
    assert set(tool.last_run()) == {"client"}
    (checkout / "bench-output" / "client.json").unlink()
    with pytest.raises(SystemExit, match="has no client: run"):
        tool.last_run()


def test_a_target_says_what_was_measured_and_what_is_missed() -> None:
    tool = loaded("tools/performance_page.py")
    rows = [
        {"way": "engine", "at_a_time": 1, "share": 0.99},
        {"way": "engine", "at_a_time": 4, "share": 0.46},
        {"way": "llama.cpp server", "at_a_time": 4, "share": 1.0},
    ]
    assert tool.said(tool._engine, {"engine": {"rows": rows}}) == "99% at 1, **missed: 46% at 4**"
    assert tool.said(tool._engine, {}) == "not measured: no engine"


def test_every_page_has_the_marks_that_the_tool_fills() -> None:
    tool = loaded("tools/performance_page.py")
    tables = tool.TABLES.read_text("utf-8")
    for name in [*(file.stem for file in (ROOT / "benchmarks").glob("[a-z]*.py")), "jobs-long"]:
        assert f"\n\nnew\n\n<!-- /{name} -->" in tool.replaced(tables, name, "new")
    assert "\n\nnew\n\n<!-- /targets -->" in tool.replaced(
        tool.PAGE.read_text("utf-8"), "targets", "new"
    )
    with pytest.raises(ValueError, match="exactly one pair of marks for cats"):
        tool.replaced(tables, "cats", "new")


def test_both_pages_stay_what_they_are() -> None:
    """Two pages of text to read, and no table but that of the targets among it."""
    tool = loaded("tools/performance_page.py")
    lines = tool.PAGE.read_text("utf-8").splitlines()
    assert len(lines) <= 125
    assert sum(line.startswith("| --- ") for line in lines) == 1
    shown = "\n".join(lines)
    for name in ("start", *tool.PLOTS):
        assert f"(images/performance-{name}.png)" in shown
