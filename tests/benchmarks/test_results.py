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
