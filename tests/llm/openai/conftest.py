"""Clients of the scripted servers (tests/scripted_servers.py), one for each kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.llm.http import Timeouts
from image_refinery.llm.openai import kinds
from image_refinery.llm.openai.client import OpenAIClient
from image_refinery.llm.servers import Server
from PIL import Image

if TYPE_CHECKING:
    from scripted_servers import ScriptedServer

CLIENTS: dict[str, tuple[str, type[OpenAIClient]]] = {
    "router": ("llama-server", kinds.LlamaServer),
    "llama-server": ("llama-server", kinds.LlamaServer),
    "lmstudio": ("lmstudio", kinds.LMStudio),
    "llama-swap": ("llama-swap", kinds.LlamaSwap),
    "vllm": ("vllm", kinds.VLLM),
    "openai": ("openai", OpenAIClient),
}
Opened = tuple[OpenAIClient, "ScriptedServer"]


@pytest.fixture
def open_kind(make_server: Callable[..., ScriptedServer]) -> Iterator[Callable[..., Opened]]:
    """open_kind("lmstudio", models, entry={"unload": True}, jit=False): a client and its server."""
    with ExitStack() as clients:

        def open_one(
            kind: str,
            *args: Any,
            entry: dict[str, Any] | None = None,
            timeouts: Timeouts | None = None,
            **settings: Any,
        ) -> Opened:
            double = make_server(kind, *args, **settings)
            name, client_class = CLIENTS[kind]
            server = Server(url=double.url, kind=name, **(entry or {}))
            client = client_class(server, timeouts or Timeouts())
            return clients.enter_context(client), double

        yield open_one


@pytest.fixture(scope="session")
def red_image() -> str:
    """A red JPEG in base64."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()
