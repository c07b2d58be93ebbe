"""Convert any value to readable text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from typing import Any, cast

LONGEST = 20_000
"""The most characters of a text that are shown; with more, the page becomes slow."""
_DEEPEST = 8
_MOST_ENTRIES = 200
_SHORT = 60
"""Characters of an entry of a list. Longer ones have a blank line between them."""


def shown(values: Sequence[Any]) -> str:
    """Return the values of one input of a node as text; several values are numbered.

    >>> print(shown(["a cat"]))
    a cat
    >>> print(shown([1.5, None]))
    [1 of 2] 1.5
    [2 of 2] null
    """
    if len(values) == 1:
        return cut(as_text(values[0]))
    count = len(values)
    listed = islice(enumerate(values, start=1), _MOST_ENTRIES)
    lines = [f"[{number} of {count}] {as_text(value)}" for number, value in listed]
    if count > _MOST_ENTRIES:
        lines.append(f"(only the first {_MOST_ENTRIES} of {count} are shown)")
    is_long = any(len(line) > _SHORT or "\n" in line for line in lines)
    return cut(("\n\n" if is_long else "\n").join(lines) or "(an empty list)")


def as_text(value: Any) -> str:
    """Return one value as text: texts unchanged, tensors in one line, other values as JSON.

    >>> as_text({"a": [1, float("nan")], "b": {2}})
    '{\\n  "a": [\\n    1,\\n    "nan"\\n  ],\\n  "b": [\\n    2\\n  ]\\n}'
    """
    if isinstance(value, str):
        return value
    plain = _plain(value, 0)
    return plain if isinstance(plain, str) else json.dumps(plain, indent=2, ensure_ascii=False)


def cut(text: str) -> str:
    """Return a text; if it is too long for a page, cut it and add a note."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n(cut: {LONGEST} of {len(text)} characters are shown)"


def tensor_text(tensor: Any) -> str:
    """Return the shape, type, device, range and mean of a tensor or an array."""
    size = " x ".join(str(length) for length in tensor.shape) or "one number"
    parts = [f"{type(tensor).__name__} {size}", str(tensor.dtype).removeprefix("torch.")]
    if device := getattr(tensor, "device", None):
        parts.append(str(device))
    if math.prod(tensor.shape) and "complex" not in parts[1]:
        values = tensor if "bool" not in parts[1] else tensor * 1
        low, high = float(values.min()), float(values.max())
        parts.append(f"{low:.4g} to {high:.4g}, mean {_mean(values):.4g}")
    return ", ".join(parts)


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor or a numpy array, without importing either."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc"
    )


def _mean(values: Any) -> float:
    # a sum in half precision overflows, and whole numbers have no mean of their own type
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        return float(values.mean(dtype=torch.float32))
    return float(values.mean(dtype="float64"))


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if is_tensor(value):
        return tensor_text(value)
    if depth < _DEEPEST and isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        plain = {str(k): _plain(v, depth + 1) for k, v in islice(entries.items(), _MOST_ENTRIES)}
        return plain | _left_out(len(entries))
    if depth < _DEEPEST and isinstance(value, (list, tuple, Set)):
        items = cast("Sequence[Any]", value)
        listed = [_plain(item, depth + 1) for item in islice(items, _MOST_ENTRIES)]
        return [*listed, *_left_out(len(items)).values()]
    return f"{type(value).__module__}.{type(value).__qualname__}: {_one_line(value)}"


def _left_out(count: int) -> dict[str, str]:
    more = count - _MOST_ENTRIES
    return {"...": f"({more} more are not shown)"} if more > 0 else {}


def _one_line(value: object) -> str:
    try:
        line = " ".join(repr(value).split())
    except Exception as error:  # noqa: BLE001 (the class may be of any node pack)
        line = f"its repr raises {type(error).__name__}"
    return line if len(line) <= 500 else line[:500] + "..."
