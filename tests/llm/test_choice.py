"""Which model is used where nobody named one."""

from __future__ import annotations

from typing import Any

import pytest
from image_refinery.llm.backend import Model
from image_refinery.llm.choice import choose, instead_of, last_used, remember

GB = 10**9
SEES, WRITES = frozenset({"completion", "vision"}), frozenset({"completion"})
BIG = Model(name="big", size_bytes=20 * GB, capabilities=SEES)
MIDDLE = Model(name="middle", size_bytes=8 * GB, capabilities=SEES)
SMALL = Model(name="small", size_bytes=2 * GB, capabilities=SEES)
TEXT = Model(name="text", size_bytes=1 * GB, capabilities=WRITES)
UNKNOWN = Model(name="unknown", size_bytes=1 * GB)
TOY = Model(name="toy", size_bytes=1, capabilities=SEES, note="toy is a stand-in.")
CLOUD = Model(name="cloud", capabilities=SEES, remote_host="https://ollama.com")
EMBEDDING = Model(name="embedding", size_bytes=1, capabilities=frozenset({"embedding"}))
ALL = [EMBEDDING, CLOUD, TOY, UNKNOWN, TEXT, SMALL, MIDDLE, BIG]


@pytest.mark.parametrize(
    ("models", "how", "name"),
    [
        # by memory
        (ALL, {"room_bytes": 24 * GB}, "middle"),
        (ALL, {"room_bytes": 25 * GB}, "big"),
        (ALL, {"room_bytes": 10 * GB}, "middle"),
        (ALL, {"room_bytes": 1 * GB}, "small"),
        (ALL, {"room_bytes": None}, "small"),
        # by use
        (ALL, {"room_bytes": 24 * GB, "loaded": ["small"]}, "small"),
        (ALL, {"room_bytes": 24 * GB, "last": "small"}, "small"),
        (ALL, {"loaded": ["big"], "last": "middle"}, "big"),
        (ALL, {"loaded": ["big", "middle"], "last": "middle"}, "middle"),
        (ALL, {"loaded": ["text"], "last": "text"}, "small"),
        (ALL, {"last": "gone"}, "small"),
        # stand-ins, unknown capabilities and the cloud come last
        ([TOY, UNKNOWN], {"loaded": ["toy"], "last": "toy"}, "unknown"),
        ([TOY, TEXT], {}, "toy"),
        ([UNKNOWN, BIG], {"loaded": ["unknown"], "last": "unknown"}, "big"),
        ([UNKNOWN, TEXT], {}, "unknown"),
        ([CLOUD, BIG], {"room_bytes": 1 * GB}, "big"),
        ([CLOUD, BIG], {"last": "cloud"}, "cloud"),
        ([CLOUD, TEXT], {}, "cloud"),
    ],
)
def test_a_model_for_images(models: list[Model], how: dict[str, Any], name: str) -> None:
    for order in (models, models[::-1]):
        chosen = choose(order, "vision", **how)
        assert chosen is not None and chosen.name == name


def test_a_model_for_text() -> None:
    chosen = choose(ALL, "completion")
    assert chosen is TEXT, "the smallest"
    assert choose([TOY, EMBEDDING], "completion") is None, "a stand-in writes nothing"
    assert choose([TEXT, EMBEDDING], "vision") is None
    assert choose([], "vision") is None


def test_equal_models_are_chosen_alike() -> None:
    twins = [Model(name=name, size_bytes=GB, capabilities=SEES) for name in ("b", "a", "c")]
    chosen = choose(twins, "vision")
    assert chosen is not None and chosen.name == "a"


def test_models_that_would_do_are_named_with_the_best_known_first() -> None:
    assert instead_of([TOY, UNKNOWN, TEXT, MIDDLE, SMALL], "vision") == [
        "middle",
        "small",
        "unknown",
    ]
    assert instead_of([TOY, TEXT], "completion") == ["text"]
    assert instead_of([EMBEDDING], "completion") == []


def test_the_last_model_is_kept_by_address_and_task() -> None:
    remember("http://one", "vision", "llava")
    assert last_used("http://one", "vision") == "llava"
    assert last_used("http://one", "completion") == last_used("http://two", "vision") == ""
