"""A small typed client for Ollama's HTTP API (servers 0.6 and newer)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, cast

from ..llm.errors import (
    EMBEDDED,
    Cancelled,
    EmptyAnswer,
    IncompleteAnswer,
    ModelNotFound,
    NoThinking,
    OllamaError,
    ServerConfigError,
    ServerUnreachable,
)
from ..llm.http import CancelCheck, Json, Timeouts, Transport
from ..llm.retry import Retries
from ..llm.runaway import RepeatGuard
from ..llm.servers import Server, find_server
from ..llm.thinking import ThinkSplitter
from ..texts.characters import whole_characters

__all__ = [
    "Answer",
    "LoadedModel",
    "Message",
    "Model",
    "OllamaClient",
    "PullProgress",
    "Unloaded",
    "collect",
    "same_model",
]

Think = bool | str
"""False, True, "low", "medium" or "high"."""

UNLOAD_LIMIT_S = 15.0
"""How long an unload may take: Ollama waits up to 5 s for the driver, and for a running request."""


MAX_ANSWER_CHARACTERS = 2**20
"""A longer answer is cut: memory stays bounded whatever the server sends."""

_SLACK_TOKENS = 64
"""A server that counts a little differently is not one that ignores num_predict."""
_FULL_TOKENS = 16
"""So near to num_ctx a context counts as full."""


class Message(TypedDict, total=False):
    """One chat message; `images` are base64 without a data: prefix."""

    role: str
    content: str
    images: list[str]


@dataclass(frozen=True, kw_only=True)
class Model:
    """An installed model.

    Attributes:
        name: with its tag, as Ollama writes it.
        size_bytes: of its files; a fair estimate of the memory that its weights need.
        digest: changes when the model does.
        remote_host: where a cloud model really runs, else "".
        capabilities: Ollama's words (completion, vision, thinking, tools, embedding, ...);
            None: not known.
        context_length: the longest context it was made for, in tokens; None: not known.
    """

    name: str
    size_bytes: int = 0
    digest: str = ""
    remote_host: str = ""
    capabilities: frozenset[str] | None = None
    context_length: int | None = None

    def lacks(self, capability: str) -> bool:
        """Whether the model is known not to have the capability."""
        return self.capabilities is not None and capability not in self.capabilities


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in the server's memory; `vram_bytes` below `size_bytes`: partly on the CPU."""

    name: str
    size_bytes: int = 0
    vram_bytes: int = 0
    context_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a chat gave. Counts are tokens, durations seconds; None where the server said nothing.

    Attributes:
        text: the answer, without thinking.
        thinking: the thinking, kept apart even where the model wrote it into the answer.
        done_reason: "stop", "length" (cut at num_predict or at the context), or None.
        context_full: what was sent and answered filled num_ctx, so that the server dropped a part
            of the prompt, or the end of the answer is missing.
    """

    text: str
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
        """What its reader should know of an answer that did not end by itself, else "".

        >>> Answer(text="A ball", done_reason="length").remark
        'The answer was cut at num_predict. Raise it in Ollama Options.'
        >>> Answer(text="A ball.", done_reason="stop").remark
        ''
        """
        if self.context_full:
            return (
                "The context was full: a part of what was sent, or the end of the answer, is "
                "missing. Raise num_ctx in Ollama Options, or send less."
            )
        if self.done_reason == "length":
            return "The answer was cut at num_predict. Raise it in Ollama Options."
        return ""


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """One line of a pull: Ollama's status text, and bytes where it counts them."""

    status: str
    completed_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Unloaded:
    """What an unload gave back; not `confirmed`: still listed when the time was up."""

    model: str
    vram_bytes: int = 0
    confirmed: bool = True


