"""What is suspicious about a caption, so that a few of a million can be looked at again."""

from __future__ import annotations

import html
import re
import string
import unicodedata
from array import array
from collections.abc import Container, Iterable
from hashlib import blake2b
from itertools import pairwise

from ..llm.backend import Answer
from .rows import Row

SHORTEST_WORDS = 3
MAX_TOKENS = 225
"""The longest `--max_token_length` of kohya's sd-scripts: what follows is cut off in training."""
MEANINGS = {
    "refusal": "The model refuses to answer.",
    "opening": 'The text begins with words such as "The image shows".',
    "cut": "The answer is cut off.",
    "short": f"The text has fewer than {SHORTEST_WORDS} words.",
    "long": "The text has more than {max_tokens} tokens of CLIP.",
    "duplicate": "Another image has the same text.",
}

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


def all_flags(row: Row, max_tokens: int, repeated: Container[int]) -> list[str]:
    """Return the flags of a row: its own, and those that depend on the job.

    Args:
        repeated: see `repeated_texts`.

    >>> row = {"text": "A red ball.", "flags": []}
    >>> all_flags(row, 3, repeated_texts([row, row]))
    ['long', 'duplicate']
    >>> all_flags(row, 4, ())
    []
    """
    text = row.get("text")
    if text is None:  # a failure, a refined image, or the result of a workflow
        return []
    found = list(row.get("flags", ()))
    if _most_pieces(text) > max_tokens and least_tokens(text) > max_tokens:
        found.append("long")
    if _same(text) in repeated:
        found.append("duplicate")
    return found


_LETTERS_AND_SPACE = f"{string.ascii_letters} ".encode()
_PIECE = re.compile(r"['\u2019](?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
"""CLIP's own pattern; a curly apostrophe counts as a straight one, as some loaders replace it."""


def least_tokens(text: str) -> int:
    """Return how many tokens a text has for CLIP at least, without the two at its ends.

    These are the pieces that CLIP cuts a text into first. Byte-pair encoding splits pieces further,
    but never joins them, so a text has at least as many tokens.

    >>> least_tokens("A red ball's shadow, 1990!?")  # a, red, ball, 's, shadow, comma, 4 digits, !?
    11
    >>> least_tokens("don\u2019t"), least_tokens("cafe\u0301s"), least_tokens("cats &amp; dogs")
    (2, 1, 3)
    """
    # Loaders decode entities and compose accents first, which leaves fewer pieces.
    plain = unicodedata.normalize("NFC", html.unescape(text))
    return len(_PIECE.findall(plain))


def _most_pieces(text: str) -> int:
    """Return a number that `least_tokens` cannot exceed: it spares most texts the slow count.

    A space ends a piece; any other character that is no letter ends one and may be one.
    """
    others = text.encode("utf-8", "surrogatepass").translate(None, _LETTERS_AND_SPACE)
    return 1 + text.count(" ") + 2 * len(others)


def repeated_texts(rows: Iterable[Row]) -> frozenset[int]:
    """Return the hashes of the texts that more than one row has.

    A million texts take 50 MB for a moment: 64 bits of each, whose case and spaces do not count.
    """
    hashes = array("Q", (_same(row["text"]) for row in rows if "text" in row))
    return frozenset(one for one, following in pairwise(sorted(hashes)) if one == following)


def hashed(text: str) -> int:
    """Return 64 bits of a text, the same in every run."""
    return int.from_bytes(
        blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def _same(text: str) -> int:
    return hashed(" ".join(text.casefold().split()))
