"""Every `>>>` in the package's docstrings, run as a test of the module that it stands in."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Not nodes/: those import ComfyUI. Not pytest's --doctest-modules: it would import each file under
# a name of its own, where relative imports fail.
FOLDERS = (
    "captioning",
    "cli",
    "files",
    "jobs",
    "llm",
    "memory",
    "ollama_client",
    "refine",
    "texts",
)


def modules_with_examples() -> list[str]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [path for path in paths if ">>> " in path.read_text("utf-8")]
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found]
    return [name.removesuffix(".__init__") for name in dotted]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"image_refinery.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0, f"{result.failed} of {result.attempted} failed: see above"


def test_the_server_addresses_have_examples() -> None:
    assert any(name.startswith("ollama_client.") for name in modules_with_examples())
