"""What several tests of the client need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def end_unloads() -> Callable[[FaultyOllama], None]:
    """end_unloads(ollama): what is being unloaded is gone now.

    So `unload_s` can be far longer than any pause of the machine, and no test waits for it.
    """

    def end(ollama: FaultyOllama) -> None:
        def leaving() -> list[Any]:
            return [entry for entry in ollama._residents.values() if entry.gone_at is not None]

        assert ollama.wait_until(lambda: bool(leaving()), 20), "nothing is being unloaded"
        for entry in leaving():
            entry.gone_at = time.monotonic()

    return end
