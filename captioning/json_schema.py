"""Check a JSON schema before it is sent to a server.

Ollama turns a schema into a grammar. If it cannot, it ignores the schema or crashes. The library
jsonschema has compiled dependencies and accepts schemas that Ollama cannot use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_ONE = ("items", "additionalProperties", "not")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_DEEPEST = 32


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise a ValueError with the path to the first mistake in a schema.

    >>> check_schema({"type": "object", "properties": {"tags": {"type": "array"}}})
    >>> check_schema({"type": "object", "properties": {"tags": {"type": "list"}}})
    Traceback (most recent call last):
    ...
    ValueError: format: properties.tags.type is "list", but must be one of object, array, string, \
number, integer, boolean, null.
    """
    _check(schema, schema, "")


def _check(schema: Any, root: Mapping[str, Any], place: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _wrong(place, "must be a schema, which is an object in braces")
    if place.count(".") > _DEEPEST:
        raise _wrong(place, f"is more than {_DEEPEST} levels deep")
    given = cast("Mapping[str, Any]", schema)
    _check_type(given, place)
    _check_values(given, place)
    if "$ref" in given:
        _check_reference(given["$ref"], root, f"{place}.$ref")
    for key in _ONE:
        if key in given:
            _check(given[key], root, f"{place}.{key}")
    for key in _LISTS:
        for index, inner in enumerate(_list(given, key, place)):
            _check(inner, root, f"{place}.{key}.{index}")
    for key in _NAMED:
        named: Any = given.get(key, {})
        if not isinstance(named, Mapping):
            raise _wrong(f"{place}.{key}", "must be an object of schemas")
        for name, inner in cast("Mapping[str, Any]", named).items():
            _check(inner, root, f"{place}.{key}.{name}")


def _check_type(schema: Mapping[str, Any], place: str) -> None:
    kinds = schema.get("type", [])
    for kind in cast("list[Any]", kinds) if isinstance(kinds, list) else [kinds]:
        if kind not in _TYPES:
            raise _wrong(f"{place}.type", f'is "{kind}", but must be one of {", ".join(_TYPES)}')


def _check_values(schema: Mapping[str, Any], place: str) -> None:
    if "enum" in schema and not _list(schema, "enum", place):
        raise _wrong(f"{place}.enum", "must hold at least one value")
    required = _list(schema, "required", place)
    if not all(isinstance(name, str) for name in required):
        raise _wrong(f"{place}.required", "must be a list of names")
    properties: Any = schema.get("properties")
    if isinstance(properties, Mapping):
        for name in required:
            if name not in properties:
                raise _wrong(f"{place}.required", f'names "{name}", which is not in properties')
    for key in _COUNTS:
        count: Any = schema.get(key, 0)
        if not isinstance(count, int) or count < 0:
            raise _wrong(f"{place}.{key}", f"is {count}, but must be a whole number from 0")
    pattern: Any = schema.get("pattern", "")
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise _wrong(f"{place}.pattern", f"is not a regular expression ({error})") from None


def _check_reference(reference: Any, root: Mapping[str, Any], place: str) -> None:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise _wrong(place, "must point into the schema itself, such as #/$defs/name")
    target: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        target = (
            cast("Mapping[str, Any]", target).get(part) if isinstance(target, Mapping) else None
        )
    if target is None:
        raise _wrong(place, f'is "{reference}", which is not in the schema')


def _list(schema: Mapping[str, Any], key: str, place: str) -> list[Any]:
    values = schema.get(key, [])
    if not isinstance(values, list):
        raise _wrong(f"{place}.{key}", "must be a list")
    return cast("list[Any]", values)


def _wrong(place: str, what: str) -> ValueError:
    return ValueError(f"format: {place.lstrip('.') or 'the schema'} {what}.")
