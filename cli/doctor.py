"""`image-refinery doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

from ..memory.report import readable
from ..ollama_client import embedded
from ..ollama_client.client import OllamaClient
from ..ollama_client.errors import OllamaError
from ..ollama_client.servers import config_path, find_server, server_names

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "requests",
    "pillow",
    "numpy",
)


def doctor() -> int:
    """Print one line per thing looked at; 1 when something that is needed is missing."""
    problems = [*_packages(), *_graphics(), *_servers(), *_engine()]
    print()
    if not problems:
        print("Everything that describing images needs is here.")
        return 0
    print("To do:")
    for problem in problems:
        print(f"  - {problem}")
    return 1


def _packages() -> list[str]:
    print(f"Python {platform.python_version()} on {platform.system()}, {sys.executable}")
    missing: list[str] = []
    for name in _PACKAGES:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name}: not installed")
            missing.append(name)
    return [f"Install what is missing: pip install {' '.join(missing)}"] if missing else []


def _graphics() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            print(f"GPU {index}: {name}, {readable(free)} of {readable(total)} free")
    elif torch.backends.mps.is_available():
        print("GPU: Apple Metal")
    else:
        print("GPU: none that torch can use; everything runs on the CPU, slowly")
    return []


def _servers() -> list[str]:
    path = config_path()
    print(f"Configuration: {path}" + ("" if path.is_file() else " (there is none)"))
    for variable in ("OLLAMA_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY"):
        print(f"  {variable} is {'set' if os.environ.get(variable) else 'not set'}")
    problems: list[str] = []
    for name in server_names():
        problems += _server(name)
    return problems


def _server(name: str) -> list[str]:
    try:
        with OllamaClient(find_server(name)) as client:
            version = client.version()
            models = [client.with_capabilities(model) for model in client.models()]
            loaded = client.loaded()
    except OllamaError as error:
        print(f'Server "{name}": {error}')
        if embedded.available():
            return [f"{error} Without it the embedded engine works: OLLAMA_BASE_URL=embedded"]
        return [str(error)]
    print(f'Server "{name}": Ollama {version} at {client.url}, {len(models)} models')
    for model in loaded:
        print(f"  loaded: {model.name}, {readable(model.vram_bytes)} of GPU memory")
    problems: list[str] = []
    for capability, usual in (("vision", "llava"), ("completion", "llama3.2")):
        able = [model.name for model in models if not model.lacks(capability)]
        print(f"  {capability}: {', '.join(able) or 'none'}")
        if not able:
            problems.append(f"Fetch a model for {capability}: ollama pull {usual}")
    return problems


def _engine() -> list[str]:
    if reason := embedded.why_unavailable():
        print(f"Embedded engine: {reason}")
        return []
    names = [model.name for model in embedded.Library().models()]
    print(f"Embedded engine: ready, with {', '.join(names) or 'no models'}")
    return []