@dataclass
class OllamaClient:
    """One server, one session. Not for several threads at once: make one client for each.

    Every method raises a child of `OllamaError`; those with `cancelled` poll it at least every
    0.1 s, close the connection when it says yes, and raise `Cancelled`. None asks twice: that is
    for callers, by `retry.patiently` and `retries`.
    """

    server: Server = field(default_factory=find_server)
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        if self.server.url == EMBEDDED:
            from ..llm import llamacpp

            try:
                url = llamacpp.start_shared()
            except llamacpp.EngineMissing as error:
                raise ServerConfigError(str(error)) from error
            self.server = replace(self.server, url=url, embedded=True)
        self._transport = Transport(self.server, self.timeouts)

    def __enter__(self) -> OllamaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Base URL of the server, without credentials."""
        return self._transport.url

    @property
    def place(self) -> str:
        """The server as messages name it; see `errors`."""
        return self._transport.place

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def version(self) -> str:
        """Return the server's version, such as "0.33.0"."""
        return str(self._transport.get("/api/version").get("version", ""))

    def models(self, cancelled: CancelCheck | None = None) -> list[Model]:
        """Return the installed models; capabilities where the server lists them (0.30 on)."""
        reply = self._transport.get("/api/tags", cancelled)
        return [_model(entry) for entry in _objects(reply.get("models"))]

    def show(self, model: Model, cancelled: CancelCheck | None = None) -> Model:
        """Return `model` with the capabilities and the context length that /api/show tells.

        Raises:
            ModelNotFound: the server does not have it.
        """
        reply = self._transport.post("/api/show", {"model": model.name}, cancelled)
        info = reply.get("model_info")
        lengths = [
            value
            for key, value in (cast("Json", info) if isinstance(info, dict) else {}).items()
            if key.endswith(".context_length") and isinstance(value, int)
        ]
        return Model(
            name=model.name,
            size_bytes=model.size_bytes,
            digest=model.digest,
            remote_host=model.remote_host or str(reply.get("remote_host") or ""),
            capabilities=_capabilities(reply),
            context_length=lengths[0] if lengths else None,
        )

    def find(self, name: str, cancelled: CancelCheck | None = None) -> Model:
        """Return the installed model of that name, with what is known of its capabilities.

        What /api/show says of a digest never changes, so it is asked once per digest and process.

        Raises:
            ModelNotFound: the server does not have it.
        """
        return self.with_capabilities(self.pick(self.models(cancelled), name), cancelled)

    def pick(self, models: Sequence[Model], name: str) -> Model:
        """Return the model of that name from a list of `models`, or raise ModelNotFound."""
        for model in models:
            if same_model(model.name, name):
                return model
        raise ModelNotFound(name, self.place)

    def with_capabilities(self, model: Model, cancelled: CancelCheck | None = None) -> Model:
        """Return `model` with capabilities; asks the server only for a digest not seen before."""
        if model.capabilities is not None:
            return model
        known = _shown_by_digest.get(model.digest) if model.digest else None
        if known is None:
            known = self.show(model, cancelled)
            if model.digest:
                while len(_shown_by_digest) >= _SHOWN_LIMIT:
                    _shown_by_digest.pop(next(iter(_shown_by_digest)))
                _shown_by_digest[model.digest] = known
        return Model(
            name=model.name,
            size_bytes=model.size_bytes,
            digest=model.digest,
            remote_host=model.remote_host or known.remote_host,
            capabilities=known.capabilities,
            context_length=model.context_length or known.context_length,
        )

    def loaded(self, cancelled: CancelCheck | None = None) -> list[LoadedModel]:
        """Return the models that the server holds in memory."""
        reply = self._transport.get("/api/ps", cancelled)
        return [
            LoadedModel(
                name=str(entry.get("name") or entry.get("model") or ""),
                size_bytes=_whole(entry.get("size")) or 0,
                vram_bytes=_whole(entry.get("size_vram")) or 0,
                context_length=_whole(entry.get("context_length")),
            )
            for entry in _objects(reply.get("models"))
        ]

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
        """Yield the pieces of the answer as they come; return the whole `Answer`.

        Closing the generator closes the connection, and Ollama stops. `collect` runs it to its end.

        Args:
            options: Ollama's own names (temperature, num_ctx, ...); a change of num_ctx between
                two calls makes the server load the model again.
            think: leave it None for models without thinking: some servers refuse any value.
            format: "json", or a JSON schema.
            keep_alive: seconds that the model stays loaded after the answer, or text such as "5m".
            timeout_s: for the first byte; None: as in `timeouts`.

        An answer is cut, as by the server itself (`done_reason` "length"), when it goes on after
        num_predict, or after num_ctx where num_predict is unset or negative.

        Raises:
            EmptyAnswer: not a word came, with the reason.
            IncompleteAnswer: the stream ended without its last line, or broke after its first
                token, or goes round in circles.
            OllamaError: any other; see `errors`.
        """
        body: Json = {"model": model, "messages": list(messages), "stream": True}
        optional = {"think": think, "format": format, "keep_alive": keep_alive}
        body |= {key: value for key, value in optional.items() if value is not None}
        if options:
            body["options"] = dict(options)
        growing = _Growing(options or {})
        last: Json = {}
        lines = self._transport.stream(
            "/api/chat",
            body,
            doing=f'loading or running "{model}"',
            first_byte_s=timeout_s,
            cancelled=cancelled,
        )
        try:
            with contextlib.closing(cast("Generator[Json, None, None]", lines)):
                for line in lines:
                    if piece := growing.read(line):
                        yield piece
                    if line.get("done"):
                        last = line
                    elif growing.loops:
                        raise self._incomplete(model, growing.text, "it repeats itself")
                    elif growing.overlong:
                        last = {"done": True, "done_reason": "length"}
                        break
        except (Cancelled, IncompleteAnswer):
            raise
        except OllamaError as error:
            if not growing.tokens:
                raise
            raise self._incomplete(model, growing.text, error.cause) from error
        if rest := growing.finish():
            yield rest
        return self._answer(model, growing, last, options or {})

    def load(
        self,
        model: str,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str | None = None,
        timeout_s: float | None = None,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Load a model and return when it is loaded. Give the num_ctx that the chats will have."""
        body: Json = {"model": model, "messages": []}
        if options:
            body["options"] = dict(options)
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        lines = self._transport.stream(
            "/api/chat",
            body,
            doing=f'loading "{model}"',
            first_byte_s=timeout_s,
            cancelled=cancelled,
        )
        for _ in lines:
            pass

    def unload(
        self,
        model: str,
        *,
        limit_s: float = UNLOAD_LIMIT_S,
        cancelled: CancelCheck | None = None,
    ) -> Unloaded:
        """Unload a model and watch /api/ps until it is gone, for `limit_s` seconds at most.

        A model that is not loaded, and a cloud model, is left alone; calling twice is safe.
        """
        request: Json = {"model": model, "keep_alive": 0}
        try:
            before = self._loaded(model, cancelled)
        except (Cancelled, ServerUnreachable):
            raise
        except OllamaError:
            # Who cannot say what is loaded can unload it all the same.
            self._transport.post("/api/generate", request, cancelled)
            raise
        if before is None:
            return Unloaded(model=model)
        self._transport.post("/api/generate", request, cancelled)
        deadline = time.monotonic() + limit_s
        pause_s = 0.005
        while self._loaded(model, cancelled) is not None:
            if time.monotonic() > deadline:
                return Unloaded(model=model, vram_bytes=0, confirmed=False)
            time.sleep(pause_s)
            # Looking costs 2 ms, and the next model waits for what is noticed late.
            pause_s = min(pause_s * 1.1, 0.05)
        return Unloaded(model=model, vram_bytes=before.vram_bytes)

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Fetch a model from Ollama's library, yielding progress; closing the iterator cancels."""
        body: Json = {"model": model, "stream": True}
        lines = self._transport.stream(
            "/api/pull", body, doing=f'fetching "{model}"', cancelled=cancelled
        )
        status = ""
        for line in lines:
            status = _text(line.get("status"))
            yield PullProgress(
                status=status,
                completed_bytes=_whole(line.get("completed")) or 0,
                total_bytes=_whole(line.get("total")) or 0,
            )
        if status != "success":
            raise IncompleteAnswer(
                model, self.place, characters=0, why=f'the pull ended at "{status}"'
            )

    def check_think(self, model: Model, think: Think | None) -> Think | None:
        """Return what to send as `think`: nothing at all to a model without thinking.

        Raises:
            NoThinking: thinking is asked of a model that is known not to think.
        """
        if think and model.lacks("thinking"):
            raise NoThinking(model.name, self.place)
        thinks = model.capabilities is not None and "thinking" in model.capabilities
        return think if think or thinks else None

    def _loaded(self, model: str, cancelled: CancelCheck | None) -> LoadedModel | None:
        return next((m for m in self.loaded(cancelled) if same_model(m.name, model)), None)

    def _incomplete(self, model: str, text: str, why: str) -> IncompleteAnswer:
        return IncompleteAnswer(model, self.place, characters=len(text), why=why)

    def _answer(
        self, model: str, growing: _Growing, last: Json, options: Mapping[str, Any]
    ) -> Answer:
        text, thinking = growing.text, growing.thinking
        if not last:
            why = "no last line came: a server stops so when it ends, or a model repeats itself"
            raise self._incomplete(model, text, why)
        reason = last.get("done_reason")
        done_reason = reason if isinstance(reason, str) else None
        if not text.strip():
            raise EmptyAnswer(
                model, self.place, done_reason=done_reason, thought=bool(thinking.strip())
            )
        prompt_tokens = _whole(last.get("prompt_eval_count"))
        answer_tokens = _whole(last.get("eval_count"))
        return Answer(
            text=text.strip(),
            thinking=thinking.strip(),
            done_reason=done_reason,
            prompt_tokens=prompt_tokens,
            answer_tokens=answer_tokens,
            total_s=_seconds(last.get("total_duration")),
            load_s=_seconds(last.get("load_duration")),
            prompt_s=_seconds(last.get("prompt_eval_duration")),
            answer_s=_seconds(last.get("eval_duration")),
            context_full=_fills(
                _whole(options.get("num_ctx")), prompt_tokens, answer_tokens, done_reason
            ),
        )


class _Growing:
    """An answer while it comes in."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.tokens = 0
        self.loops = False
        self._limit = _limit(options)
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._characters = 0
        self._splitter = ThinkSplitter()
        self._guards = RepeatGuard(), RepeatGuard()

    @property
    def text(self) -> str:
        return whole_characters("".join(self._text))

    @property
    def thinking(self) -> str:
        return whole_characters("".join(self._thinking))

    @property
    def overlong(self) -> bool:
        """The server does not keep to num_predict."""
        return self.tokens > self._limit or self._characters > MAX_ANSWER_CHARACTERS

    def read(self, line: Json) -> str:
        """Take a line; return what it adds to the text."""
        message: Any = line.get("message")
        if not isinstance(message, dict):
            return ""
        fields = cast("Json", message)
        thought, content = _text(fields.get("thinking")), _text(fields.get("content"))
        self._thinking.append(thought)
        piece = self._splitter.feed(content)
        self._text.append(piece)
        self.tokens += bool(thought or content)
        self._characters += len(thought) + len(content)
        self.loops = self._guards[0].feed(thought) or self._guards[1].feed(content)
        return piece

    def finish(self) -> str:
        """Return what was held back in case it were thinking."""
        rest = self._splitter.finish()
        self._text.append(rest)
        self._thinking.append(self._splitter.thinking)
        return rest


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


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model to Ollama.

    >>> same_model("llava", "llava:latest"), same_model("llava:13b", "llava")
    (True, False)
    >>> same_model("hf.co/org/model:Q4_K_M", "HF.co/org/model:q4_K_M")
    True
    """
    return _full_name(one) == _full_name(other)


_SHOWN_LIMIT = 1000
_shown_by_digest: dict[str, Model] = {}


def _limit(options: Mapping[str, Any]) -> float:
    """How many pieces an answer may have, each of one token or more."""
    for name in ("num_predict", "num_ctx"):
        count = _whole(options.get(name))
        if count is not None and count > 0:
            return count + _SLACK_TOKENS
    return float("inf")


def _fills(
    num_ctx: int | None, prompt: int | None, answer: int | None, done_reason: str | None
) -> bool:
    """Whether a context was full; servers cut the prompt without a word but these counts.

    >>> _fills(4096, 4090, 5, "stop"), _fills(4096, 3900, 190, "length")
    (True, True)
    >>> _fills(4096, 3000, 512, "length"), _fills(4096, 3900, 190, "stop")
    (False, False)
    """
    if num_ctx is None or prompt is None:
        return False
    used = prompt + (answer or 0 if done_reason == "length" else 0)
    return used >= num_ctx - _FULL_TOKENS


def _full_name(name: str) -> str:
    name = name.strip().lower()
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def _model(entry: Json) -> Model:
    details: Any = entry.get("details")
    fields = cast("Json", details) if isinstance(details, dict) else {}
    return Model(
        name=str(entry.get("name") or entry.get("model") or ""),
        size_bytes=_whole(entry.get("size")) or 0,
        digest=_text(entry.get("digest")),
        remote_host=_text(entry.get("remote_host")),
        capabilities=_capabilities(entry),
        context_length=_whole(fields.get("context_length")),
    )


def _capabilities(entry: Json) -> frozenset[str] | None:
    listed: Any = entry.get("capabilities")
    if not isinstance(listed, list):
        return None
    return frozenset(str(word) for word in cast("list[Any]", listed))


def _objects(value: Any) -> list[Json]:
    if not isinstance(value, list):
        return []
    return [cast("Json", entry) for entry in cast("list[Any]", value) if isinstance(entry, dict)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(nanoseconds: Any) -> float | None:
    whole = _whole(nanoseconds)
    return None if whole is None else whole / 1e9
