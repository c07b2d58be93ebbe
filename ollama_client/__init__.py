"""The shared Ollama client: plain Python, usable without ComfyUI.

>>> from image_refinery.ollama_client import OllamaClient, collect
>>> with OllamaClient() as client:                                          # doctest: +SKIP
...     answer = collect(client.chat("llama3.2", [{"role": "user", "content": "Hello"}]))
...     print(answer.text)
"""

from .client import (
    Answer,
    LoadedModel,
    Message,
    Model,
    OllamaClient,
    PullProgress,
    Unloaded,
    collect,
    same_model,
)
from .errors import OllamaError
from .options import StageOptions
from .servers import Server, find_server, parse_host, server_names
from .transport import Timeouts

__all__ = [
    "Answer",
    "LoadedModel",
    "Message",
    "Model",
    "OllamaClient",
    "OllamaError",
    "PullProgress",
    "Server",
    "StageOptions",
    "Timeouts",
    "Unloaded",
    "collect",
    "find_server",
    "parse_host",
    "same_model",
    "server_names",
]
