"""Ollama Options over the stub: what is not set stays unset, and bad values are one sentence."""

from __future__ import annotations

from typing import Any

import pytest
from image_refinery.captioning.options import StageOptions
from image_refinery.llm.http import Timeouts


@pytest.fixture
def node() -> Any:
    from image_refinery.nodes.ollama_options import OllamaOptions

    return OllamaOptions


def options(node: Any, **inputs: Any) -> StageOptions:
    return node.execute(**inputs).result[0]


def test_nothing_set_is_the_pack_s_default(node: Any) -> None:
    assert options(node) == StageOptions()


def test_what_is_set_has_ollama_s_own_names(node: Any) -> None:
    made = options(
        node, num_predict=64, num_ctx=8192, min_p=0.05, repeat_penalty=1.0, stop="END\n\nSTOP",
        think="high", timeout_s=30, parallel=4, lossless=True, free_memory="never",
    )  # fmt: skip
    assert made.model_options == {
        "num_predict": 64,
        "num_ctx": 8192,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "stop": ["END", "STOP"],
    }
    assert (made.think_value, made.timeout_s, made.parallel) == ("high", 30.0, 4)
    assert made.lossless and made.free_memory == "never"


def test_zero_is_a_value(node: Any) -> None:
    assert options(node, min_p=0.0).model_options == {"min_p": 0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_predict", 131073), ("num_ctx", -2), ("min_p", -0.5), ("repeat_penalty", float("nan"))],
)
def test_a_linked_value_out_of_range_is_named(node: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}, but must be from 0 to"):
        options(node, **{name: value})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", None), (" JSON ", "json"), ('{"type": "object"}', {"type": "object"})],
)
def test_formats(node: Any, text: str, wanted: Any) -> None:
    assert options(node, format=text).format == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("xml", "neither empty, nor the word json, nor a JSON schema"),
        ("[1]", "must be a JSON schema, which is an object"),
        ('{"type": "objekt"}', 'format: type is "objekt"'),
        ('{"properties": {"a": {"type": "array", "items": 1}}}', "format: properties.a.items"),
    ],
)
def test_a_bad_format_is_refused_before_any_request(node: Any, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(node, format=text)


def test_everything_is_optional_and_has_a_tooltip(node: Any) -> None:
    schema = node.define_schema()
    assert all(one.optional and one.tooltip for one in schema.inputs)
    assert schema.outputs[0].get_io_type() == "REFINERY_OPTIONS" and schema.outputs[0].tooltip


def test_the_timeout_s_tooltip_names_the_default(node: Any) -> None:
    (timeout,) = (one for one in node.define_schema().inputs if one.id == "timeout_s")
    assert timeout.tooltip.endswith(f"-1 waits {Timeouts().first_byte_s:.0f}.")
