"""What the tests of jobs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama, tmp_path: Path) -> None:
    """The scripted Ollama is the default server, and image-refinery.toml is this test's own."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
