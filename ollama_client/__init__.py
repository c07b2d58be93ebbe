"""The shared Ollama client: plain Python, usable without ComfyUI.

>>> from image_refinery.ollama_client import OllamaClient, collect
>>> with OllamaClient() as client:                                          # doctest: +SKIP
...     answer = collect(client.chat("llama3.2", [{"role": "user", "content": "Hello"}]))
...     print(answer.text)

The names below are fetched on first use: ComfyUI needs few of these modules when it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import Answer as Answer
    from .client import LoadedModel as LoadedModel
    from .client import Message as Message
    from .client import Model as Model
    from .client import OllamaClient as OllamaClient
    from .client import PullProgress as PullProgress
    from .client import Unloaded as Unloaded
    from .client import collect as collect
    from .client import same_model as same_model
    from .errors import OllamaError as OllamaError
    from .servers import Server as Server
    from .servers import find_server as find_server
    from .servers import parse_host as parse_host
    from .servers import server_names as server_names
    from .transport import Timeouts as Timeouts

_HOMES = {
    "Answer": "client",
    "LoadedModel": "client",
    "Message": "client",
    "Model": "client",
    "OllamaClient": "client",
    "OllamaError": "errors",
    "PullProgress": "client",
    "Server": "servers",
    "Timeouts": "transport",
    "Unloaded": "client",
    "collect": "client",
    "find_server": "servers",
    "parse_host": "servers",
    "same_model": "client",
    "server_names": "servers",
}

__all__ = [
    "Answer",
    "LoadedModel",
    "Message",
    "Model",
    "OllamaClient",
    "OllamaError",
    "PullProgress",
    "Server",
    "Timeouts",
    "Unloaded",
    "collect",
    "find_server",
    "parse_host",
    "same_model",
    "server_names",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
