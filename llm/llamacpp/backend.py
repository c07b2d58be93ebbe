"""The embedded engine as a Backend: llama.cpp runs the models in worker processes."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..._program import pull
from ..answers import whole_number
from ..backend import Answer, LoadedModel, Message, Model, PullProgress, Think, Unloaded
from ..errors import (
    BadRequest,
    ConnectionBroke,
    IncompleteAnswer,
    LLMError,
    LoadFailed,
    ModelNotFound,
    NoVision,
    OutOfMemory,
    ServerConfigError,
    ServerTimeout,
    ServerUnreachable,
)
from ..http import CancelCheck, Json, Timeouts
from ..openai.client import UNLOAD_TIMEOUT_S
from ..openai.kinds import LlamaServer
from ..openai.options import LLAMA_CPP_NAMES, left_out
from ..retry import Retries
from ..servers import EMBEDDED, Server
from .gpu import gpu_remark
from .installed import why_unavailable
from .library import Library, UnknownModel, UnreadableModel
from .library import Model as LocalModel
from .process import LoadOptions, Worker, WorkerEnded
from .registry import LoadTimeout, Registry

log = logging.getLogger(__name__)

DEFAULT_NUM_CTX = 4096
MIN_VISION_NUM_CTX = 2048
"""The least for a vision model, as in Ollama: an image alone takes hundreds of tokens."""
_LOAD_OPTIONS = ("num_ctx", "num_gpu", "num_batch", "num_thread", "use_mmap")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION = re.compile(rf"-?(?:{_DURATION_PART.pattern})+")
_TOY_NOTE = (
    "is a stand-in model: it only names drawn shapes, their colors and positions. Download a real "
    "model with:"
)


@lru_cache(maxsize=1)
def shared_registry() -> Registry:
    """Return the one registry of this process; its workers end when the interpreter exits."""
    registry = Registry()
    atexit.register(registry.close)
    return registry


@lru_cache(maxsize=1)
def _warn_of_unused_gpu() -> None:
    if remark := gpu_remark():
        log.warning("%s", remark)


@dataclass
class EmbeddedEngine:
    """The engine inside this package (a `Backend`). All instances in a process share the models.

    It needs the package `xllamacpp`, which only worker processes import.

    Raises:
        ServerConfigError: `xllamacpp` is not installed.
    """

    server: Server = field(
        default_factory=lambda: Server(name=EMBEDDED, kind=EMBEDDED, url=EMBEDDED)
    )
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)
    library: Library = field(default_factory=Library)
    registry: Registry = field(default_factory=shared_registry)

    def __post_init__(self) -> None:
        self._full_names: dict[str, str] = {}
        self._parallel: dict[str, int] = {}
        if reason := why_unavailable():
            raise ServerConfigError(reason, server=self.server)

    def __enter__(self) -> EmbeddedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: loaded models belong to the process, unloaded after their keep_alive."""

    def copy(self) -> EmbeddedEngine:
        """Return this engine: it has no connections."""
        return self

    @property
    def unloads_always(self) -> bool:
        """True: no other program uses this engine."""
        return True

    def ignored(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of options that llama.cpp does not support."""
        taken = (*_LOAD_OPTIONS, "think")
        return [name for name in left_out(options, LLAMA_CPP_NAMES) if name not in taken]

    def same_model(self, one: str, other: str) -> bool:
        """Return whether two names mean the same file; a tag may be left out."""
        return one == other or self._full_name(one) == self._full_name(other)

    def list(self, cancelled: CancelCheck | None = None) -> Sequence[Model]:
        """Return the models of the library."""
        return [_to_model(model) for model in self.library.models()]

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
        """Return the model of that name in the library.

        Raises:
            ModelNotFound, LoadFailed: there is none, or its file is damaged.
        """
        return _to_model(self._find(name))

    def ps(self, cancelled: CancelCheck | None = None) -> Sequence[LoadedModel]:
        """Return the models that are loaded or loading, with the sizes that llama.cpp reported."""
        listed: list[LoadedModel] = []
        for model, options, worker in self.registry.loaded():
            size, vram = worker.memory
            listed.append(
                LoadedModel(
                    name=model.name,
                    size_bytes=size or model.size,
                    vram_bytes=vram,
                    context_length=options.num_ctx,
                )
            )
        return listed

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
        """Load a model. Pass the same options as in the chats that follow.

        Args:
            parallel: requests that it answers at a time, in this and in later loads by this engine.
                Each takes memory for num_ctx tokens. Answers that are computed together may differ
                from those that are computed one by one with the same seed.

        Raises:
            LoadFailed, OutOfMemory: with llama.cpp's reason.
            ServerTimeout: it took longer than `timeout_s`, or else `timeouts.first_byte_s`.
        """
        _warn_of_unused_gpu()
        local = self._find(model)
        self._parallel[local.name] = parallel
        with self._lease(local, options or {}, keep_alive, timeout_s, cancelled):
            pass

    def unload(self, model: str, *, cancelled: CancelCheck | None = None) -> Unloaded:
        """Unload a model as soon as it is idle, and wait for that, for 15 s at most."""
        try:
            name = self._find(model).name
        except (LoadFailed, ModelNotFound):
            name = model  # its file is gone, but it may be in memory
            if all(loaded.name != name for loaded in self.ps()):
                raise
        vram_bytes = sum(loaded.vram_bytes for loaded in self.ps() if loaded.name == name)
        gone = self.registry.unload(name, UNLOAD_TIMEOUT_S, cancelled)
        return Unloaded(model=model, vram_bytes=vram_bytes if gone else 0, confirmed=gone)

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

        Args:
            options: by Ollama's own names; a changed num_ctx, num_gpu, num_batch, num_thread or
                use_mmap reloads the model.
            think: as in Ollama, but None means False.
            format: "json", or a JSON schema.
            keep_alive: as in Ollama: seconds that the model stays loaded after the answer, or text
                such as "5m"; negative: until it is unloaded.
            timeout_s: for the load, and for the first byte; None: as in `timeouts`.

        Raises:
            NoVision, BadRequest: the model does not support the request; raised before a load.
            ConnectionBroke, OutOfMemory, IncompleteAnswer: llama.cpp stopped before or during the
                answer; the message has its reason.
            LLMError: any other; see `llm.errors`.
        """
        local = self._find(model)
        self._check(local, messages)
        with (
            self._lease(local, options or {}, keep_alive, timeout_s, cancelled) as worker,
            _WorkerClient(worker.server, self.timeouts, num_ctx=worker.options.num_ctx) as client,
        ):
            answering = False
            try:
                answer = client.chat(
                    local.name,
                    messages,
                    options=options,
                    think=think,
                    format=format,
                    timeout_s=timeout_s,
                    cancelled=cancelled,
                )
                with contextlib.closing(answer):
                    while True:
                        try:
                            piece = next(answer)
                        except StopIteration as end:
                            answering = True
                            return end.value
                        answering = True
                        yield piece
            except IncompleteAnswer as error:
                # A crash closes the connection a moment before the process is gone.
                if worker.usable and not isinstance(error.__cause__, ConnectionBroke):
                    raise
                why, characters = worker.end_reason(), error.characters
                raise IncompleteAnswer(
                    local.name, self.server, characters=characters, why=why
                ) from error
            except (ConnectionBroke, ServerUnreachable) as error:
                why = worker.end_reason()
                if is_about_memory(why):
                    raise OutOfMemory(local.name, self.server, why) from error
                raise ConnectionBroke(self.server, why) from error
            except ServerTimeout:
                raise  # it may still be working
            except LLMError:
                answering = True  # llama.cpp refused the request, but works
                raise
            finally:
                # While it processes a prompt, llama.cpp checks for a closed connection only between
                # batches and once a second, which takes seconds. Between tokens it is immediate.
                if not answering:
                    self.registry.abandon(worker)

    def pull(self, model: str, cancelled: CancelCheck | None = None) -> Iterator[PullProgress]:
        """Raise BadRequest: see `llm.llamacpp.pull`."""
        raise BadRequest("Download models of the embedded engine with llm.llamacpp.pull.")

    def _full_name(self, name: str) -> str:
        if name not in self._full_names:  # this searches all folders
            try:
                self._full_names[name] = self.library.find(name).name
            except (UnknownModel, UnreadableModel):
                return name.strip().lower()
        return self._full_names[name]

    def _find(self, name: str) -> LocalModel:
        try:
            return self.library.find(name)
        except UnknownModel:
            raise ModelNotFound(name, self.server) from None
        except UnreadableModel as error:
            raise LoadFailed(name, self.server, str(error).rstrip(".")) from None

    def _check(self, model: LocalModel, messages: Sequence[Message]) -> None:
        has_images = any(message.get("images") for message in messages)
        if has_images and model.mmproj is None:
            raise NoVision(model.name, self.server)
        if model.is_toy and not has_images:
            raise BadRequest(
                f"{model.name} is a stand-in model that can only describe drawn images. Choose a "
                "text model.",
                server=self.server,
                model=model.name,
            )
        if "completion" not in model.capabilities:
            raise BadRequest(f'"{model.name}" is not a chat model.', server=self.server)

    @contextlib.contextmanager
    def _lease(
        self,
        model: LocalModel,
        options: Mapping[str, Any],
        keep_alive: float | str | None,
        timeout_s: float | None,
        cancelled: CancelCheck | None,
    ) -> Generator[Worker]:
        seconds, limit_s = keep_alive_s(keep_alive), timeout_s or self.timeouts.first_byte_s
        chosen = replace(
            load_options(model, options), num_parallel=self._parallel.get(model.name, 1)
        )
        try:
            with self.registry.lease(model, chosen, seconds, limit_s, cancelled) as worker:
                yield worker
        except LoadTimeout:
            raise ServerTimeout(self.server, f'loading "{model.name}"', limit_s) from None
        except WorkerEnded as error:
            failure = OutOfMemory if is_about_memory(str(error)) else LoadFailed
            raise failure(model.name, self.server, str(error)) from error
        except OSError as error:
            raise LoadFailed(
                model.name, self.server, f"its process did not start: {error}"
            ) from error


class _WorkerClient(LlamaServer):
    """The API of one worker; messages call its server "the embedded engine"."""

    def __init__(self, server: Server, timeouts: Timeouts, *, num_ctx: int) -> None:
        super().__init__(server, timeouts)
        self._num_ctx = num_ctx

    def context_of(self, model: str) -> int | None:
        return self._num_ctx


def keep_alive_s(keep_alive: float | str | None) -> float | None:
    """Return Ollama's keep_alive in seconds, `math.inf` for a negative one, None for None.

    >>> [keep_alive_s(value) for value in (300, "1h30m", "0.5s", 0, -1, "-1m", None)]
    [300.0, 5400.0, 0.5, 0.0, inf, inf, None]

    Raises:
        BadRequest: the text has another format.
    """
    if keep_alive is None:
        return None
    if isinstance(keep_alive, str):
        if not _DURATION.fullmatch(keep_alive):
            raise BadRequest(f'keep_alive is "{keep_alive}", but must be like "5m" or "1h30m".')
        parts = _DURATION_PART.findall(keep_alive)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        return math.inf if keep_alive.startswith("-") else seconds
    return math.inf if keep_alive < 0 else float(keep_alive)


def is_about_memory(reason: str) -> bool:
    """Return whether a worker ended because it was out of memory.

    >>> is_about_memory("failed to allocate buffer of size 9"), is_about_memory("exit status 1")
    (True, False)
    """
    return "out of memory" in reason or "failed to allocate" in reason


def load_options(model: LocalModel, options: Mapping[str, Any]) -> LoadOptions:
    """Return the options to load a model with; num_ctx is at most the trained context.

    llama.cpp silently cuts a longer context.
    """
    num_ctx = whole_number(options.get("num_ctx")) or DEFAULT_NUM_CTX
    if model.mmproj:
        num_ctx = max(num_ctx, MIN_VISION_NUM_CTX)
    num_gpu, num_thread = (whole_number(options.get(name)) for name in ("num_gpu", "num_thread"))
    return LoadOptions(
        num_ctx=min(num_ctx, model.header.context_length or num_ctx),
        # As in Ollama: a negative number of layers, or zero threads, means "automatic".
        num_gpu=num_gpu if num_gpu is not None and num_gpu >= 0 else None,
        num_batch=whole_number(options.get("num_batch")),
        num_thread=num_thread or None,
        use_mmap=options.get("use_mmap") is not False,
    )


def _to_model(model: LocalModel) -> Model:
    return Model(
        name=model.name,
        size_bytes=model.size,
        digest=model.digest,
        capabilities=frozenset(model.capabilities),
        context_length=model.header.context_length or None,
        note=f"{model.name} {_TOY_NOTE} {pull('smolvlm')}" if model.is_toy else "",
    )
