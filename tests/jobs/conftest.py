"""What the tests of jobs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama, tmp_path: Path) -> None:
    """The scripted Ollama is the default server, and image-refinery.toml is this test's own."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def named(
    tmp_path: Path, make_ollama: Callable[..., FaultyOllama]
) -> Callable[..., dict[str, FaultyOllama]]:
    """Start servers, and name them in image-refinery.toml."""

    def start(**models: Any) -> dict[str, FaultyOllama]:
        servers = {name: make_ollama(*given) for name, given in models.items()}
        config = tmp_path / "config" / "image-refinery" / "image-refinery.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            "".join(f'[servers.{name}]\nurl = "{one.url}"\n' for name, one in servers.items())
        )
        return servers

    return start
