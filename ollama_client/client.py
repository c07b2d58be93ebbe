"""Ollama's HTTP API as a Backend (servers 0.6 and newer)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, cast

from ..llm.answers import End, Piece, Stream, stream_answer, whole_number
from ..llm.backend import (
    Answer,
    LoadedModel,
    Message,
    Model,
    PullProgress,
    Think,
    Unloaded,
    with_assumed,
)
from ..llm.errors import (
    EndpointMissing,
    IncompleteAnswer,
    LLMError,
    ModelNotFound,
    ServerConfigError,
    ServerUnreachable,
    UnexpectedResponse,
)
from ..llm.failures import explain, words_of
from ..llm.http import CancelCheck, Http, Json, Timeouts, json_object
from ..llm.retry import Retries
from ..llm.servers import Server, find_server

UNLOAD_TIMEOUT_S = 15.0
"""How long an unload may take: Ollama waits up to 5 s for the driver, plus for running requests."""

_SHORT_UNLOAD_S = 1.0
"""How long an unload may take on a server whose /api/ps never changes."""

_MAX_KNOWN_MODELS = 1000


@dataclass
class OllamaClient:
    """One Ollama server (a `Backend`). Several threads may use it at a time.

    Every method raises an `LLMError` on failure, and `Cancelled`.
    """

    server: Server = field(default_factory=find_server)
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)

    def __post_init__(self) -> None:
        if self.server.is_embedded:
            raise ServerConfigError("The embedded engine does not speak Ollama's API.")
        if not self.server.kind:
            self.server = replace(self.server, kind="ollama", search=False)
        self._http = Http(self.server, self.timeouts)

    def __enter__(self) -> OllamaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Base URL of the server, without credentials."""
        return self.server.url

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def copy(self) -> OllamaClient:
        """Return another client of the same server; it has to be closed separately."""
        return replace(self)

    @property
    def unloads_always(self) -> bool:
        """True: at most, other users of Ollama have to load the model again."""
        return True

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return nothing: the options are Ollama's own."""
        return ()

    def same_model(self, one: str, other: str) -> bool:
        """Return whether two names mean the same model; ":latest" may be left out."""
        return same_model(one, other)

    def version(self) -> str:
        """Return the server's version, such as "0.33.0"."""
        return str(self._get("/api/version").get("version", ""))

    def list(self, cancelled: CancelCheck | None = None) -> Sequence[Model]:
        """Return the installed models, with capabilities if the server lists them (since 0.30)."""
        reply = self._get("/api/tags", cancelled)
        models = [_model(entry) for entry in _objects(reply.get("models"))]
        # Without listed capabilities, `show` adds the assumed ones to those that it finds.
        return [with_assumed(m, self.server) if m.capabilities is not None else m for m in models]

    def show(self, model: Model, cancelled: CancelCheck | None = None) -> Model:
        """Return `model` with its capabilities and context length.

        The response of /api/show is cached by server, name and digest for the life of the process,
        except for a model without a digest. Without /api/show the capabilities stay unknown.

        Raises:
            ModelNotFound: the server does not have it.
        """
        if model.capabilities is not None:
            return model
        # Lemonade has one digest for all its models.
        key = (self.url, model.name, model.digest)
        with _lock:
            known = _known_by_digest.get(key)
        if known is None:
            try:
                known = self._show(model, cancelled)
            except EndpointMissing:
                # Not cached: a proxy also answers 404 while its server restarts.
                return with_assumed(model, self.server)
            if model.digest:
                with _lock:
                    while len(_known_by_digest) >= _MAX_KNOWN_MODELS:
                        _known_by_digest.pop(next(iter(_known_by_digest)))
                    _known_by_digest[key] = known
        shown = replace(
            model,
            remote_host=model.remote_host or known.remote_host,
            capabilities=known.capabilities,
            context_length=model.context_length or known.context_length,
        )
        return with_assumed(shown, self.server)

    def _show(self, model: Model, cancelled: CancelCheck | None) -> Model:
        reply = self._post("/api/show", {"model": model.name}, cancelled)
        info = reply.get("model_info")
        lengths = [
            value
            for key, value in (cast("Json", info) if isinstance(info, dict) else {}).items()
            if key.endswith(".context_length") and isinstance(value, int)
        ]
        return replace(
            model,
            remote_host=_text(reply.get("remote_host")),
            capabilities=_capabilities(reply),
            context_length=lengths[0] if lengths else None,
        )

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
        for model in self.list(cancelled) if models is None else models:
            if same_model(model.name, name):
                return self.show(model, cancelled)
        raise ModelNotFound(name, self.server)

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models in the server's memory."""
        reply = self._get("/api/ps", cancelled)
        return [
            LoadedModel(
                name=str(entry.get("name") or entry.get("model") or ""),
                size_bytes=whole_number(entry.get("size")) or 0,
                vram_bytes=whole_number(entry.get("size_vram")) or 0,
                context_length=whole_number(entry.get("context_length")),
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
        """Yield the answer in chunks as they arrive; return the whole `Answer`.

        Closing the generator closes the connection, and Ollama stops. `collect` runs it to its end.

        Args:
            options: by Ollama's own names (temperature, num_ctx, ...); if num_ctx changes between
                two calls, the server reloads the model.
            think: leave it None for models without thinking: some servers refuse any value.
            format: "json", or a JSON schema.
            keep_alive: seconds that the model stays loaded after the answer, or text such as "5m".
            timeout_s: for the first byte; None: as in `timeouts`.

        Raises:
            EmptyAnswer, IncompleteAnswer: as in `llm.answers.stream_answer`, which also cuts an
                answer that exceeds num_predict.
            LLMError: any other; see `llm.errors`.
        """
        body: Json = {"model": model, "messages": list(messages), "stream": True}
        optional = {"think": think, "format": format, "keep_alive": keep_alive}
        body |= {key: value for key, value in optional.items() if value is not None}
        if options:
            body["options"] = dict(options)
        lines = self._stream(
            "/api/chat",
            body,
            doing=f'loading or running "{model}"',
            first_byte_s=timeout_s,
            cancelled=cancelled,
        )
        num_ctx = whole_number((options or {}).get("num_ctx"))
        return stream_answer(
            _pieces(lines), model=model, server=self.server, options=options or {}, num_ctx=num_ctx
        )

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
        """Load a model and return when it is loaded. Pass the num_ctx of the chats that follow."""
        body: Json = {"model": model, "messages": []}
        if options:
            body["options"] = dict(options)
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        for _ in self._stream(
            "/api/chat",
            body,
            doing=f'loading "{model}"',
            first_byte_s=timeout_s,
            cancelled=cancelled,
        ):
            pass

    def unload(
        self,
        model: str,
        *,
        limit_s: float = UNLOAD_TIMEOUT_S,
        cancelled: CancelCheck | None = None,
    ) -> Unloaded:
        """Unload a model and poll /api/ps until it is gone, for `limit_s` seconds at most.

        Does nothing for a model that is not loaded and for a cloud model, so calling twice is safe.
        KoboldCpp always lists its one model: after an unload that reached its limit, later ones on
        the same server wait only 1 s, until a model disappears from /api/ps.
        """
        request: Json = {"model": model, "keep_alive": 0}
        try:
            loaded = self.ps(cancelled)
        except ServerUnreachable:
            raise
        except LLMError:
            # /api/ps failed; unload anyway.
            self._post("/api/generate", request, cancelled)
            raise
        if self._ps_never_changes(loaded):
            limit_s = min(limit_s, _SHORT_UNLOAD_S)
        before = _find_loaded(loaded, model)
        if before is None:
            return Unloaded(model=model)
        self._post("/api/generate", request, cancelled)
        deadline = time.monotonic() + limit_s
        pause_s = 0.005
        while _find_loaded(loaded := self.ps(cancelled), model) is not None:
            if time.monotonic() > deadline:
                with _lock:
                    _still_listed[self.url] = _names(loaded)
                return Unloaded(model=model, vram_bytes=0, confirmed=False)
            time.sleep(pause_s)
            # A poll takes 2 ms, and the next model waits until this detects the unload.
            pause_s = min(pause_s * 1.1, 0.05)
        with _lock:
            _still_listed.pop(self.url, None)
        return Unloaded(model=model, vram_bytes=before.vram_bytes)

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Download a model from Ollama's library, yielding progress; closing it cancels."""
        status = ""
        for line in self._stream(
            "/api/pull",
            {"model": model, "stream": True},
            doing=f'fetching "{model}"',
            cancelled=cancelled,
        ):
            status = _text(line.get("status"))
            yield PullProgress(
                status=status,
                completed_bytes=whole_number(line.get("completed")) or 0,
                total_bytes=whole_number(line.get("total")) or 0,
            )
        if status != "success":
            why = f'the pull ended at "{status}"'
            raise IncompleteAnswer(model, self.server, characters=0, why=why)

    def _ps_never_changes(self, loaded: Sequence[LoadedModel]) -> bool:
        """Return whether an unload reached its limit, and /api/ps has lost no model since then."""
        with _lock:
            listed = _still_listed.get(self.url)
            unchanged = listed is not None and listed <= _names(loaded)
            if not unchanged:
                _still_listed.pop(self.url, None)
            return unchanged

    def _get(self, path: str, cancelled: CancelCheck | None = None) -> Json:
        with self._explained(path):
            return self._checked(self._http.get(path, cancelled))

    def _post(self, path: str, body: Json, cancelled: CancelCheck | None = None) -> Json:
        with self._explained(path, body["model"]):
            return self._checked(self._http.post(path, body, cancelled))

    def _stream(self, path: str, body: Json, **how: Any) -> Generator[Json, None, None]:
        with (
            self._explained(path, body["model"]),
            contextlib.closing(self._http.stream(path, body, **how)) as lines,
        ):
            for line in lines:
                yield self._checked(line)

    def _checked(self, text: bytes) -> Json:
        """Return the object in `text`, or raise the error that it reports."""
        reply = json_object(text, self.server)
        if reply.get("error"):
            said = words_of(reply) or text.decode("utf-8", "replace")
            raise UnexpectedResponse(self.server, 200, said)
        return reply

    @contextlib.contextmanager
    def _explained(self, path: str, model: str = "") -> Iterator[None]:
        """Replace an error response by the specific error that it means."""
        try:
            yield
        except UnexpectedResponse as error:
            raise explain(error, self._http, model=model, path=path) from None


def same_model(one: str, other: str) -> bool:
    """Return whether two names mean the same model to Ollama.

    >>> same_model("llava", "llava:latest"), same_model("llava:13b", "llava")
    (True, False)
    >>> same_model("hf.co/org/model:Q4_K_M", "HF.co/org/model:q4_K_M")
    True
    """
    return _full_name(one) == _full_name(other)


_known_by_digest: dict[tuple[str, str, str], Model] = {}
"""The results of /api/show, by server URL, name and digest."""
_still_listed: dict[str, frozenset[str]] = {}
"""The models that /api/ps still listed when an unload reached its limit, by server URL."""
_lock = Lock()


def _find_loaded(loaded: Sequence[LoadedModel], model: str) -> LoadedModel | None:
    return next((entry for entry in loaded if same_model(entry.name, model)), None)


def _names(loaded: Sequence[LoadedModel]) -> frozenset[str]:
    return frozenset(_full_name(entry.name) for entry in loaded)


def _full_name(name: str) -> str:
    name = name.strip().lower()
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def _pieces(lines: Generator[Json, None, None]) -> Stream:
    with contextlib.closing(lines):
        for line in lines:
            message: Any = line.get("message")
            fields = cast("Json", message) if isinstance(message, dict) else {}
            if line.get("done"):
                yield _end(line)
            yield Piece(_text(fields.get("content")), _text(fields.get("thinking")))


def _end(line: Json) -> End:
    reason = line.get("done_reason")
    return End(
        done_reason=reason if isinstance(reason, str) else None,
        prompt_tokens=whole_number(line.get("prompt_eval_count")),
        answer_tokens=whole_number(line.get("eval_count")),
        total_s=_seconds(line.get("total_duration")),
        load_s=_seconds(line.get("load_duration")),
        prompt_s=_seconds(line.get("prompt_eval_duration")),
        answer_s=_seconds(line.get("eval_duration")),
    )


def _model(entry: Json) -> Model:
    details: Any = entry.get("details")
    fields = cast("Json", details) if isinstance(details, dict) else {}
    return Model(
        name=str(entry.get("name") or entry.get("model") or ""),
        size_bytes=whole_number(entry.get("size")),
        digest=_text(entry.get("digest")),
        remote_host=_text(entry.get("remote_host")),
        capabilities=_capabilities(entry),
        context_length=whole_number(fields.get("context_length")),
    )


def _capabilities(entry: Json) -> frozenset[str] | None:
    listed: Any = entry.get("capabilities")
    if not isinstance(listed, list):
        return None
    return frozenset(str(word) for word in cast("Sequence[Any]", listed))


def _objects(value: Any) -> Sequence[Json]:
    if not isinstance(value, list):
        return []
    entries = cast("Sequence[Any]", value)
    return [cast("Json", entry) for entry in entries if isinstance(entry, dict)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _seconds(nanoseconds: Any) -> float | None:
    whole = whole_number(nanoseconds)
    return None if whole is None else whole / 1e9
