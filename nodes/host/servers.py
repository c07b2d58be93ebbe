"""The language-model servers that a workflow may name, and the models that they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from ... import _backends
from ...llm.choice import AUTO
from ...llm.llamacpp.installed import available
from ...llm.servers import EMBEDDED, find_server, server_names
from .folders import config_file, gguf_places
from .model_lists import ModelListCache, Source
from .running import interrupted

if TYPE_CHECKING:
    from ...llm.backend import Backend


def open_backend(name: str) -> Backend:
    """Return a backend for the server that a workflow's `server` widget names; close it."""
    server = find_server(name, config=config_file())
    return _backends.open_backend(server, places=gguf_places(), cancelled=interrupted)


def open_backends(server: str, *models: str) -> AbstractContextManager[list[Backend]]:
    """Open the server of each model; see `_backends.open_backends`."""
    return _backends.open_backends(
        server, *models, config=config_file(), places=gguf_places(), cancelled=interrupted
    )


def all_servers() -> Iterator[Source]:
    """Yield the default server, as "", those of image-refinery.toml, and others found here."""
    from ...llm.probe import find_servers

    config = config_file()
    names = server_names(config)[1:]

    def opened(name: str) -> Backend:
        # Looked up here: an entry that cannot be used hides no other server. Without a cancel: a
        # cancelled run is not the look's.
        return _backends.open_backend(find_server(name, config=config), places=gguf_places())

    for name in ("", *names):
        yield Source(name, partial(opened, name))
    for found in find_servers():
        if found.name not in names:
            yield Source(found.name, partial(_backends.open_backend, found))
    if EMBEDDED not in names and available():
        yield Source(EMBEDDED, partial(opened, EMBEDDED))


model_lists = ModelListCache(all_servers)
"""The models of all servers, for the lists on the page."""


def servers_to_choose() -> list[str]:
    """Names for the `server` widget."""
    found = model_lists.server_names()
    here = [EMBEDDED] if available() else []
    return list(dict.fromkeys([*server_names(config_file()), *found, *here]))


def models_to_choose(capability: str, usual: str) -> tuple[list[str], str]:
    """Return the names for a model widget, and its default.

    The first is "auto"; `usual` is there also where no server has it. It is the default as long as
    no server has been listed, or one has it.
    """
    names = model_lists.names(capability)
    if usual in names:
        return [AUTO, *names], usual
    return [AUTO, *names, usual], AUTO if names else usual
