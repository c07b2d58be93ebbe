"""What every language-model server can do, and the data that goes in and comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict

from .errors import NoThinking
from .http import CancelCheck, Json
from .retry import Retries
from .servers import Server

Think = bool | str
"""False, True, "low", "medium" or "high"."""


class Message(TypedDict, total=False):
    """One chat message; `images` are base64 without a data: prefix."""

    role: str
    content: str
    images: list[str]


@dataclass(frozen=True, kw_only=True)
class Model:
    """An installed model.

    Attributes:
        name: with its tag, as the server writes it.
        size_bytes: of its files, a fair estimate of the memory for its weights; None: not known.
        digest: changes when the model does.
        remote_host: where a cloud model runs, else "".
        capabilities: in Ollama's words (completion, vision, thinking, tools, embedding, ...);
            None: not known.
        not_told: capabilities of which the server says nothing.
        context_length: the longest context it can have here, in tokens; None: not known.
        note: what a person should know who uses it, as a sentence, or "".
    """

    name: str
    size_bytes: int | None = None
    digest: str = ""
    remote_host: str = ""
    capabilities: frozenset[str] | None = None
    not_told: frozenset[str] = frozenset()
    context_length: int | None = None
    note: str = ""

    def lacks(self, capability: str) -> bool:
        """Whether the model is known not to have the capability."""
        if self.capabilities is None or capability in self.not_told:
            return False
        return capability not in self.capabilities


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in the server's memory; `vram_bytes` below `size_bytes`: partly on the CPU."""

    name: str
    size_bytes: int = 0
    vram_bytes: int = 0
    context_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a chat returned. Counts are tokens, durations seconds; None: the server did not say.

    Attributes:
        text: the answer, without thinking.
        model: that wrote it, or "".
        thinking: the thinking, kept apart even where the model wrote it into the answer.
        done_reason: "stop", "length" (cut at num_predict or at the context), or None.
        context_full: what was sent and answered filled num_ctx, so that the server dropped a part
            of the prompt, or the end of the answer is missing.
    """

    text: str
    model: str = ""
    thinking: str = ""
    done_reason: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    total_s: float | None = None
    load_s: float | None = None
    prompt_s: float | None = None
    answer_s: float | None = None
    context_full: bool = False

    @property
    def remark(self) -> str:
        """What a reader should know of an answer that is not whole, else "".

        >>> Answer(text="A ball", done_reason="length").remark
        'The answer was cut at num_predict.'
        >>> Answer(text="A ball.", done_reason="stop").remark
        ''
        """
        if self.context_full:
            return (
                "The context was full: a part of what was sent, or the end of the answer, is "
                "missing."
            )
        return "The answer was cut at num_predict." if self.done_reason == "length" else ""


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """One step of a pull: the server's status text, and bytes where it counts them."""

    status: str
    completed_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Unloaded:
    """What an unload freed.

    Attributes:
        confirmed: the server no longer lists the model as loaded.
        possible: the server can be asked to unload it.
    """

    model: str
    vram_bytes: int = 0
    confirmed: bool = True
    possible: bool = True


class Backend(Protocol):
    """One language-model server. Several threads may use it at a time.

    Methods with `cancelled` poll it at least every 0.1 s, close the connection when it returns
    True, and raise `Cancelled`. Every other failure is an `LLMError`. No method retries: that is
    for callers, by `with_retries` and `retries`.
    """

    server: Server
    retries: Retries

    @property
    def unloads_always(self) -> bool:
        """Whether models leave after their stage, whoever loaded them, unless its entry says no."""
        ...

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of options that the server does not take."""
        ...

    def list(self, cancelled: CancelCheck | None = None) -> Sequence[Model]:
        """Return the installed models, with capabilities where the server lists them."""
        ...

    def show(self, model: Model, cancelled: CancelCheck | None = None) -> Model:
        """Return `model` with its capabilities and context length."""
        ...

    def find(
        self,
        name: str,
        cancelled: CancelCheck | None = None,
        *,
        models: Sequence[Model] | None = None,
    ) -> Model:
        """Return the installed model of that name, as `show` does.

        Args:
            models: what `list` returned; None: ask for it.

        Raises:
            ModelNotFound: the server does not have it.
        """
        ...

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models in the server's memory."""
        ...

    def load(
        self,
        model: str,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str | None = None,
        timeout_s: float | None = None,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Load a model and return when it is loaded."""
        ...

    def unload(self, model: str, *, cancelled: CancelCheck | None = None) -> Unloaded:
        """Unload a model and wait until the server no longer lists it."""
        ...

    def chat(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        options: Mapping[str, Any] | None = None,
        think: Think | None = None,
        format: str | Json | None = None,
        keep_alive: float | str | None = None,
        timeout_s: float | None = None,
        cancelled: CancelCheck | None = None,
    ) -> Generator[str, None, Answer]:
        """Yield the pieces of the answer as they come; return the `Answer`."""
        ...

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Fetch a model, yielding progress."""
        ...

    def same_model(self, one: str, other: str) -> bool:
        """Return whether two names mean the same model to this server."""
        ...

    def copy(self) -> Backend:
        """Return another client of the same server, which is closed apart from this one."""
        ...

    def close(self) -> None:
        """Close idle connections."""
        ...


def with_assumed(model: Model, server: Server) -> Model:
    """Return `model` with the capabilities that the server's entry assumes.

    >>> seeing = Server(assume=frozenset({"vision"}))
    >>> model = with_assumed(Model(name="m", capabilities=frozenset({"completion"})), seeing)
    >>> sorted(model.capabilities)
    ['completion', 'vision']
    """
    if not server.assume:
        return model
    if model.capabilities is not None:
        return replace(model, capabilities=model.capabilities | server.assume)
    assumed = server.assume | {"completion"}
    return replace(model, capabilities=assumed, not_told=frozenset({"thinking"}))


def think_value(model: Model, think: Think | None, server: Server) -> Think | None:
    """Return what to send as `think`: None, nothing at all, for a model without thinking.

    Raises:
        NoThinking: thinking is asked of a model that is known not to think.
    """
    if think and model.lacks("thinking"):
        raise NoThinking(model.name, server)
    thinks = model.capabilities is not None and "thinking" in model.capabilities
    return think if think or thinks else None


def collect(
    tokens: Generator[str, None, Answer], on_token: Callable[[str], None] | None = None
) -> Answer:
    """Run a chat to its end, hand each piece to `on_token`, return the answer."""
    with contextlib.closing(tokens):
        while True:
            try:
                piece = next(tokens)
            except StopIteration as end:
                return end.value
            if on_token is not None:
                on_token(piece)
