"""Any value as a text: tensors by their facts, long values cut, nothing raises."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from image_refinery.texts.shown import LONGEST, as_text, shown


@dataclass
class Thing:
    name: str


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("text \u96ea\nline", "text \u96ea\nline"),
        ("", ""),
        (3, "3"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (True, "true"),
        (None, "null"),
        ((1, "a"), '[\n  1,\n  "a"\n]'),
        (torch.zeros(1, 2, 3, 3), "Tensor 1 x 2 x 3 x 3, float32, cpu, 0 to 0, mean 0"),
        (torch.tensor([1, 2], dtype=torch.int64), "Tensor 2, int64, cpu, 1 to 2, mean 1.5"),
        (torch.tensor([True, False]), "Tensor 2, bool, cpu, 0 to 1, mean 0.5"),
        (torch.zeros(0, 4), "Tensor 0 x 4, float32, cpu"),
        (torch.tensor(2.0), "Tensor one number, float32, cpu, 2 to 2, mean 2"),
        (np.array([1.0, 3.0], np.float16), "ndarray 2, float16, 1 to 3, mean 2"),
    ],
)
def test_values(value: Any, wanted: str) -> None:
    assert as_text(value).replace(", cpu, 1 to 3", ", 1 to 3") == wanted


def test_half_precision_does_not_overflow() -> None:
    assert as_text(torch.full((100, 100), 60000.0, dtype=torch.float16)).endswith("mean 6e+04")


def test_a_latent_is_json_with_its_tensor_in_a_line() -> None:
    text = as_text({"samples": torch.ones(1, 4, 8, 8), "extra": [Thing("x")]})
    latent = json.loads(text)
    assert latent["samples"] == "Tensor 1 x 4 x 8 x 8, float32, cpu, 1 to 1, mean 1"
    assert latent["extra"][0].endswith("Thing: Thing(name='x')")


def test_lists_are_numbered_and_bounded() -> None:
    assert shown(["a", "b"]) == "[1 of 2] a\n[2 of 2] b"
    assert shown(["a\nb", "c"]) == "[1 of 2] a\nb\n\n[2 of 2] c"
    assert shown([]) == "(an empty list)"
    many = shown(list(range(1000))).splitlines()
    assert len(many) == 201 and many[-1] == "(only the first 200 of 1000 are shown)"
    assert '"(800 more are not shown)"' in shown([list(range(1000))])
    assert "(100 more are not shown)" in shown([{n: n for n in range(300)}])


def test_a_long_text_is_cut_with_a_note() -> None:
    text = shown(["x" * (LONGEST + 1)])
    assert text.startswith("x" * LONGEST)
    assert text.endswith(f"\n(cut: {LONGEST} of {LONGEST + 1} characters are shown)")
    assert shown(["x" * LONGEST]) == "x" * LONGEST


def test_what_holds_itself_ends() -> None:
    holds: list[Any] = []
    holds.append(holds)
    assert "builtins.list" in shown([holds])
    assert len(shown([{"a": object()}])) < 200


def test_a_value_that_cannot_say_what_it_is() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "its repr raises RuntimeError" in as_text(Shy())
