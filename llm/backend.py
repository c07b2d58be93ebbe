"""The interface of every language-model server, and its data types."""

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
        size_bytes: size of its files, a good estimate of its weights in memory; None: not known.
        digest: changes when the model changes.
        remote_host: where a cloud model runs, else "".
        capabilities: by Ollama's names (completion, vision, thinking, tools, embedding, ...);
            None: not known.
        not_told: capabilities about which the server reports nothing.
        context_length: the longest context it can have here, in tokens; None: not known.
        note: one sentence for the users of this model, or "".
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
    """The answer to a chat. Counts are tokens, durations seconds; None: the server did not say.

    Attributes:
        text: the answer, without thinking.
        model: the model that wrote it, or "".
        thinking: the thinking, separated even if the model wrote it into the answer.
        done_reason: "stop", "length" (cut at num_predict or at the context), or None.
        context_full: prompt and answer filled num_ctx, so that the server dropped a part of the
            prompt, or the end of the answer is missing.
        kept: it is from an earlier run.
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
    kept: bool = False

    @property
    def remark(self) -> str:
        """One sentence on why the answer is incomplete, or "".

        >>> Answer(text="A ball", done_reason="length").remark
        'The answer was cut at num_predict.'
        >>> Answer(text="A ball.", done_reason="stop").remark
        ''
        """
        if self.context_full:
            return (
                "The context was full: part of the request, or the end of the answer, is missing."
            )
        return "The answer was cut at num_predict." if self.done_reason == "length" else ""


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """One step of a pull: the server's status text, and bytes if it counts them."""

    status: str
    completed_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Unloaded:
    """The result of an unload.

    Attributes:
        confirmed: the server no longer lists the model as loaded.
        possible: the server's API can unload it.
    """

    model: str
    vram_bytes: int = 0
    confirmed: bool = True
    possible: bool = True


class Backend(Protocol):
    """One language-model server. Several threads may use it at a time.

    Methods with `cancelled` poll it at least every 0.1 s, close the connection when it returns
    True, and raise `Cancelled`. Every other failure is an `LLMError`. No method retries: callers
    do, with `with_retries` and `retries`.
    """

    server: Server
    retries: Retries

    @property
    def unloads_always(self) -> bool:
        """Whether a model is unloaded after its stage even if another program had loaded it.

        The server's entry in image-refinery.toml overrides this.
        """
        ...

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of options that the server does not support."""
        ...

    def list(self, cancelled: CancelCheck | None = None) -> Sequence[Model]:
        """Return the installed models, with capabilities if the server lists them."""
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
            models: the result of `list`; None: call it.

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
        parallel: int = 1,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Load a model and return when it is loaded.

        Args:
            parallel: how many requests it shall answer at a time. Only the embedded engine sets
                this; servers have a setting of their own.
        """
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
        """Yield the answer in chunks as they arrive; return the `Answer`."""
        ...

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Download a model, yielding progress."""
        ...

    def same_model(self, one: str, other: str) -> bool:
        """Return whether two names mean the same model to this server."""
        ...

    def copy(self) -> Backend:
        """Return another client of the same server; it has to be closed separately."""
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
    """Return the value to send as `think`; None for a model without thinking: send nothing.

    Raises:
        NoThinking: thinking was requested from a model that is known not to support it.
    """
    if think and model.lacks("thinking"):
        raise NoThinking(model.name, server)
    thinks = model.capabilities is not None and "thinking" in model.capabilities
    return think if think or thinks else None


def collect(
    tokens: Generator[str, None, Answer], on_token: Callable[[str], None] | None = None
) -> Answer:
    """Run a chat to its end, call `on_token` with each chunk, and return the answer."""
    with contextlib.closing(tokens):
        while True:
            try:
                piece = next(tokens)
            except StopIteration as end:
                return end.value
            if on_token is not None:
                on_token(piece)
