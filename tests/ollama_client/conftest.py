"""The scripted Ollama for this folder: `from faulty_ollama import ...` and two fixtures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "faulty_ollama" not in sys.modules:  # tests/ is not on sys.path, and must not be
    path = Path(__file__).resolve().parent.parent / "faulty_ollama.py"
    spec = importlib.util.spec_from_file_location("faulty_ollama", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faulty_ollama"] = module
    spec.loader.exec_module(module)

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def make_ollama() -> Iterator[Callable[..., FaultyOllama]]:
    """Start any number of scripted servers: make_ollama(models, version="0.12.0", ...)."""
    from faulty_ollama import FaultyOllama

    with ExitStack() as servers:

        def make(*args: Any, **settings: Any) -> FaultyOllama:
            return servers.enter_context(FaultyOllama(*args, **settings))

        yield make


@pytest.fixture
def ollama(make_ollama: Callable[..., FaultyOllama]) -> FaultyOllama:
    """A scripted server of the newest release with `llava` (vision) and `llama3.2` (text)."""
    return make_ollama()
