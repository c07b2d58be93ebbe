"""A server with OpenAI's chat API, as a Backend. The subclasses in `kinds` add further features."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

from ..answers import Stream, stream_answer, whole_number
from ..backend import (
    Answer,
    LoadedModel,
    Message,
    Model,
    PullProgress,
    Think,
    Unloaded,
    with_assumed,
)
from ..errors import (
    BadRequest,
    Cancelled,
    LLMError,
    ModelNotFound,
    ServerTimeout,
    UnexpectedResponse,
    WrongForm,
)
from ..failures import explain, words_of
from ..http import POLL_S, CancelCheck, Http, Json, Timeouts, json_object
from ..retry import Retries
from ..servers import Server
from .options import OPENAI_NAMES, OptionNames, left_out, translate
from .stream import read_stream

UNLOAD_TIMEOUT_S = 15.0
NOT_TOLD = frozenset({"thinking"})
"""These servers do not report which models support thinking."""
_PNG = "iVBOR"
"""The beginning of base64 of a PNG."""


@dataclass
class OpenAIClient:
    """A server with only OpenAI's API: it cannot list loaded models or unload a model."""

    server: Server
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)

    option_names: ClassVar[OptionNames] = OPENAI_NAMES
    body_defaults: ClassVar[Mapping[str, Any]] = {}
    """The defaults of unset options, by the server's names."""
    can_unload: ClassVar[bool] = False
    has_think_switch: ClassVar[bool] = False
    """Whether the chat template's enable_thinking can be set."""

    def __post_init__(self) -> None:
        self._http = Http(self.server, self.timeouts)
        self._contexts: dict[str, int | None] = {}
        # Models that the server may still be loading after a cancel or time-out.
        self._given_up: set[str] = set()

    def __enter__(self) -> OpenAIClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def copy(self) -> OpenAIClient:
        """Return another client of the same server; it has to be closed separately."""
        other = replace(self)
        other._given_up |= self._given_up
        return other

    @property
    def unloads_always(self) -> bool:
        """False: other programs may use the server too."""
        return False

    def same_model(self, one: str, other: str) -> bool:
        """Return whether two names are equal."""
        return one.strip() == other.strip()

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of options that this kind of server does not support."""
        names = left_out(options, self.option_names)
        return [name for name in names if not (name == "think" and self.has_think_switch)]

    def context_of(self, model: str) -> int | None:
        """Return the context of a model on this server, in tokens; None: not known (yet)."""
        return self._contexts.get(model)

    def list(self, cancelled: CancelCheck | None = None) -> Sequence[Model]:
        """Return the server's models, with the properties that it reports."""
        listed = [model for model in self._list(cancelled) if model.name]
        models = [with_assumed(model, self.server) for model in listed]
        self._contexts |= {model.name: model.context_length for model in models}
        return models

    def show(self, model: Model, cancelled: CancelCheck | None = None) -> Model:
        """Return `model`: the list already has everything."""
        return model

    def find(
        self,
        name: str,
        cancelled: CancelCheck | None = None,
        *,
        models: Sequence[Model] | None = None,
    ) -> Model:
        """Return the model of that name; llama.cpp itself would accept a wrong name.

        Raises:
            ModelNotFound: the server does not list it.
        """
        for model in self.list(cancelled) if models is None else models:
            if self.same_model(model.name, name):
                return model
        raise ModelNotFound(name, self.server)

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models in the server's memory, if it reports them."""
        return ()

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
        """Do nothing: the first request loads the model."""

    def unload(self, model: str, *, cancelled: CancelCheck | None = None) -> Unloaded:
        """Unload a model, and wait until the server no longer lists it as loaded.

        An abandoned load may still continue: this first waits for it.
        """
        before = self._loaded(model, cancelled)  # this also finds out whether it is a router
        if not self.can_unload:
            return Unloaded(model=model, confirmed=False, possible=False)
        if before is None and model in self._given_up:
            self._wait(
                lambda: self._loaded(model, cancelled) is not None, UNLOAD_TIMEOUT_S, cancelled
            )
            before = self._loaded(model, cancelled)
        if before is None:
            return Unloaded(model=model)
        self._unload(model, cancelled)
        gone = self._wait(
            lambda: self._loaded(model, cancelled) is None, UNLOAD_TIMEOUT_S, cancelled
        )
        return Unloaded(model=model, vram_bytes=before.vram_bytes if gone else 0, confirmed=gone)

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
        """Yield the answer in chunks as they arrive; return the whole `Answer`.

        Closing the generator closes the connection, and the server stops.

        Args:
            options: by Ollama's names; unsupported ones are left out.
            think: left out if the server has no switch for it.
            format: "json", or a JSON schema.
            keep_alive: ignored: no server of this family accepts it in a request.
            timeout_s: for the first byte; None: as in `timeouts`.

        Raises:
            EmptyAnswer, IncompleteAnswer: as in `llm.answers.stream_answer`.
            LLMError: any other; see `llm.errors`.
        """
        return stream_answer(
            self._stream(
                self._body(model, messages, options or {}, think, format),
                doing=f'loading or running "{model}"',
                first_byte_s=timeout_s,
                cancelled=cancelled,
            ),
            model=model,
            server=self.server,
            options=options or {},
            num_ctx=self.context_of(model),
        )

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Raise BadRequest: no server of this family downloads models by its API."""
        raise BadRequest(
            f"{self.server.product or 'This server'} cannot download models by its API."
        )

    # Overridden by kinds

    def _list(self, cancelled: CancelCheck | None) -> Sequence[Model]:
        entries = self._objects("/v1/models", "data", cancelled)
        return [Model(name=text(entry.get("id"))) for entry in entries]

    def _unload(self, model: str, cancelled: CancelCheck | None) -> None:
        raise NotImplementedError

    # Shared by kinds

    def _loaded(self, model: str, cancelled: CancelCheck | None) -> LoadedModel | None:
        return next((m for m in self.ps(cancelled) if self.same_model(m.name, model)), None)

    def _body(
        self,
        model: str,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        think: Think | None,
        format: str | Json | None,
    ) -> Json:
        body: Json = {
            "model": model,
            "messages": [_message(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {**self.body_defaults, **translate(options, self.option_names)}
        if format is not None:
            schema = {"type": "object"} if format == "json" else format
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            }
        if self.has_think_switch:
            template: Json = {"enable_thinking": bool(think)}
            if isinstance(think, str):
                template["reasoning_effort"] = think
            body["chat_template_kwargs"] = template
        return body

    def _stream(self, body: Json, **how: Any) -> Stream:
        with (
            self._explained("/v1/chat/completions", body["model"]),
            contextlib.closing(self._http.stream("/v1/chat/completions", body, **how)) as lines,
            contextlib.closing(read_stream(lines, self.server)) as stream,
        ):
            yield from stream

    def _get(self, path: str, cancelled: CancelCheck | None = None) -> Json:
        with self._explained(path):
            return self._checked(self._http.get(path, cancelled))

    def _objects(self, path: str, key: str, cancelled: CancelCheck | None) -> Sequence[Json]:
        """Return the objects of a list in the response of a path.

        Raises:
            WrongForm: there is no list, which is not the same as a server without models.
        """
        body = self._get(path, cancelled)
        if not isinstance(body.get(key), list):
            raise WrongForm(self.server, json.dumps(body)[:300])
        return objects(body[key])

    def _post(
        self, path: str, body: Json, cancelled: CancelCheck | None = None, *, model: str = ""
    ) -> Json:
        with self._explained(path, model):
            return self._checked(self._http.post(path, body, cancelled))

    def _checked(self, reply: bytes) -> Json:
        """Return the object of a reply, {} of an empty one; raise the error that it reports."""
        if not reply.strip() or reply.strip() == b"OK":
            return {}
        body = json_object(reply, self.server)
        if body.get("error"):
            raise UnexpectedResponse(self.server, 200, words_of(body) or str(body["error"]))
        return body

    @contextlib.contextmanager
    def _explained(self, path: str, model: str = "") -> Iterator[None]:
        try:
            yield
        except UnexpectedResponse as error:
            raise explain(error, self._http, model=model, path=path) from None

    @contextlib.contextmanager
    def _loading(self, model: str) -> Iterator[None]:
        """Remember a load that is abandoned in the block: servers continue it after the request."""
        try:
            yield
        except (Cancelled, ServerTimeout):
            self._given_up.add(model)
            raise

    def _wait(
        self, done: Callable[[], bool], limit_s: float, cancelled: CancelCheck | None
    ) -> bool:
        """Wait until `done` returns True; return False if that takes longer than `limit_s`."""
        deadline = time.monotonic() + limit_s
        pause_s = 0.01
        while not done():
            if time.monotonic() > deadline:
                return False
            if cancelled is not None and cancelled():
                raise Cancelled
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S)
        return True

    def _quietly(self, path: str, cancelled: CancelCheck | None = None) -> Json:
        """Return the object at a path, {} if there is none."""
        with contextlib.suppress(LLMError):
            return self._get(path, cancelled)
        return {}


def objects(value: Any) -> Sequence[Json]:
    """Return the objects in a list; none if it is not a list."""
    entries = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("Json", entry) for entry in entries if isinstance(entry, dict)]


def item(body: Json, *keys: str) -> Any:
    """Return the value at a path of keys, None if the path does not exist.

    >>> item({"meta": {"n_ctx": 4096}}, "meta", "n_ctx"), item({"meta": None}, "meta", "n_ctx")
    (4096, None)
    """
    value: Any = body
    for key in keys:
        value = cast("Json", value).get(key) if isinstance(value, dict) else None
    return value


def number(body: Json, *keys: str) -> int | None:
    """Return the whole number at a path of keys, else None."""
    return whole_number(item(body, *keys))


def text(value: Any) -> str:
    """Return a string unchanged, "" for anything else."""
    return value if isinstance(value, str) else ""


def _message(message: Message) -> Json:
    content = message.get("content", "")
    if not message.get("images"):
        return {"role": message.get("role", "user"), "content": content}
    # Images before the text, as Ollama puts them.
    parts: list[Json] = [
        {"type": "image_url", "image_url": {"url": _data_url(image)}}
        for image in message.get("images", [])
    ]
    return {
        "role": message.get("role", "user"),
        "content": [*parts, {"type": "text", "text": content}],
    }


def _data_url(image: str) -> str:
    kind = "png" if image.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{image}"
