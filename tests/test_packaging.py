"""What is installed is what was meant: requirements, packages, data, and cheap imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import image_refinery
import pytest
from image_refinery._version import __version__
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

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


# nodes/ imports ComfyUI, which has torch loaded in any case; refine/ is built on torch.
WITH_TORCH = ("image_refinery.nodes", "image_refinery.refine")
CHEAP = [name for name in PACKAGES if not name.startswith(WITH_TORCH)]


def test_an_import_loads_nothing_heavy() -> None:
    """Each package by itself: the pack's own modules are forgotten before the next."""
    heavy = ["torch", "diffusers", "transformers", "accelerate", "xllamacpp", "comfy"]
    code = f"""{LOADER}
for name in {CHEAP}:
    for module in [module for module in sys.modules if module.startswith("image_refinery.")]:
        del sys.modules[module]
    importlib.import_module(name)
    for module in {heavy}:
        if module in sys.modules:
            print(name, "imports", module)
print("imported", len({CHEAP}))
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "docs", check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"imported {len(CHEAP)}"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of the checkout and a wheel built from it, without a network."""
    place = tmp_path_factory.mktemp("distributions")
    copy = place / "a checkout with another name"  # a build leaves folders
    leave = {".git", ".venv", "build", "dist", "tests", "bench-output", "demo-output"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        noise = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
        return noise | (leave & set(names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, copy, ignore=ignore)
    command = [sys.executable, "-W", "ignore", "-m", "build", "--no-isolation", "--outdir"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [*command, str(place), str(copy)],
        cwd=place,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return place


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> zipfile.Path:
    [built] = distributions.glob("*.whl")
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
        ("subgraphs", ("*.json",)),
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


def test_the_sdist_holds_what_the_wheel_is_built_from(distributions: Path) -> None:
    [built] = distributions.glob("*.tar.gz")
    with tarfile.open(built) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "__init__.py"} <= names
    assert not [name for name in names if name.startswith(("tools/", "benchmarks/", ".venv/"))]


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment: the wheel, and this environment's libraries."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    [built] = distributions.glob("*.whl")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run = subprocess.run(
        [*command, "--disable-pip-version-check", "--no-index", "--no-deps", str(built)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # Only the folders: an editable checkout is found by a .pth file in them, which is not read.
    here = [sysconfig.get_path(kind) for kind in ("purelib", "platlib")]
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    [site] = subprocess.check_output([python, "-c", code], text=True).splitlines()
    Path(site, "libraries.pth").write_text("\n".join(dict.fromkeys(here)), "utf-8")
    return python


def in_bare(python: Path, *arguments: str, cwd: Path, **variables: str) -> str:
    """What the new environment's Python prints, in a folder without the checkout."""
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [str(python), *arguments],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    code = "import image_refinery; print(image_refinery.__file__)"
    assert Path(in_bare(installed, "-c", code, cwd=tmp_path).strip()).is_relative_to(
        installed.parents[1]
    )
    assert in_bare(installed, "-m", "image_refinery", "--version", cwd=tmp_path).split() == [
        __version__
    ]
    [script] = installed.parent.glob("image-refinery*")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [__version__]


README_BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)

# The README's lines stay as they are, but a megapixel would take a CPU a minute.
SMALL_WORK = """import functools
from image_refinery.refine import ImageRefiner
ImageRefiner.refine = functools.partialmethod(ImageRefiner.refine, working_size="keep size")
"""


@pytest.mark.parametrize("number", range(len(README_BLOCKS)))
def test_python_of_the_readme_runs_where_it_is_installed(
    installed: Path, ollama: FaultyOllama, tiny_file: Path, tmp_path: Path, number: int
) -> None:
    """Letter for letter, with a scripted Ollama, the tiny refiner, and images of ours."""
    block = README_BLOCKS[number]
    preamble = SMALL_WORK if "ImageRefiner" in block else ""
    (tmp_path / "readme.py").write_text(preamble + block, "utf-8")
    shutil.copy(ROOT / "examples" / "photo.jpg", tmp_path)
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "input.png")
    printed = in_bare(
        installed,
        "readme.py",
        cwd=tmp_path,
        OLLAMA_BASE_URL=ollama.url,
        IMAGE_REFINERY_REFINER=str(tiny_file),
    )
    if "print(" in block:
        assert printed.strip()
        assert ollama.requests
