"""Notice an answer that goes round in circles."""

from __future__ import annotations

WINDOW = 1000
"""So many characters at the end of an answer must be one phrase again and again."""
LONGEST_PHRASE = 100
"""In characters; it stands in the window ten times and more."""


class RepeatGuard:
    """Reads along, and says when the end of the text is only a phrase that repeats itself.

    Ollama ends an answer after some thirty equal tokens, but a phrase of two or more goes on until
    num_predict is used up.

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
        """Take the next piece; True when the text has become a loop."""
        self._unread += piece
        if len(self._unread) < LONGEST_PHRASE:
            return False
        self._tail = (self._tail + self._unread)[-WINDOW:]
        self._unread = ""
        return len(self._tail) == WINDOW and repeats(self._tail)


def repeats(text: str) -> bool:
    """Whether a text is one phrase of at most 100 characters again and again.

    >>> repeats("abc" * 100), repeats("abc" * 100 + "d")
    (True, False)
    """
    return any(
        text[:-length] == text[length:] for length in range(1, min(LONGEST_PHRASE, len(text) - 1))
    )
