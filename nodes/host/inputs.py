"""A node's inputs as one dataclass: each field is a widget or socket with its default.

`widgets` makes the schema's inputs of the fields, in their order, and `read` makes the dataclass of
what ComfyUI calls a node with that gets lists (`is_input_list`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from comfy_api.latest import io

from ..._advice import with_code
from .renamed_values import current_value

T = TypeVar("T")

_INPUT, _MIN, _MAX, _OPTIONS, _LABEL = "input", "min", "max", "options", "label"


class BadInput(ValueError):
    """The value of an input cannot be used."""

    code = "R501"


def advanced(made: Any) -> Any:
    """Mark an input of a schema as advanced: Nodes 2.0 hides it until it is asked for.

    ComfyUI 0.3.64 takes neither `advanced` nor `extra_dict` when an input is made.
    """
    made.extra_dict["advanced"] = True
    return made


def widget(
    make: Callable[[str], Any], *, label: str = "", hide: bool = False, **default: Any
) -> Any:
    """Return a dataclass field for an input.

    Args:
        make: returns the schema's input for an id, the name of the field.
        label: what the page shows in place of the id.
        hide: whether the input is advanced.
        default: `default` or `default_factory` of the field; none: a required input.
    """
    return _field(make, label, hide, {}, **default)


def number(
    default: float,
    low: float,
    high: float,
    tooltip: str,
    *,
    label: str = "",
    hide: bool = False,
    optional: bool = True,
    **more: Any,
) -> Any:
    """Return a field for a number widget; whole numbers for whole limits."""

    def make(id: str) -> Any:
        limits: dict[str, Any] = {"default": default, "min": low, "max": high} | more
        if isinstance(low, int):
            return io.Int.Input(id, **limits, optional=optional, tooltip=tooltip)
        limits = {"step": 0.01, "round": 0.001} | limits
        return io.Float.Input(id, **limits, optional=optional, tooltip=tooltip)

    return _field(make, label, hide, {_MIN: low, _MAX: high}, default=default)


def choice(
    options: Sequence[str],
    tooltip: str,
    *,
    optional: bool = True,
    label: str = "",
    hide: bool = False,
) -> Any:
    """Return a field for a list of texts to choose from; the first is the default."""

    def make(id: str) -> Any:
        kind: dict[str, Any] = {"optional": True} if optional else {}
        return io.Combo.Input(
            id, options=list(options), default=options[0], tooltip=tooltip, **kind
        )

    return _field(make, label, hide, {_OPTIONS: tuple(options)}, default=options[0])


def switch(default: bool, tooltip: str, *, label: str = "", hide: bool = False) -> Any:
    """Return a field for a switch."""
    return widget(
        lambda id: io.Boolean.Input(id, default=default, optional=True, tooltip=tooltip),
        label=label,
        hide=hide,
        default=default,
    )


def same(inputs: type[Any], name: str, *, hide: bool = False) -> Any:
    """Return a dataclass field like the one that other inputs have.

    Args:
        hide: whether the input is advanced here though it is not there.
    """
    (found,) = (field for field in dataclasses.fields(inputs) if field.name == name)
    metadata = dict(found.metadata)
    if hide:
        metadata[_INPUT] = lambda id: advanced(found.metadata[_INPUT](id))
    return dataclasses.field(default=found.default, metadata=metadata)


def widgets(inputs: type[Any]) -> list[Any]:
    """Return the schema's inputs for the fields of a dataclass."""
    return [field.metadata[_INPUT](field.name) for field in dataclasses.fields(inputs)]


def check_choices(inputs: type[Any], **given: Sequence[Any] | None) -> bool | str:
    """Return True, or what is wrong with the first value that its list does not have.

    For `validate_inputs`: ComfyUI leaves the check of a value to a node that names the input there,
    and so values of earlier versions can be queued.

    Args:
        inputs: a dataclass whose fields are made by `choice`.
        given: {id: [value]}; a linked value is None.
    """
    for field in dataclasses.fields(inputs):
        for value in given.get(field.name) or ():
            if value is not None and current_value(field.name, value) not in _options(field):
                return with_code(BadInput(_not_in_list(field, value)))
    return True


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


def _field(
    make: Callable[[str], Any], label: str, hide: bool, limits: dict[str, Any], **default: Any
) -> Any:
    def labeled(id: str) -> Any:
        made = make(id)
        made.display_name = label or None
        return advanced(made) if hide else made

    return dataclasses.field(**default, metadata={_INPUT: labeled, _LABEL: label, **limits})


def _shared(field: dataclasses.Field[Any], given: Sequence[Any]) -> Any:
    value = current_value(field.name, given[0])
    label = _label(field)
    if any(other != given[0] for other in given):
        raise BadInput(
            f"{label} got a list of different values, but all images of a run share one. Connect "
            "one value, or use a node for each."
        )
    # ComfyUI checks a widget's value, but not one that is linked.
    if _MIN in field.metadata and not field.metadata[_MIN] <= value <= field.metadata[_MAX]:
        low, high = field.metadata[_MIN], field.metadata[_MAX]
        raise BadInput(f"{label} is {value}, but must be from {low} to {high}.")
    if (options := _options(field)) and value not in options:
        raise BadInput(_not_in_list(field, value))
    return value


def _options(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    return field.metadata.get(_OPTIONS, ())


def _not_in_list(field: dataclasses.Field[Any], value: Any) -> str:
    options = ", ".join(f'"{option}"' for option in _options(field))
    return f'{_label(field)} is "{value}", but must be one of {options}.'


def _label(field: dataclasses.Field[Any]) -> str:
    return field.metadata[_LABEL] or field.name
