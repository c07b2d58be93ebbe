"""Separate a model's thinking from its answer."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Removes a leading <think>...</think> from a streamed answer.

    Ollama before 0.12.4, and community models without a thinking template, send the thinking
    inside the text. Only a block at the very beginning counts: an answer may mention the tag.

    >>> splitter = ThinkSplitter()
    >>> pieces = ("  <thi", "nk>a red ", "ball</th", "ink>\\nA ball", ".")
    >>> [splitter.feed(piece) for piece in pieces]
    ['', '', '', 'A ball', '.']
    >>> splitter.thinking, splitter.finish()
    ('a red ball', '')
    >>> plain = ThinkSplitter()
    >>> plain.feed("<thing> is a tag, <think> too")
    '<thing> is a tag, <think> too'
    """

    def __init__(self) -> None:
        self.thinking: str = ""
        self._held: str = ""
        self._state = "start"

    def feed(self, piece: str) -> str:
        """Add a chunk; return the part of the answer that is now known to be text."""
        if self._state == "text":
            return piece
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held = "thinking", begun[len(_OPEN) :]
            elif _OPEN.startswith(begun):
                return ""
            else:
                return self._release()
        if self._state == "thinking" and _CLOSE in self._held:
            self.thinking, _, self._held = self._held.partition(_CLOSE)
            self._state = "gap"
        if self._state == "gap" and self._held.strip():
            self._held = self._held.lstrip()
            return self._release()
        return ""

    def finish(self) -> str:
        """Return the text that was still held back when the stream ended."""
        if self._state == "thinking":
            self.thinking, self._held = self._held, ""
        return self._release().strip()

    def _release(self) -> str:
        self._state = "text"
        text, self._held = self._held, ""
        return text


def split_unopened(text: str) -> tuple[str, str]:
    """Return the thinking and the answer of a text whose <think> was in the prompt.

    Then the answer contains only the closing tag, on a separate line.

    >>> split_unopened("A red ball.\\n</think>\\n\\nA ball.")
    ('A red ball.\\n', '\\n\\nA ball.')
    >>> split_unopened("The tag </think> ends it.")
    ('', 'The tag </think> ends it.')
    """
    thinking, closed, answer = text.partition(_CLOSE)
    is_block = closed and _OPEN not in thinking and (answer.startswith("\n") or not answer)
    if is_block and thinking.rstrip(" ").endswith("\n"):
        return thinking, answer
    return "", text
