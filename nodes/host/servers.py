"""The language-model servers that a workflow may name, and the models that they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...llm.servers import find_server, server_names
from .folders import config_file
from .model_lists import ModelListCache

if TYPE_CHECKING:
    from ...ollama_client import OllamaClient


def open_backend(name: str) -> OllamaClient:
    """Return a client for the server that a workflow's `server` widget names; close it."""
    from ...ollama_client import OllamaClient

    return OllamaClient(find_server(name, config=config_file()))


def servers_to_choose() -> list[str]:
    """Names for the `server` widget."""
    return server_names(config_file())


model_lists = ModelListCache(lambda: open_backend(""))
"""The models of the default server, for the lists on the page."""


def models_to_choose(capability: str, usual: str) -> list[str]:
    """Names for a model widget, never empty: with `usual` where the server does not have it."""
    names = model_lists.names(capability)
    return names if usual in names else [*names, usual]
