"""Words that an answer must or must not contain."""

from __future__ import annotations

import re
from collections.abc import Sequence


def broken(text: str, must: Sequence[str], must_not: Sequence[str]) -> str:
    """Return what is wrong with a text as the end of a sentence; "" if nothing is.

    Whole words or phrases count, in any case of their letters.

    >>> broken("A photo of a Cat.", ["ohwx", "cat"], ["photo", "image"])
    'must contain "ohwx", and must not contain "photo"'
    >>> broken("scattered", ["cat"], [])
    'must contain "cat"'
    >>> broken("ohwx cat", ["OHWX"], ["image"])
    ''
    """
    rules = (
        ("must contain", [word for word in must if not contains(text, word)]),
        ("must not contain", [word for word in must_not if contains(text, word)]),
    )
    parts = [f"{rule} {_quoted(words)}" for rule, words in rules if words]
    return ", and ".join(parts)


def contains(text: str, word: str) -> bool:
    """Return whether a text contains a word or phrase as a whole.

    >>> contains("a red-brown cat", "red"), contains("scarred", "red")
    (True, False)
    """
    spaced = r"\s+".join(map(re.escape, word.split()))
    return bool(spaced and re.search(rf"(?<!\w){spaced}(?!\w)", text, re.IGNORECASE))


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def repair_request(problem: str) -> str:
    """Return the message that asks for a corrected answer."""
    return (
        f"Your text {problem}. Write it again so that it does. Change as little else as possible. "
        "Reply with the text only."
    )
