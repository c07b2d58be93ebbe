"""The benchmark of whether ComfyUI's page waits for Ollama."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/page.py, without its pauses."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_page", BENCHMARKS / "page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STALE_S", 0.0)
    monkeypatch.setattr(module, "FORGOTTEN_S", 0.0)
    return module


def test_without_comfyui_nothing_is_measured(
    page: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", "/nonexistent")
    monkeypatch.setattr("sys.argv", ["page"])
    assert page.main() == 0
    assert capsys.readouterr().out.startswith("not measured: no ComfyUI at /nonexistent")


def test_the_states_take_turns_in_every_order(page: Any) -> None:
    asked: list[str] = []
    ways = {state: {"a": lambda state=state: asked.append(state)} for state in page.STATES}
    taken = page.measure(ways, 6)
    assert {tuple(asked[at : at + 3]) for at in range(0, 18, 3)} == set(page.ORDERS)
    assert {state: len(times) for state, times in taken["a"].items()} == dict.fromkeys(
        page.STATES, 6
    )


def times(present: list[float], hanging: list[float]) -> dict[str, dict[str, list[float]]]:
    return {"POST /prompt": {"present": present, "absent": present, "hanging": hanging}}


@pytest.mark.parametrize(
    ("hanging", "sentences"),
    [
        ([4.0, 5.0, 6.0], []),
        ([254.0, 5.0, 6.0], []),  # once is allowed
        ([254.0, 5.0, 6.0, 255.0, 5.0], ["2 requests waited for a server"]),
        ([254.0, 255.0, 256.0], ["POST /prompt: 250.0 ms apart"]),
        ([10.5, 11.5, 12.5], ["POST /prompt: 6.5 ms apart"]),
    ],
)
def test_what_misses_the_target(page: Any, hanging: list[float], sentences: list[str]) -> None:
    present = [4.0, 5.0, 6.0, 5.0, 5.0][: len(hanging)]
    assert page.missed(page.judge(times(present, hanging))) == sentences


@pytest.mark.comfyui
def test_it_measures_a_real_comfyui(page: Any) -> None:
    host = page.from_tests("comfyui/host.py")
    found = host.find_host()
    if isinstance(found, str):
        pytest.skip(found)
    result = page.run(found, host, 1)
    assert [row["request"] for row in result["rows"]] == [
        "GET /object_info/RefineryLLMImageRefine",
        "GET /object_info",
        "POST /prompt",
    ]
    assert all(set(row["median_ms"]) == set(page.STATES) for row in result["rows"])
    assert "| POST /prompt |" in page.to_markdown(result)
