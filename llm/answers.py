"""An answer while it streams in: text apart from thinking, bounded, and watched for loops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..texts.characters import whole_characters
from .runaway import RepeatGuard
from .thinking import ThinkSplitter

MAX_ANSWER_CHARS = 2**20
"""A longer answer is cut: memory stays bounded whatever the server sends."""

_TOKEN_TOLERANCE = 64
"""Pieces beyond num_predict before we treat it as ignored: servers count a little differently."""
_FULL_TOKENS = 16
"""Fewer tokens left than this: the context is full."""


class AnswerBuilder:
    """Collects the pieces of one answer.

    Args:
        options: as sent; num_predict, else num_ctx, bounds the answer.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.tokens = 0
        self.repeats = False
        self._max_tokens = _max_tokens(options)
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._chars = 0
        self._splitter = ThinkSplitter()
        self._guards = RepeatGuard(), RepeatGuard()

    @property
    def text(self) -> str:
        return whole_characters("".join(self._text))

    @property
    def thinking(self) -> str:
        return whole_characters("".join(self._thinking))

    @property
    def too_long(self) -> bool:
        """Whether the server ignores num_predict."""
        return self.tokens > self._max_tokens or self._chars > MAX_ANSWER_CHARS

    def add(self, content: str, thinking: str = "") -> str:
        """Take a piece of content and of thinking; return what it adds to the text."""
        self._thinking.append(thinking)
        piece = self._splitter.feed(content)
        self._text.append(piece)
        self.tokens += bool(thinking or content)
        self._chars += len(thinking) + len(content)
        self.repeats = self._guards[0].feed(thinking) or self._guards[1].feed(content)
        return piece

    def finish(self) -> str:
        """Return what was held back because it might have been thinking."""
        rest = self._splitter.finish()
        self._text.append(rest)
        self._thinking.append(self._splitter.thinking)
        return rest


def fills_context(
    num_ctx: int | None, prompt: int | None, answer: int | None, done_reason: str | None
) -> bool:
    """Return whether the context was full; servers cut the prompt silently, but for these counts.

    >>> fills_context(4096, 4090, 5, "stop"), fills_context(4096, 3900, 190, "length")
    (True, True)
    >>> fills_context(4096, 3000, 512, "length"), fills_context(4096, 3900, 190, "stop")
    (False, False)
    """
    if num_ctx is None or prompt is None:
        return False
    used = prompt + (answer or 0 if done_reason == "length" else 0)
    return used >= num_ctx - _FULL_TOKENS


def whole_number(value: Any) -> int | None:
    """Return `value` if it is an int, but no bool, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _max_tokens(options: Mapping[str, Any]) -> float:
    """How many pieces an answer may have, each of one token or more."""
    for name in ("num_predict", "num_ctx"):
        count = whole_number(options.get(name))
        if count is not None and count > 0:
            return count + _TOKEN_TOLERANCE
    return float("inf")
