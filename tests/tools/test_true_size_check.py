"""The comparison at the true size, without its 6 GB: limits, controls, and what ours records."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TINY = TOOLS / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/true_size_check.py."""
    spec = importlib.util.spec_from_file_location("check", TOOLS / "true_size_check.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["check"] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOLS.parent / "benchmarks"))
    del sys.modules["check"]


@pytest.fixture
def results(tool: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of ours and of ComfyUI with which every row is good."""
    native = {title: torch.randn(1, 4, 8, 8) for title in tool.ROWS}
    ours = {title: tensor + 1e-6 for title, tensor in native.items()}
    return ours | {mistake: native[of] + 1 for mistake, of in tool.CONTROLS.items()}, native


def report(
    tool: Any, folder: Path, ours: dict[str, torch.Tensor], native: dict[str, torch.Tensor]
) -> int:
    """Write what the two processes would write, and print the report."""
    figures = {"versions": {"torch": "0"}, "seconds": {"load": 1}, "own_ram_bytes": {"loaded": 1}}
    for side, tensors in (("ours", ours), ("native", native)):
        save_file(tensors, folder / f"{side}.safetensors")
        (folder / f"{side}.json").write_text(json.dumps(figures), "utf-8")
    return tool.report(folder, (128, 64))


def test_what_is_within_all_limits_is_good(
    tool: Any, results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tool, tmp_path, *results) == 0
    printed = capsys.readouterr().out
    assert printed.count("| good |") == len(tool.ROWS) + len(tool.CONTROLS)
    assert "FAILED" not in printed


def test_a_row_above_and_a_control_below_their_limits_both_fail(
    tool: Any, results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, native = results
    ours["VAE encode, mean"][0, 0, 0, 0] += 1
    ours["another prompt"] = native[tool.CONTROLS["another prompt"]].clone()
    assert report(tool, tmp_path, ours, native) == 1
    printed = capsys.readouterr().out
    assert "FAILED: too different" in printed
    assert "FAILED: the mistake does not show" in printed
    assert printed.endswith("FAILED: VAE encode, mean; another prompt\n")


@pytest.mark.parametrize("bad", ["missing", "shape", "nan"])
def test_what_cannot_be_compared_fails(tool: Any, results: Any, bad: str) -> None:
    ours, native = results
    if bad == "missing":
        del ours["image, end to end"]
    else:
        wrong = torch.zeros(1, 4, 8, 4) if bad == "shape" else torch.full((1, 4, 8, 8), torch.nan)
        ours["image, end to end"] = wrong
    rows = tool.compare(ours, native)
    assert [row.title for row in rows if not row.is_good] == ["image, end to end"]


def test_ours_records_every_row_and_every_mistake_shows(tool: Any, tmp_path: Path) -> None:
    shutil.copy2(TINY, tmp_path / tool.CHECKPOINT)
    shutil.copytree(TINY.with_suffix(""), (tmp_path / tool.CHECKPOINT).with_suffix(""))
    tool.run_ours(tmp_path, 128, 64, tmp_path)
    ours = load_file(tmp_path / "ours.safetensors")
    assert ours.keys() >= {*tool.ROWS, *tool.CONTROLS}
    rows = tool.compare(ours, ours)
    assert [row.largest for row in rows if not row.is_control] == [0] * len(tool.ROWS)
    assert all(row.largest > 0 for row in rows if row.is_control)
    figures = json.loads((tmp_path / "ours.json").read_text("utf-8"))
    assert figures["own_ram_bytes"].keys() == {
        *("before", "loaded", "refined", "unloaded", "closed")
    }


def test_what_the_machine_lacks_is_a_sentence(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["true_size_check", "--keep", str(tmp_path)])
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert tool.main() == 2
    assert capsys.readouterr().err.startswith("There is nothing to compare with: no ComfyUI at ")
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * 10**9))
    with pytest.raises(RuntimeError, match=r"3\.0 GB of RAM are free, but ComfyUI needs"):
        tool.require_ram()


@pytest.mark.parametrize("size", ["256x256", "320", "320x250", "0x64"])
def test_a_size_that_would_hide_a_mistake_is_refused(tool: Any, size: str) -> None:
    with pytest.raises(tool.argparse.ArgumentTypeError, match="two different multiples of 64"):
        tool.image_size(size)
