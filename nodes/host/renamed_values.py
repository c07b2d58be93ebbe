"""Combo values of earlier versions, which saved workflows still hold."""

from __future__ import annotations

from typing import Any

_RENAMED = {
    "batch_mode": {
        "each image": "one text per image",
        "all images in one question": "one text for all images",
    },
    "on_error": {
        "give the message": "output error text",
        "pass the image on": "return original image",
    },
    "working_size": {"as it is": "keep size"},
}
"""{input id: {value of version 0.1: today's value}}"""


def current_value(id: str, value: Any) -> Any:
    """Return today's name of a combo's value.

    >>> current_value("working_size", "as it is"), current_value("working_size", "auto")
    ('keep size', 'auto')
    """
    renamed = _RENAMED.get(id, {})
    return renamed.get(value, value) if isinstance(value, str) else value
