"""Open the backend of a server; the only module that knows every kind of server."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .llm.choice import AUTO
from .llm.errors import NoServer
from .llm.servers import Server, find_server, split_model

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from .llm.backend import Backend
    from .llm.http import CancelCheck
    from .llm.llamacpp.places import Place
    from .llm.retry import Retries


def open_backend(
    server: Server,
    *,
    or_embedded: bool = False,
    retries: Retries | None = None,
    places: Sequence[Place] = (),
    cancelled: CancelCheck | None = None,
) -> Backend:
    """Return a backend for a server; the caller closes it.

    Args:
        server: if its kind is not known, this finds out.
        or_embedded: use the embedded engine if a search for any server finds none.
        retries: how long to wait for a server that is starting; None: not at all.
        places: more folders with models of the embedded engine.

    Raises:
        NoServer, LLMError: as `llm.probe.identify`.
        ServerConfigError: the embedded engine is not installed.
    """
    # Imported here to keep ComfyUI's start fast.
    from .llm.llamacpp.backend import EmbeddedEngine
    from .llm.llamacpp.installed import available
    from .llm.llamacpp.library import Library
    from .llm.openai import kinds
    from .llm.openai.client import OpenAIClient
    from .llm.probe import identify
    from .llm.retry import Retries, with_retries
    from .ollama_client import OllamaClient

    if server.is_embedded:
        return EmbeddedEngine(server, library=Library(extra=places))
    try:
        server = with_retries(
            lambda: identify(server, cancelled),
            retries or Retries(count=0),
            answered=False,
            cancelled=cancelled,
        )
    except NoServer as error:
        if not or_embedded or server.kind or not available():
            raise
        log.warning("%s The embedded engine is used.", error)
        return EmbeddedEngine(library=Library(extra=places))
    opened = {
        "ollama": OllamaClient,
        "openai": OpenAIClient,
        "llama-server": kinds.LlamaServer,
        "lmstudio": kinds.LMStudio,
        "llama-swap": kinds.LlamaSwap,
        "vllm": kinds.VLLM,
    }
    return opened[server.kind](server)


@contextmanager
def open_backends(
    server: str,
    *models: str,
    config: Path | None = None,
    places: Sequence[Place] = (),
    cancelled: CancelCheck | None = None,
) -> Iterator[list[Backend]]:
    """Yield a backend for each model: the server in its name ("llava @ box"), else `server`.

    Models of the same server share a backend. If a search finds no server and a model is "auto",
    the embedded engine is used.

    Args:
        config: path of image-refinery.toml; see `find_server`.
        places: see `open_backend`.
    """
    from .llm.retry import Retries

    chosen = [split_model(model, server) for model in models]
    auto = any(model == AUTO for model, _ in chosen)
    opened: dict[str, Backend] = {}
    with ExitStack() as stack:
        for _, name in chosen:
            if name not in opened:
                found = find_server(name, config=config)
                backend = open_backend(
                    found,
                    or_embedded=auto,
                    retries=Retries(),
                    places=places,
                    cancelled=cancelled,
                )
                opened[name] = stack.enter_context(closing(backend))
        yield [opened[name] for _, name in chosen]
