"""A node's inputs as one frozen dataclass: each field is a widget or socket with its default.

`widgets` makes the schema's inputs of the fields, in their order, and `read` makes the dataclass of
what ComfyUI calls a node with that gets lists (`is_input_list`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from comfy_api.latest import io

T = TypeVar("T")

_INPUT, _MIN, _MAX = "input", "min", "max"


class BadInput(ValueError):
    """A value that came over a link cannot be used."""


def widget(make: Callable[[str], Any], **default: Any) -> Any:
    """Return a dataclass field for an input.

    Args:
        make: returns the schema's input for an id, the name of the field.
        default: `default` or `default_factory` of the field; none: a required input.
    """
    return dataclasses.field(**default, metadata={_INPUT: make})


def number(default: float, low: float, high: float, tooltip: str, **more: Any) -> Any:
    """Return a field for a number widget; whole numbers for a whole default."""

    def make(id: str) -> Any:
        limits: dict[str, Any] = {"default": default, "min": low, "max": high} | more
        if isinstance(default, int):
            return io.Int.Input(id, **limits, optional=True, tooltip=tooltip)
        return io.Float.Input(id, **limits, step=0.01, round=0.001, optional=True, tooltip=tooltip)

    return dataclasses.field(default=default, metadata={_INPUT: make, _MIN: low, _MAX: high})


def choice(options: Sequence[str], tooltip: str, *, optional: bool = True, **more: Any) -> Any:
    """Return a field for a list of texts to choose from; the first is the default."""

    def make(id: str) -> Any:
        kind: dict[str, Any] = {"optional": True} if optional else {}
        return io.Combo.Input(
            id, options=list(options), default=options[0], tooltip=tooltip, **kind, **more
        )

    return widget(make, default=options[0])


def switch(default: bool, tooltip: str) -> Any:
    """Return a field for a switch."""
    return widget(
        lambda id: io.Boolean.Input(id, default=default, optional=True, tooltip=tooltip),
        default=default,
    )


def widgets(inputs: type[Any]) -> list[Any]:
    """Return the schema's inputs for the fields of a dataclass."""
    return [field.metadata[_INPUT](field.name) for field in dataclasses.fields(inputs)]


def read(inputs: type[T], values: Mapping[str, Sequence[Any]]) -> tuple[T, BadInput | None]:
    """Return the inputs of a run, and what is wrong with the first bad one.

    A field `list[...]` takes every value; there is one text at least in a `list[str]`. All of a run
    share the value of any other field. A bad value is replaced by the field's default, so that the
    others can be used to report it.

    Args:
        inputs: a dataclass whose fields are made by `widget` and `number`.
        values: {id: [value, ...]}; an optional input may be missing.
    """
    taken: dict[str, Any] = {}
    problem: BadInput | None = None
    for field in dataclasses.fields(inputs):  # pyright: ignore[reportArgumentType]
        given = values.get(field.name) or ()
        if str(field.type) == "list[str]":
            taken[field.name] = [str(value or "") for value in given] or [""]
            continue
        given = [value for value in given if value is not None]
        if str(field.type).startswith("list["):
            taken[field.name] = given
            continue
        if not given:
            continue  # the dataclass has the default
        try:
            taken[field.name] = _shared(field, given)
        except BadInput as error:
            problem = problem or error
            if field.default is dataclasses.MISSING:
                taken[field.name] = given[0]
    return inputs(**taken), problem


def read_rows(inputs: type[T], values: Mapping[str, Sequence[Any]], count: int = 1) -> list[T]:
    """Return the inputs of each row: the i-th value of each list, or its last.

    Args:
        inputs: as `read` takes it.
        values: {id: [value, ...]}; an optional input may be missing.
        count: rows at least; the longest list has as many as there are.
    """
    names = [field.name for field in dataclasses.fields(inputs)]  # pyright: ignore[reportArgumentType]
    lists = {name: values[name] for name in names if values.get(name)}
    count = max([count, *map(len, lists.values())])
    return [
        inputs(**{name: some[min(index, len(some) - 1)] for name, some in lists.items()})
        for index in range(count)
    ]


def _shared(field: dataclasses.Field[Any], given: Sequence[Any]) -> Any:
    value = given[0]
    if any(other != value for other in given):
        raise BadInput(
            f"{field.name} got a list of different values, but all of a run share one. Link one "
            "value, or use a node for each."
        )
    # ComfyUI checks the range of a widget, but not of a linked value.
    if _MIN in field.metadata and not field.metadata[_MIN] <= value <= field.metadata[_MAX]:
        low, high = field.metadata[_MIN], field.metadata[_MAX]
        raise BadInput(f"{field.name} is {value}, but must be from {low} to {high}.")
    return value
