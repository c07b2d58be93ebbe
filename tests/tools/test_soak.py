"""The soak: each node has a case, the page tells how often it ran, and a killed process ends it."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

SOAK = Path(__file__).resolve().parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    """tools/soak.py."""
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cases(comfy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """soak_cases can be imported."""
    monkeypatch.syspath_prepend(SOAK.parent)
    monkeypatch.syspath_prepend(SOAK.parents[1] / "tests")  # for drawn_splats


def test_a_process_is_a_new_one_and_may_be_killed(tool: Any) -> None:
    assert tool.call_in_process(os.getpid) != os.getpid()
    with pytest.raises(BrokenProcessPool):
        tool.call_in_process(os._exit, 9)


def test_a_killed_process_is_a_sentence_and_a_failure(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(tool, "call_in_process", killed)
    monkeypatch.setattr(sys, "argv", ["soak", "--runs", "1", "--only", "Free Memory"])
    assert tool.main() == 1
    assert capsys.readouterr().out.startswith("Free Memory: its process was killed")


@pytest.mark.usefixtures("cases")
def test_each_node_has_a_case_or_a_reason(tool: Any) -> None:
    import soak_cases

    soak_cases.check_cases(tool.LEFT_OUT)
    assert set(tool.NODES) == set(soak_cases.CASES)
    with pytest.raises(AssertionError, match="Refine with Model"):
        soak_cases.check_cases(())


def test_the_page_tells_how_often_and_what_did_not_run(tool: Any) -> None:
    figures = tool.Figures(50, 250.0, 600_000, 2, 0, 11, 0.0)
    one = tool.Soaked([figures, figures], Counter(answer=50), ["a fault"], 0.0, 0, 1.0, "It is.")
    text = tool.page({"Save Caption": one}, 50)
    assert "Each node of the table runs 50 times" in text
    assert "| Save Caption | 250.0 to 250.0 |" in text and "\nSave Caption: It is.\n" in text
    assert "Refine with Model, because it needs ComfyUI's own sampler" in text


@pytest.mark.usefixtures("cases")
def test_lists_of_installed_packages_are_not_growth(
    ollama: FaultyOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soak_cases

    def blocks() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    monkeypatch.setattr(soak_cases, "place_checkpoints", lambda: None)
    case = soak_cases.check_setup(ollama)
    monkeypatch.syspath_prepend(tmp_path)
    case.rest()
    before = blocks()
    for second in range(60):
        os.utime(tmp_path, (second, second))
        metadata.version("requests")
    grown = blocks() - before
    case.rest()
    assert blocks() - before < grown / 4
