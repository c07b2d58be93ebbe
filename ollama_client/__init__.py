"""Ollama's HTTP API: plain Python, usable without ComfyUI.

>>> from image_refinery.ollama_client import OllamaClient, collect
>>> with OllamaClient() as client:                                          # doctest: +SKIP
...     answer = collect(client.chat("llama3.2", [{"role": "user", "content": "Hello"}]))
...     print(answer.text)
"""

from ..llm.backend import Answer, LoadedModel, Message, Model, PullProgress, Unloaded, collect
from ..llm.errors import LLMError as OllamaError
from ..llm.http import Timeouts
from ..llm.servers import Server, find_server, parse_host, server_names
from .client import OllamaClient, same_model

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
