"""Detect an answer that repeats itself."""

from __future__ import annotations

WINDOW = 1000
"""The number of characters at the end of an answer that must be one repeated phrase."""
LONGEST_PHRASE = 100
"""In characters; the window contains it at least ten times."""


class RepeatGuard:
    """Detects that the end of a growing text is only one repeated phrase.

    Ollama stops an answer after about thirty equal tokens, but not a repeated phrase of two or more
    tokens: that continues up to num_predict.

    >>> guard = RepeatGuard()
    >>> any(guard.feed("blue, ") for _ in range(100))
    False
    >>> any(guard.feed("blue, ") for _ in range(100))
    True
    >>> any(RepeatGuard().feed(f"{number} times blue, ") for number in range(1000))
    False
    """

    def __init__(self) -> None:
        self._tail = ""
        self._unread = ""

    def feed(self, piece: str) -> bool:
        """Add the next chunk; return True if the text has become a loop."""
        self._unread += piece
        if len(self._unread) < LONGEST_PHRASE:
            return False
        self._tail = (self._tail + self._unread)[-WINDOW:]
        self._unread = ""
        return len(self._tail) == WINDOW and repeats(self._tail)


def repeats(text: str) -> bool:
    """Return whether a text is one repeated phrase of at most 100 characters.

    >>> repeats("abc" * 100), repeats("abc" * 100 + "d")
    (True, False)
    """
    return any(
        text[:-length] == text[length:] for length in range(1, min(LONGEST_PHRASE, len(text) - 1))
    )
