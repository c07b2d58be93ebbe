"""The scene generator: seeded, readable back from its sentence, and drawn where it says."""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCENES = Path(__file__).resolve().parents[2] / "tools" / "toy_vision" / "scenes.py"


@pytest.fixture(scope="module")
def scenes() -> Iterator[ModuleType]:
    """The generator, loaded by path: tools/ is no package of the pack."""
    spec = importlib.util.spec_from_file_location("toy_vision_scenes", SCENES)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_seed_gives_the_same_picture_and_scene_each_time(scenes: ModuleType) -> None:
    first, scene = scenes.draw_scene(7)
    again, same = scenes.draw_scene(7)
    assert scene == same
    assert np.array_equal(np.asarray(first), np.asarray(again))
    other, _ = scenes.draw_scene(8)
    assert first.size != other.size or not np.array_equal(np.asarray(first), np.asarray(other))


def test_held_out_seeds_are_no_training_seeds(scenes: ModuleType) -> None:
    assert len(scenes.HELD_OUT_SEEDS) == 300
    assert not set(scenes.HELD_OUT_SEEDS) & set(
        range(scenes.HELD_OUT_SEEDS.start - 1000, scenes.TRAINING_SEEDS.stop)
    )


def test_scenes_use_every_word_and_one_to_three_objects(scenes: ModuleType) -> None:
    drawn = [scenes.compose(seed).scene for seed in range(600)]
    objects = [o for scene in drawn for o in scene.objects]
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3}
    assert {scene.background for scene in drawn} == set(scenes.BACKGROUNDS)
    assert {o.size for o in objects} == set(scenes.SIZES)
    assert {o.color for o in objects} == set(scenes.COLORS)
    assert {o.shape for o in objects} == set(scenes.SHAPES)
    assert {o.place for o in objects} == set(scenes.PLACES)
    for scene in drawn:
        places = [scenes.PLACES.index(o.place) for o in scene.objects]
        assert places == sorted(set(places)), "reading order, one object in a place"


def test_describe_writes_the_expected_sentences(scenes: ModuleType) -> None:
    circle = scenes.SceneObject("large", "red", "circle", "top left")
    star = scenes.SceneObject("medium", "pink", "star", "center")
    square = scenes.SceneObject("small", "blue", "square", "bottom right")
    assert scenes.describe(scenes.Scene((circle,), "white")) == (
        "A large red circle at the top left, on a white background."
    )
    assert scenes.describe(scenes.Scene((circle, square), "white")) == (
        "A large red circle at the top left and a small blue square at the bottom right, "
        "on a white background."
    )
    assert scenes.describe(scenes.Scene((circle, star, square), "pale blue")) == (
        "A large red circle at the top left, a medium pink star in the center and "
        "a small blue square at the bottom right, on a pale blue background."
    )


def test_parse_reads_back_what_describe_writes(scenes: ModuleType) -> None:
    for seed in range(300):
        scene = scenes.compose(seed).scene
        assert scenes.parse(scenes.describe(scene)) == scene


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "A red circle.",
        "A large red circle at the top left, on a white background",
        "A large red circle at the top left, on a plaid background.",
        "a large red circle at the top left, on a white background.",
        "A large red circle at the center, on a white background.",
        "A large mauve circle at the top left, on a white background.",
        "Look: A large red circle at the top left, on a white background.",
        "A large red circle at the top left, on a white background. And more.",
        "A large red circle at the top left and, on a white background.",
    ],
)
def test_parse_refuses_any_other_sentence(scenes: ModuleType, sentence: str) -> None:
    with pytest.raises(ValueError, match="not a sentence about a scene"):
        scenes.parse(sentence)


def test_each_object_is_painted_in_its_color_in_its_ninth(scenes: ModuleType) -> None:
    for seed in range(60):
        picture, scene = scenes.draw_scene(seed, damaged=False)
        pixels = np.asarray(picture).astype(int)
        for o in scene.objects:
            near = np.abs(pixels - scenes.COLORS[o.color]).max(axis=2) <= scenes.COLOR_JITTER
            row, column = divmod(scenes.PLACES.index(o.place), 3)
            height, width = near.shape
            ninth = near[
                row * height // 3 : (row + 1) * height // 3,
                column * width // 3 : (column + 1) * width // 3,
            ]
            # The thinnest shape, a star, still covers well over its inner circle.
            expected = (0.6 * scenes.SIZES[o.size] * min(width, height)) ** 2
            assert ninth.sum() > expected, (seed, o)


def test_sizes_and_shape_counts_can_be_asked_for(scenes: ModuleType) -> None:
    for count in (1, 2, 3):
        picture, scene = scenes.draw_scene(5, size=(320, 240), objects=count)
        assert picture.size == (320, 240)
        assert picture.mode == "RGB"
        assert len(scene.objects) == count
    with pytest.raises(ValueError, match="1, 2 or 3 objects, not 4"):
        scenes.draw_scene(5, objects=4)


def test_damage_is_slight_and_seeded(scenes: ModuleType) -> None:
    changes = []
    for seed in range(30):
        clean, _ = scenes.draw_scene(seed, damaged=False)
        worn, _ = scenes.draw_scene(seed)
        difference = np.abs(np.asarray(clean).astype(int) - np.asarray(worn).astype(int))
        changes.append(difference.mean())
    assert max(changes) < 9
    assert sum(change > 0 for change in changes) > 15


def test_mirror_exchanges_left_and_right_and_keeps_reading_order(scenes: ModuleType) -> None:
    for seed in range(50):
        scene = scenes.compose(seed).scene
        mirrored = scenes.mirror(scene)
        assert scenes.mirror(mirrored) == scene
        assert scenes.parse(scenes.describe(mirrored)) == mirrored
    left = scenes.SceneObject("small", "red", "star", "bottom left")
    turned = scenes.mirror(scenes.Scene((left,), "black"))
    assert turned.objects == (dataclasses.replace(left, place="bottom right"),)


def test_score_counts_each_object_by_itself(scenes: ModuleType) -> None:
    truth = scenes.parse(
        "A large red circle at the top left, a medium pink star in the center and "
        "a small blue square at the bottom right, on a white background."
    )

    def flags(sentence: str) -> list[tuple[bool, bool]]:
        return [(s.color_and_shape, s.place) for s in scenes.score(sentence, truth)]

    assert flags(scenes.describe(truth)) == [(True, True)] * 3
    # Sizes and backgrounds are not scored.
    assert (
        flags(
            "A small red circle at the top left, a large pink star in the center and "
            "a small blue square at the bottom right, on a black background."
        )
        == [(True, True)] * 3
    )
    # A wrong color, a wrong place, and an object left out.
    assert flags(
        "A large blue circle at the top left and a medium pink star at the right, "
        "on a white background."
    ) == [(False, True), (True, False), (False, False)]
    assert flags("I see nothing.") == [(False, False)] * 3


def test_score_does_not_let_one_named_object_stand_for_two(scenes: ModuleType) -> None:
    truth = scenes.parse(
        "A large red star at the left and a small red star at the right, on a white background."
    )
    got = scenes.score("A small red star at the right, on a white background.", truth)
    assert [(s.color_and_shape, s.place) for s in got] == [(False, False), (True, True)]
