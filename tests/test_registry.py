"""What the Comfy registry gets: an archive with everything that runs, an icon and a banner."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "__init__.py",
    "__main__.py",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
)
NEEDED_FOLDERS = (
    "captioning",
    "cli",
    "example_workflows",
    "examples",
    "files",
    "instructions",
    "llm",
    "locales",
    "memory",
    "nodes",
    "ollama_client",
    "refine",
    "subgraphs",
    "texts",
    "web",
    "wildcards",
)


def tracked() -> list[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name]


def left_out(names: list[str]) -> set[str]:
    """What .comfyignore takes out; git reads it with the very rules that it is written by."""
    answer = subprocess.run(
        ["git", "-c", f"core.excludesFile={ROOT / '.comfyignore'}", "check-ignore", "--no-index",
         "-z", "--stdin"],
        cwd=ROOT, input="\0".join(names), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode in (0, 1), answer.stderr
    return set(answer.stdout.split("\0")) - {""}


def test_the_archive_has_all_that_runs_and_nothing_of_the_workshop() -> None:
    names = tracked()
    ignored = left_out(names)
    packed = [name for name in names if name not in ignored]
    assert set(NEEDED) <= set(packed)
    for folder in NEEDED_FOLDERS:
        inside = [name for name in names if name.startswith(f"{folder}/")]
        assert inside and set(inside) <= set(packed), f"{folder}: {set(inside) & ignored}"
    workshop = ("tests/", "tools/", "benchmarks/", "docs/adr/", "docs/quality/")
    assert not [name for name in packed if name.startswith(workshop)]
    size = sum((ROOT / name).stat().st_size for name in packed if (ROOT / name).is_file())
    assert size < 12_000_000, f"{size} bytes: what is so large?"


def test_the_icon_and_the_banner_are_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("make_icon", ROOT / "tools" / "make_icon.py")
    assert spec is not None and spec.loader is not None
    make_icon = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_icon)
    for name, drawn in (("icon", make_icon.icon()), ("banner", make_icon.banner())):
        with Image.open(ROOT / "docs" / "images" / f"{name}.png") as file:
            committed = np.asarray(file.convert("RGBA"), dtype=float)
        now = np.asarray(drawn.convert("RGBA"), dtype=float)
        assert committed.shape == now.shape
        assert np.abs(committed - now).mean() < 1.0  # another Pillow may round otherwise
    assert make_icon.icon().size == (400, 400)
    width, height = make_icon.banner().size
    assert width * 9 == height * 21
