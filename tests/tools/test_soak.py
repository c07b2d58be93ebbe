"""The soak's processes: it must not wait for one that was killed."""

from __future__ import annotations

import importlib.util
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).resolve().parents[2] / "tools" / "soak.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    """tools/soak.py."""
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None and spec.loader is not None
    module = sys.modules["soak"] = importlib.util.module_from_spec(spec)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


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
