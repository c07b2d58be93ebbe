"""What is installed is what was meant: requirements, packages, data, and cheap imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import image_refinery
import pytest
from image_refinery._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
OUTSIDE = {
    "tests", "tools", "benchmarks", "docs", "build", "dist", "demo-output", "bench-output",
}  # fmt: skip
# Loads the checkout as ComfyUI and tests/conftest.py do, with nothing of the checkout on sys.path.
LOADER = f"""
import importlib, importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "image_refinery", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
)
package = sys.modules["image_refinery"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
"""


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def python_files() -> list[Path]:
    """Every .py that git knows or would add; all but hidden folders where there is no git."""
    try:
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # a checkout without git
        paths = [path for path in ROOT.rglob("*.py") if not hidden(path)]
    return [path for path in paths if path.is_file()]


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def package_folders() -> list[str]:
    """The dotted names of the checkout's folders that are packages."""
    found = [image_refinery.__name__]
    for init in ROOT.rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and parts[0] not in OUTSIDE and not hidden(init):
            found.append(".".join((image_refinery.__name__, *parts)))
    return sorted(found)


def test_requirements_txt_says_what_pyproject_says() -> None:
    def plain(lines: list[str]) -> list[str]:
        return [line.replace('"', "'").replace(" ", "") for line in lines]

    assert plain(requirement_lines()) == plain(PROJECT["project"]["dependencies"])


def test_every_package_folder_is_listed() -> None:
    assert sorted(PACKAGES) == package_folders()


def test_the_version_is_said_once() -> None:
    assert __version__ == PROJECT["project"]["version"]


def test_the_changelog_knows_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert PROJECT["project"]["version"] in headings


def test_every_source_file_can_be_read_on_windows() -> None:
    wrong: list[str] = []
    files = python_files()
    for path in files:
        try:
            path.read_text("utf-8").encode("cp1252")
        except UnicodeEncodeError as error:
            wrong.append(f"{path.relative_to(ROOT)}: {error.object[error.start]!a}")
    assert len(files) > 10
    assert wrong == []


# nodes/ imports ComfyUI, which has torch loaded in any case.
CHEAP = [name for name in PACKAGES if not name.startswith("image_refinery.nodes")]


@pytest.mark.parametrize("name", CHEAP)
def test_an_import_loads_nothing_heavy(name: str) -> None:
    heavy = ["torch", "diffusers", "transformers", "accelerate", "xllamacpp", "comfy"]
    code = f"""{LOADER}
importlib.import_module({name!r})
print(*[module for module in {heavy} if module in sys.modules])
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "docs", check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """A wheel of the checkout, built in a copy (a build leaves folders) and without a network."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the wheel")
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "a checkout with another name"
    leave = {".git", ".venv", "build", "dist", "tests", "bench-output", "demo-output"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        noise = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
        return noise | (leave & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignore)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(place)!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        command, cwd=copy, capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    [built] = place.glob("*.whl")
    return zipfile.Path(built)


def wheel_names(wheel: zipfile.Path) -> set[str]:
    return set(wheel.root.namelist())


def test_the_wheel_holds_every_module(wheel: zipfile.Path) -> None:
    folders = [ROOT.joinpath(*name.split(".")[1:]) for name in PACKAGES]
    modules = {
        f"image_refinery/{path.relative_to(ROOT).as_posix()}"
        for folder in folders
        for path in folder.glob("*.py")
    }
    assert modules <= wheel_names(wheel)


@pytest.mark.parametrize(
    ("folder", "patterns"),
    [
        ("llm/llamacpp/models", ("*.gguf", "*.json")),
        ("refine", ("**/*.json", "**/*.txt")),
        ("web", ("**/*.js", "**/*.md")),
        ("locales", ("**/*.json",)),
        ("example_workflows", ("*.json",)),
        ("wildcards", ("**/*.txt",)),
        ("instructions", ("*.txt",)),
    ],
)
def test_the_wheel_holds_the_data(
    wheel: zipfile.Path, folder: str, patterns: tuple[str, ...]
) -> None:
    data = {path for pattern in patterns for path in (ROOT / folder).glob(pattern)}
    assert data, f"{folder} has no {' or '.join(patterns)}"
    wanted = {f"image_refinery/{path.relative_to(ROOT).as_posix()}" for path in data}
    assert wanted <= wheel_names(wheel)


def test_the_wheel_holds_nothing_else(wheel: zipfile.Path) -> None:
    strangers = [
        name
        for name in wheel_names(wheel)
        if re.search(r"(^|/)(tests|tools|benchmarks|\.venv|\.git|__pycache__)/", name)
    ]
    assert strangers == []


def test_the_wheel_has_the_command(wheel: zipfile.Path) -> None:
    [entry_points] = [name for name in wheel_names(wheel) if name.endswith("entry_points.txt")]
    text = wheel.root.read(entry_points).decode()
    assert "image-refinery = image_refinery.__main__:main" in text
