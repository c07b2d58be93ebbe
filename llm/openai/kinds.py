"""The servers with OpenAI's chat API: how each lists, loads and unloads models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from ..answers import Stream
from ..backend import LoadedModel, Model
from ..errors import (
    EndpointMissing,
    LLMError,
    LoadFailed,
    ServerBusy,
    ServerTimeout,
    UnexpectedResponse,
)
from ..http import CancelCheck, Json
from .client import NOT_TOLD, OpenAIClient, item, number, objects, text
from .options import LLAMA_CPP_DEFAULTS, LLAMA_CPP_NAMES, LMSTUDIO_NAMES, VLLM_NAMES, OptionNames

_TEXT, _VISION = frozenset({"completion"}), frozenset({"completion", "vision"})
_AWAKE_OR_ASLEEP = ("loaded", "sleeping")
"""The states of a router's model that needs no load: a sleeping model wakes up by itself."""


class LlamaServer(OpenAIClient):
    """llama.cpp's llama-server, with one model, or in router mode with several."""

    option_names: ClassVar[OptionNames] = LLAMA_CPP_NAMES
    body_defaults: ClassVar[Mapping[str, Any]] = LLAMA_CPP_DEFAULTS
    has_think_switch: ClassVar[bool] = True

    @property
    def can_unload(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it is a router; known after `list` or `ps`."""
        return self._is_router

    def __post_init__(self) -> None:
        super().__post_init__()
        self._is_router = False

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models that are loaded or loading; without router mode, the only model."""
        entries = self._entries(cancelled)
        if self._is_router:
            names = [text(e.get("id")) for e in entries if _status(e) in ("loaded", "loading")]
        elif self._quietly("/props", cancelled).get("is_sleeping") is True:
            names = []
        else:
            names = [text(entry.get("id")) for entry in entries]
        return [LoadedModel(name=name) for name in names]

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
        """Load the model and wait until it is ready; options are ignored.

        Raises:
            LoadFailed: the router's process for the model ended.
        """
        limit_s = timeout_s or self.timeouts.first_byte_s
        entry = self._entry(model, cancelled)
        if self._is_router and _status(entry) not in _AWAKE_OR_ASLEEP:
            if _status(entry) != "loading":
                self._begin_load(model, cancelled)
            ready = self._wait(lambda: self._has_loaded(model, cancelled), limit_s, cancelled)
        else:
            ready = self._wait(lambda: self._is_healthy(cancelled), limit_s, cancelled)
        if not ready:
            raise ServerTimeout(self.server, f'loading "{model}"', limit_s)
        # Without autoload=false, a router would load the model.
        which = f"?model={quote(model)}&autoload=false" if self._is_router else ""
        props = self._quietly(f"/props{which}", cancelled)
        self._contexts[model] = _context(props) or self._contexts.get(model)

    def _begin_load(self, model: str, cancelled: CancelCheck | None) -> None:
        try:
            with self._loading(model):
                self._post("/models/load", {"model": model}, cancelled, model=model)
        except UnexpectedResponse:
            # Another client may have begun the load after the list was read.
            if _status(self._entry(model, cancelled)) not in ("loading", *_AWAKE_OR_ASLEEP):
                raise

    def _list(self, cancelled: CancelCheck | None) -> Sequence[Model]:
        entries = self._entries(cancelled)
        props = {} if self._is_router else self._quietly("/props", cancelled)
        return [self._model(entry, props) for entry in entries]

    def _model(self, entry: Json, props: Json) -> Model:
        kinds = item(entry, "architecture", "input_modalities")
        if isinstance(kinds, list):
            has_vision: bool | None = "image" in kinds
        else:
            reported = item(props, "modalities", "vision")
            has_vision = reported if isinstance(reported, bool) else None
        return Model(
            name=text(entry.get("id")),
            size_bytes=number(entry, "meta", "size"),
            capabilities=_capabilities(has_vision),
            not_told=NOT_TOLD,
            context_length=_context(props) or number(entry, "meta", "n_ctx"),
        )

    def _unload(self, model: str, cancelled: CancelCheck | None) -> None:
        self._post("/models/unload", {"model": model}, cancelled)

    def _entries(self, cancelled: CancelCheck | None) -> Sequence[Json]:
        entries = self._objects("/models", "data", cancelled)
        self._is_router = any(map(_status, entries))
        return entries

    def _entry(self, model: str, cancelled: CancelCheck | None) -> Json:
        entries = self._entries(cancelled)
        return next((e for e in entries if self.same_model(text(e.get("id")), model)), {})

    def _has_loaded(self, model: str, cancelled: CancelCheck | None) -> bool:
        entry = self._entry(model, cancelled)
        if item(entry, "status", "failed") is True or _status(entry) == "failed":
            code = number(entry, "status", "exit_code")
            raise LoadFailed(model, self.server, f"its process ended with exit code {code}")
        return _status(entry) in _AWAKE_OR_ASLEEP

    def _is_healthy(self, cancelled: CancelCheck | None) -> bool:
        try:
            self._get("/health", cancelled)
        except ServerBusy:
            return False
        except EndpointMissing:
            pass
        return True


class LMStudio(OpenAIClient):
    """LM Studio 0.4 and newer."""

    option_names: ClassVar[OptionNames] = LMSTUDIO_NAMES
    can_unload: ClassVar[bool] = True

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the unsupported options; num_ctx is supported by `load`."""
        return [name for name in super().ignored(options) if name != "num_ctx"]

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models with an instance in memory."""
        return [
            LoadedModel(
                name=text(entry.get("key")),
                size_bytes=number(entry, "size_bytes") or 0,
                vram_bytes=number(entry, "size_bytes") or 0,
                context_length=_loaded_context(entry),
            )
            for entry in self._entries(cancelled)
            if entry.get("loaded_instances")
        ]

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
        """Load the model with num_ctx, unless it is loaded: a second load would add an instance."""
        loaded = self._loaded(model, cancelled)
        if loaded is not None:
            self._contexts[model] = loaded.context_length
            return
        body: Json = {"model": model, "echo_load_config": True}
        if num_ctx := number(dict(options or {}), "num_ctx"):
            body["context_length"] = num_ctx
        limit_s = timeout_s or self.timeouts.first_byte_s
        with self._loading(model), self._explained("/api/v1/models/load", model):
            lines = self._http.stream(
                "/api/v1/models/load",
                body,
                doing=f'loading "{model}"',
                first_byte_s=limit_s,
                cancelled=cancelled,
            )
            reply = self._checked(b"\n".join(lines))
        reported = number(reply, "load_config", "context_length")
        self._contexts[model] = reported or body.get("context_length")

    def _list(self, cancelled: CancelCheck | None) -> Sequence[Model]:
        return [
            Model(
                name=text(entry.get("key")),
                size_bytes=number(entry, "size_bytes"),
                capabilities=_capabilities(item(entry, "capabilities", "vision") is True),
                not_told=NOT_TOLD,
                context_length=_loaded_context(entry) or number(entry, "max_context_length"),
            )
            for entry in self._entries(cancelled)
            if entry.get("type") != "embedding"
        ]

    def _unload(self, model: str, cancelled: CancelCheck | None) -> None:
        for entry in self._entries(cancelled):
            if self.same_model(text(entry.get("key")), model):
                for instance in objects(entry.get("loaded_instances")):
                    body = {"instance_id": text(instance.get("id"))}
                    self._post("/api/v1/models/unload", body, cancelled)

    def _entries(self, cancelled: CancelCheck | None) -> Sequence[Json]:
        return self._objects("/api/v1/models", "models", cancelled)


class LlamaSwap(OpenAIClient):
    """llama-swap, which starts a server for each requested model."""

    option_names: ClassVar[OptionNames] = LLAMA_CPP_NAMES
    body_defaults: ClassVar[Mapping[str, Any]] = LLAMA_CPP_DEFAULTS
    has_think_switch: ClassVar[bool] = True
    can_unload: ClassVar[bool] = True

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models whose servers are running."""
        running = self._objects("/running", "running", cancelled)
        return [LoadedModel(name=text(entry.get("model"))) for entry in running]

    def _unload(self, model: str, cancelled: CancelCheck | None) -> None:
        try:
            self._post(f"/api/models/unload/{quote(model)}", {}, cancelled)
        except EndpointMissing:
            # Older releases can only unload all models, which may include those of other users.
            if len(self.ps(cancelled)) == 1:
                self._get("/unload", cancelled)


class VLLM(OpenAIClient):
    """vLLM, which has one model. It is put to sleep only if its entry has `unload = true`."""

    option_names: ClassVar[OptionNames] = VLLM_NAMES
    has_think_switch: ClassVar[bool] = True

    @property
    def can_unload(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether its entry allows it: sleep affects all users of the server."""
        return self.server.unload is True

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return its model, unless it is asleep."""
        if self._quietly("/is_sleeping", cancelled).get("is_sleeping") is True:
            return ()
        return [LoadedModel(name=model.name) for model in self._list(cancelled)]

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
        """Wake it up if it is asleep."""
        if not self.ps(cancelled):
            with self._loading(model):
                self._post("/wake_up", {}, cancelled)

    def _list(self, cancelled: CancelCheck | None) -> Sequence[Model]:
        return [
            Model(name=text(entry.get("id")), context_length=number(entry, "max_model_len"))
            for entry in self._objects("/v1/models", "data", cancelled)
        ]

    def _stream(self, body: Json, **how: Any) -> Stream:
        try:
            yield from super()._stream(body, **how)
        except UnexpectedResponse as error:
            # Mistral's tokenizers refuse this field; their models have no such switch.
            if error.status != 400 or "chat_template" not in error.said:
                raise
            plain = {name: body[name] for name in body if name != "chat_template_kwargs"}
            yield from super()._stream(plain, **how)

    def _unload(self, model: str, cancelled: CancelCheck | None) -> None:
        try:
            self._post("/sleep?level=1", {}, cancelled)
        except EndpointMissing as error:
            raise LLMError(
                "vLLM cannot sleep: it was started without --enable-sleep-mode and "
                "VLLM_SERVER_DEV_MODE=1.",
                server=self.server,
                model=model,
            ) from error


def _status(entry: Json) -> str:
    return text(item(entry, "status", "value"))


def _context(props: Json) -> int | None:
    return number(props, "default_generation_settings", "n_ctx")


def _loaded_context(entry: Json) -> int | None:
    instances = objects(entry.get("loaded_instances"))
    return number(instances[0], "config", "context_length") if instances else None


def _capabilities(has_vision: bool | None) -> frozenset[str] | None:
    return None if has_vision is None else _VISION if has_vision else _TEXT
