"""The benchmark of what ComfyUI pays for the pack when it starts."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/imports.py, as a run of it sees itself."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("COMFYUI_PATH", "/nonexistent")
    spec = importlib.util.spec_from_file_location("bench_imports", BENCHMARKS / "imports.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pack(first_s: float, **words: Any) -> dict[str, Any]:
    return {"first_s": first_s, "heavy": [], "error": None} | words


@pytest.mark.slow
def test_it_measures_the_pack_over_the_stub(
    imports: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["imports", "--rounds", "1", "--output", f"{tmp_path}/a.json"])
    code = imports.main()
    result = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert code == bool(result["missed"])
    assert "no ComfyUI at /nonexistent" in result["comfyui"]
    ours, empty = result["packs"][imports.OURS], result["packs"][imports.EMPTY]
    assert 0.001 < ours["first_s"] <= ours["process_s"]
    assert 0 < empty["first_s"] < ours["first_s"]
    assert ours["heavy"] == [] and ours["error"] is None and empty["error"] is None
    assert "nodes.sdxl_refiner" in result["slowest_us"]
    assert result["own_modules"] > 30
    assert "| this-pack |" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_pack_does_wrong_is_seen(imports: Any, tmp_path: Path) -> None:
    """An old-style pack in one file that imports a heavy library, and one that breaks."""
    heavy, broken = tmp_path / "heavy.py", tmp_path / "broken.py"
    heavy.write_text(
        "import sys, types\nsys.modules['accelerate'] = types.ModuleType('accelerate')\n"
        "NODE_CLASS_MAPPINGS = {'One': object}\n"
    )
    broken.write_text("raise OSError('no such disk')\n")
    assert imports.other_packs(tmp_path) == [broken, heavy]
    found, _ = imports.load(Path(sys.executable), imports.STUB, [heavy, broken], dict(os.environ))
    assert found["heavy.py"]["heavy"] == ["accelerate"]
    assert found["heavy.py"]["nodes"] == ["One"]
    assert "requests" in found["heavy.py"]["had_heavy"]
    assert found["broken.py"]["error"] == "OSError: no such disk"


def test_comfyui_s_rules_for_names(imports: Any, tmp_path: Path) -> None:
    for name in ("a", "b.disabled", "__pycache__", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "empty" / "__init__.py").unlink()
    (tmp_path / "example_node.py.example").touch()
    assert imports.other_packs(tmp_path) == [tmp_path / "a"]
    assert imports.other_packs(tmp_path / "not there") == []


def test_the_least_of_several_logs_counts(imports: Any) -> None:
    logs = [
        "import time: self [us] | cumulative | imported package\n"
        f"import time:       {one} |      90000 |   measured_0_x_dot_y.nodes\n"
        for one in (900, 700)
    ]
    assert imports.self_times(logs) == {"measured_0_x_dot_y.nodes": 700}
    assert imports.own(["measured_0_x_dot_y.nodes", "measured_0_x_dot_y", "json"]) == [
        "nodes",
        "__init__",
    ]


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (pack(0.0505), []),
        (pack(0.0515), ["50.5 ms above the empty pack"]),
        (pack(0.01, heavy=["diffusers"]), ["it imports diffusers"]),
        (pack(0.01, error="OSError: gone"), ["this-pack does not load: OSError: gone"]),
    ],
)
def test_what_misses_the_target(imports: Any, ours: dict[str, Any], words: list[str]) -> None:
    assert imports.missed({imports.EMPTY: pack(0.001), imports.OURS: ours}) == words
