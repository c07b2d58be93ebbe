"""Assemble a streamed answer: separate text and thinking, limit its length, and detect loops."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ..texts.characters import whole_characters
from .backend import Answer
from .errors import EmptyAnswer, IncompleteAnswer, LLMError
from .runaway import RepeatGuard
from .servers import Server
from .thinking import ThinkSplitter, split_unopened

MAX_ANSWER_CHARS = 2**20
"""Longer answers are cut, so that memory stays bounded whatever the server sends."""

_TOKEN_TOLERANCE = 64
"""Chunks beyond num_predict before we treat it as ignored: servers count a little differently."""
_FULL_TOKENS = 16
"""With fewer tokens left than this, the context counts as full."""


class Piece(NamedTuple):
    """One chunk of a stream: text of the answer, and of the thinking before it."""

    content: str = ""
    thinking: str = ""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of an answer, as the server reports it. Counts are tokens, durations seconds."""

    done_reason: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    total_s: float | None = None
    load_s: float | None = None
    prompt_s: float | None = None
    answer_s: float | None = None


Stream: TypeAlias = Generator[Piece | End, None, None]
"""An answer as a server sends it. More may follow an `End`; without one it is incomplete."""


def stream_answer(
    stream: Stream,
    *,
    model: str,
    server: Server,
    options: Mapping[str, Any],
    num_ctx: int | None,
) -> Generator[str, None, Answer]:
    """Yield the text of an answer in chunks; return the whole `Answer`.

    If the server ignores num_predict (or num_ctx, if num_predict is unset or negative), the answer
    is cut here, with `done_reason` "length" like a cut by the server.

    Args:
        stream: closed at the end in any case.
        options: as sent, by Ollama's names.
        num_ctx: the context that the server uses, in tokens; None: not known.

    Raises:
        EmptyAnswer: the answer has no text; the message has the reason.
        IncompleteAnswer: the stream ended without an `End`, or broke after its first token, or the
            answer repeats itself.
        LLMError: the error that `stream` raised before its first token.
    """
    answer = AnswerBuilder(options)
    end: End | None = None

    def incomplete(why: str, *, repeats: bool = False) -> IncompleteAnswer:
        length = len(answer.text)
        return IncompleteAnswer(model, server, characters=length, why=why, repeats=repeats)

    try:
        with contextlib.closing(stream):
            for part in stream:
                if isinstance(part, End):
                    end = part
                    continue
                if text := answer.add(*part):
                    yield text
                if end is None and answer.repeats:
                    raise incomplete("it repeats itself", repeats=True)
                if end is None and answer.too_long:
                    end = End(done_reason="length")
                    break
    except IncompleteAnswer:
        raise
    except LLMError as error:
        if not answer.tokens:
            raise
        raise incomplete(error.cause) from error
    if rest := answer.finish():
        yield rest
    if end is None:
        why = "the stream ended early: the server stopped, or the model repeats itself"
        raise incomplete(why, repeats=True)
    text, thinking = answer.text.strip(), answer.thinking.strip()
    if not text:
        raise EmptyAnswer(model, server, done_reason=end.done_reason, thought=bool(thinking))
    full = fills_context(num_ctx, end.prompt_tokens, end.answer_tokens, end.done_reason)
    return Answer(text=text, thinking=thinking, context_full=full, **vars(end))


class AnswerBuilder:
    """Collects the chunks of one answer.

    Args:
        options: as sent; num_predict, else num_ctx, limits the answer.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.tokens = 0
        self.repeats = False
        self._max_tokens = _max_tokens(options)
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._chars = 0
        self._splitter = ThinkSplitter()
        self._guard = RepeatGuard()

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
        """Add a chunk of content and thinking; return what it adds to the text."""
        self._thinking.append(thinking)
        piece = self._splitter.feed(content)
        self._text.append(piece)
        self.tokens += bool(thinking or content)
        self._chars += len(thinking) + len(content)
        self.repeats = self._guard.feed(thinking + content)
        return piece

    def finish(self) -> str:
        """Return the text that was held back because it might have been thinking."""
        rest = self._splitter.finish()
        self._text.append(rest)
        self._thinking.append(self._splitter.thinking)
        thought, text = split_unopened("".join(self._text))
        if thought:
            self._thinking.append(thought)
            self._text = [text]
        return rest


def fills_context(
    num_ctx: int | None, prompt: int | None, answer: int | None, done_reason: str | None
) -> bool:
    """Return whether the context was full. Servers cut a prompt silently; only the counts tell.

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
    """Return how many chunks an answer may have, each of one token or more."""
    for name in ("num_predict", "num_ctx"):
        count = whole_number(options.get(name))
        if count is not None and count > 0:
            return count + _TOKEN_TOLERANCE
    return float("inf")
