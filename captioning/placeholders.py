"""Placeholders in prompts: {name}, {folder}, {tags}, {width} and {height} of the image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NAMES = ("name", "folder", "tags", "width", "height")
"""File name without its ending, name of its folder, existing caption, size in pixels."""

_PLACEHOLDER = re.compile(r"\{(" + "|".join(NAMES) + r")\}")


def used_in(texts: Sequence[str]) -> set[str]:
    """Return the placeholders in texts.

    >>> sorted(used_in(["Describe {name}.", 'JSON such as {"name": 1}, {width} px']))
    ['name', 'width']
    """
    return {name for text in texts for name in _PLACEHOLDER.findall(text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders that have a value; all other braces stay.

    >>> fill("Describe {name} by {tags}. {height}", {"name": "cat_01", "tags": "{name}"})
    'Describe cat_01 by {name}. {height}'
    """
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)
