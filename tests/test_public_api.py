"""What Python users import from a released version is still there, and is called the same way."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RELEASED = sorted((ROOT / "tests" / "public_api").glob("*.json"))
ACCEPTED = {
    "ollama_client.StageOptions": "moved to captioning",
    "ollama_client.stages.Job": "moved to captioning",
    "ollama_client.stages.Stage": "moved to captioning",
    "ollama_client.stages.run": "moved to captioning",
    "ollama_client.Model.__init__": "size_bytes is None where it is not known",
    "ollama_client.OllamaClient.check_think": "think_value",
    "ollama_client.OllamaClient.loaded": "ps, as Ollama calls it",
    "ollama_client.OllamaClient.models": "list, as Ollama calls it",
    "ollama_client.OllamaClient.pick": "find",
    "ollama_client.OllamaClient.place": "Server.title",
    "ollama_client.OllamaClient.with_capabilities": "show, as Ollama calls it",
    "ollama_client.Server.__init__": "embedded is a kind",
    "ollama_client.Server.embedded": "is_embedded, or kind",
    "ollama_client.Server.place": "Server.title and Server.where",
    "memory.StageMemory.after": "client is named backend",
    "memory.StageMemory.before": "client is named backend",
    "memory.StageMemory.out_of_memory": "client is named backend",
    "refine.Parts": "Components, as diffusers calls them",
    "refine.LocalResidency.__init__": "parts is named components",
    "refine.LocalResidency.use": "part is named component",
    "refine.Residency.use": "part is named component",
    "refine.RefineSettings.__init__": "keep_colors, which was keep_colours: both are accepted",
    "refine.RefineCancelled": "a cancel is no error",
}
"""Incompatible changes that were decided, and why. CHANGELOG.md must name each in backticks."""

spec = importlib.util.spec_from_file_location("public_api", ROOT / "tools" / "public_api.py")
assert spec is not None and spec.loader is not None
public_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(public_api)


@cache
def api_now() -> dict[str, Any]:
    return public_api.read_api(ROOT)


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_what_was_released_is_still_there(file: Path) -> None:
    now = api_now()
    changed = public_api.differences(json.loads(file.read_text("utf-8")), now)
    broken = {name: what for name, what in changed.items() if name not in ACCEPTED}
    assert broken == {}, "bring it back, or put it into ACCEPTED and the CHANGELOG"


def test_accepted_changes_are_real_and_in_the_changelog() -> None:
    now = api_now()
    real: set[str] = set()
    for file in RELEASED:
        real |= set(public_api.differences(json.loads(file.read_text("utf-8")), now))
    assert set(ACCEPTED) <= real, "these are compatible again: take them out of ACCEPTED"
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    names = [name.removesuffix(".__init__") for name in ACCEPTED]
    last_parts = [name.rpartition(".")[2] for name in names]
    assert [name for name in last_parts if f"`{name}`" not in changelog] == []


CLIENT = """
from ._base import Base, new_name

class Error(Base): ...

class Client(Base):
    def __init__(self, url: str = "here", *, limit_s: float = 1.0) -> None: ...
    def call(self, model, options=None): ...
    @property
    def url(self): ...

def old_name(model): ...
TIMEOUT = 3
__all__ = ["Client", "Error", "TIMEOUT", "old_name"]
"""
BASE = """
class Base(Exception):
    def close(self): ...

def new_name(model): ...
"""


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", "", {}),
        ("TIMEOUT = 3\n", "", {"ollama_client.TIMEOUT": "is gone"}),  # listed, but not there
        (', "old_name"', "", {"ollama_client.old_name": "function is gone"}),
        ("def old_name(model): ...", "old_name = new_name", {}),
        ("Error(Base)", "Error", {"ollama_client.Error": "is no longer a Base"}),
        ("def call(", "def ask(", {"ollama_client.Client.call": "function is gone"}),
        (" options=", " choices=", {"ollama_client.Client.call": "parameter options is gone"}),
        (" options=None", " *, options=None", {"ollama_client.Client.call": "parameter options: "}),
        (" options=None", " options", {"ollama_client.Client.call": "options is required"}),
        ("options=None", "options=None, *, a", {"ollama_client.Client.call": "new parameter a is"}),
        ("options=None", "options=None, *, a=1", {}),
        ("model, options=", "a=0, model=0, options=", {"ollama_client.Client.call": "order"}),
        ("1.0", "2.0", {"ollama_client.Client.__init__": "default was 1.0, is 2.0"}),
    ],
)
def test_the_comparison_notices(
    tmp_path: Path, before: str, after: str, found: dict[str, str]
) -> None:
    def read(folder: Path, client: str) -> dict[str, Any]:
        for name, text in (("refine", "__all__ = []"), ("ollama_client", client), ("memory", "")):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(text, "utf-8")
        (folder / "ollama_client" / "_base.py").write_text(BASE, "utf-8")
        (folder / "__init__.py").touch()
        packages = ", ".join(
            f'"image_refinery{name}"' for name in ("", ".refine", ".ollama_client", ".memory")
        )
        text = f"[tool.setuptools]\npackages = [{packages}]\n"
        (folder / "pyproject.toml").write_text(text, "utf-8")
        return public_api.read_api(folder)

    assert before in CLIENT
    old = read(tmp_path / "old", CLIENT)
    changed = public_api.differences(old, read(tmp_path / "new", CLIENT.replace(before, after, 1)))
    assert set(changed) == set(found)
    for name, words in found.items():
        assert words in changed[name]


def test_every_exported_name_can_be_imported() -> None:
    for package in public_api.PACKAGES:
        module = importlib.import_module(f"image_refinery.{package}")
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_readme_shows_public_names_only() -> None:
    public = set(api_now())
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"^from image_refinery\.(\S+) import (.+)$", readme, flags=re.MULTILINE)
    assert shown
    for package, names in shown:
        if package in public_api.PACKAGES:
            assert {f"{package}.{name.strip()}" for name in names.split(",")} <= public
