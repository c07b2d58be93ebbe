"""A schema is looked at before a request is made; what is wrong is named by its place."""

from __future__ import annotations

from typing import Any

import pytest
from image_refinery.captioning.json_schema import check_schema
from image_refinery.captioning.options import StageOptions

GOOD: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
    {"type": "array", "items": {"type": ["string", "null"]}, "minItems": 1, "maxItems": 3},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#"}}}}},
    {"anyOf": [{"type": "integer"}, {"enum": ["a", 1, None]}], "additionalProperties": False},
    {"type": "string", "pattern": "^[a-z]+$", "title": "unknown words are left alone", "x": 1},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"type": "text"}, 'format: type is "text"'),
    ({"type": {"a": 1}}, "format: type is"),
    ({"properties": ["title"]}, "format: properties must be an object of schemas"),
    ({"properties": {"a": "string"}}, "format: properties.a must be a schema"),
    ({"properties": {"a": {}}, "required": ["b"]}, 'required names "b"'),
    ({"required": "a"}, "format: required must be a list"),
    ({"required": [1]}, "format: required must be a list of names"),
    ({"items": {"type": "array", "items": {"enum": []}}}, "format: items.items.enum must hold"),
    ({"anyOf": {"type": "string"}}, "format: anyOf must be a list"),
    ({"oneOf": [{}, 3]}, "format: oneOf.1 must be a schema"),
    ({"$ref": "#/$defs/none"}, 'format: $ref is "#/$defs/none"'),
    ({"$ref": "http://example.com/s.json"}, "format: $ref must point into the schema itself"),
    ({"pattern": "("}, "format: pattern is not a regular expression"),
    ({"maxItems": -1}, "format: maxItems is -1"),
]


@pytest.mark.parametrize("schema", GOOD)
def test_good_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema(schema)
    assert StageOptions(format=schema).format == schema


@pytest.mark.parametrize(("schema", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_schemas_are_refused_with_the_place(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        StageOptions(format=schema)
    assert words in str(raised.value)


def test_a_bottomless_schema_ends() -> None:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    with pytest.raises(ValueError, match="more than 32 levels"):
        check_schema(schema)
