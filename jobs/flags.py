"""What is suspicious about a caption, so that a few of a million can be looked at again."""

from __future__ import annotations

import re

from ..llm.backend import Answer

SHORTEST_WORDS = 3

_REFUSAL = re.compile(
    r"\b(?:i(?:['\u2019]m| am) (?:sorry|unable|not able)"
    r"|i (?:cannot|can['\u2019]t|won['\u2019]t)|as an ai)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\A\W*(?:(?:the|this) (?:image|photo|picture|photograph|drawing)\b"
    r"|in (?:the|this) (?:image|photo|picture)\b|here(?:['\u2019]s| is)\b)",
    re.IGNORECASE,
)
_BEGINNING = 200
"""A refusal is at the beginning; a sign in an image may say "I can't" anywhere."""


def flags_of(answer: Answer) -> list[str]:
    """Return the flags of one caption.

    >>> flags_of(Answer(text="I'm sorry, but I can't describe this image."))
    ['refusal']
    >>> flags_of(Answer(text="The image shows a red ball on snow.", done_reason="length"))
    ['opening', 'cut']
    >>> flags_of(Answer(text="A ball.")), flags_of(Answer(text="A red ball on snow."))
    (['short'], [])
    """
    text = answer.text
    found = {
        "refusal": bool(_REFUSAL.search(text[:_BEGINNING])),
        "opening": bool(_OPENING.match(text)),
        "cut": bool(answer.remark),
        "short": len(text.split()) < SHORTEST_WORDS,
    }
    return [name for name, is_so in found.items() if is_so]
