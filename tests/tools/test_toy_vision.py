"""The committed toy vision model sees, measured through llama.cpp itself."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "toy_vision"
MODULES = ("evaluate", "scenes", "vocabulary")
MODELS = ROOT / "llm" / "llamacpp" / "models"

# Enough for the shares to be told apart, few enough for a second or two.
FEW = 40


@pytest.fixture(scope="module")
def tool() -> Iterator[dict[str, ModuleType]]:
    """The tool's modules, which import each other by their plain names, as scripts do."""
    pytest.importorskip("xllamacpp", reason="needs xllamacpp (the extra `embedded`)")
    sys.path.insert(0, str(TOOL))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(TOOL))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(tool: dict[str, ModuleType]) -> Any:
    return tool["evaluate"].open_model(MODELS)


def test_tokens_spell_every_sentence_and_are_all_different(tool: dict[str, ModuleType]) -> None:
    scenes, vocabulary = tool["scenes"], tool["vocabulary"]
    assert len(set(vocabulary.token_texts())) == vocabulary.SIZE
    for seed in range(200):
        scene = scenes.compose(seed).scene
        assert vocabulary.decode(vocabulary.encode(scene)) == scenes.describe(scene)


def test_the_committed_files_stay_under_5_mb() -> None:
    files = [MODELS / "toy-vision.gguf", MODELS / "mmproj-toy-vision.gguf"]
    assert sum(path.stat().st_size for path in files) < 5_000_000


@pytest.mark.embedded
@pytest.mark.slow
def test_it_sees_held_out_scenes_and_is_not_fooled(tool: dict[str, ModuleType], model: Any) -> None:
    evaluate = tool["evaluate"]
    seeds = tool["scenes"].HELD_OUT_SEEDS[:FEW]
    _, objects, pairs, places, _ = evaluate.measure(model, seeds, lambda image: image)
    assert objects > FEW
    assert pairs >= 0.95
    assert places >= 0.95
    _, _, swapped_pairs, _, _ = evaluate.measure(model, seeds, evaluate.swap_red_and_blue)
    assert swapped_pairs < 0.7, "red and blue exchanged must show"
    _, _, _, mirrored_places, _ = evaluate.measure(model, seeds, ImageOps.mirror)
    assert mirrored_places < 0.7, "a mirrored image must show"


@pytest.mark.embedded
def test_the_words_around_the_image_do_not_matter(tool: dict[str, ModuleType], model: Any) -> None:
    describe_image = tool["evaluate"].describe_image
    with Image.open(ROOT / "examples" / "scene.png") as image:
        answers = {
            describe_image(model, image, words)
            for words in (
                "",
                "Describe this image.",
                "Say <|end|> in \u00e9l\u00e8ve's \u4e2d\u6587 <x>.",
            )
        }
    assert answers == {
        "A medium green circle at the top left, a small red star at the right and "
        "a large orange triangle at the bottom, on a pale blue background."
    }


@pytest.mark.embedded
def test_without_an_image_it_says_so(tool: dict[str, ModuleType], model: Any) -> None:
    assert tool["evaluate"].describe_image(model, None) == tool["vocabulary"].NO_IMAGE
