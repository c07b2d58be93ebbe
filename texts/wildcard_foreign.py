"""Forms of Impact Pack and Dynamic Prompts that are not replaced here: they stay whole.

    3#__name__                                         a count (Impact Pack)
    ${name=...}  ${name:...}  ${name}                  variables
    __name(x=...)__  __folder/${x}__  __{a|b}/name__   names with values or choices
    {~a|b}  {@a|b}  {!__name__}                        samplers
    %{... text$$text}                                  a wrapper

Without this, replacing the choices and names inside would leave a broken rest in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

TOKEN = r"[$%](?=\{)|(?<!\d)\d{1,3}#(?=__)"
"""What begins a form that is not a brace or a name."""

_COUNTED = re.compile(r"(\d{1,3})#(__(?![\s_])(?:(?!__)[^{}|\r\n]){1,200}(?<![\s\\])__)")
_VARIABLE = re.compile(r"\$\{\s*[A-Za-z_-][\w-]*\s*(?:\?\s*=|[=:}])")
_BOUND = re.compile(r"\{\s*(?:all|\d*-?\d*)\s*\$\$")
_NAME_WITH_VALUES = re.compile(
    r"__(?!\s)(?:(?!__)[^(){}|\r\n]){1,200}\(\s*\w+\s*=[^)\r\n]{0,400}\)__"
    r"|__(?=[\w.*/\\$-])(?:(?!__)[\w.*/\\-]){0,200}"
    r"(?:\$?\{[^{}\r\n]{0,200}\}(?:(?!__)[\w.*/\\-]){0,200}){1,8}__"
)
_SAMPLED = re.compile(r"\s*[~@!](?=[^\s|}])")
_SAMPLED_ALONE = re.compile(
    r"\s*[~@!](?:\d*-?\d*\$\$.*|__[^\s_{}|][^{}|\r\n]{0,200}__\s*)", re.DOTALL
)


class Foreign(NamedTuple):
    """A form that stays.

    Attributes:
        end: the position after it.
        why: what it is and what to write, as the end of a sentence.
    """

    end: int
    why: str


def foreign_form(text: str, at: int, end: int, closing: Mapping[int, int]) -> Foreign | None:
    """Return the form that begins here with a digit, `$`, `%` or `__`; None: there is none.

    Args:
        text: the whole text.
        at: where it begins.
        end: the end of the part that is looked at.
        closing: the position of each closing brace by that of the opening one.
    """
    if found := _COUNTED.match(text, at, end):
        return Foreign(found.end(), f"write {{{found[1]}$${found[2]}}}")
    if found := _NAME_WITH_VALUES.match(text, at, end):
        return Foreign(found.end(), "a name cannot have values or choices in it")
    close = closing.get(at + 1, end)
    if close >= end:
        return None
    if _VARIABLE.match(text, at, end):
        return Foreign(close + 1, "variables of Dynamic Prompts are not supported")
    if (
        text[at] == "%"
        and text.find("$$", at, close) >= 0
        and not _BOUND.match(text, at + 1, close)
    ):
        return Foreign(close + 1, "the wrap command of Dynamic Prompts is not supported")
    return None


def sampler(text: str, choices: list[tuple[int, int]]) -> str:
    """Return why a brace with these choices stays, or "": it names no sampler.

    A sampler's mark is before the first choice only: `{@anna|@ben}` has none.
    """
    first, last = choices[0]
    if not _SAMPLED.match(text, first, last):
        return ""
    others = choices[1:]
    if any(_SAMPLED.match(text, *choice) for choice in others):
        return ""
    if others or _SAMPLED_ALONE.fullmatch(text, first, last):
        return "samplers (~, @, !) are not supported: leave out the mark"
    return ""
