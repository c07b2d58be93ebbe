"""dev.py: what it runs, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
assert spec is not None and spec.loader is not None
dev = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dev)

HERE = Path(__file__).relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("extra", "end"),
    [
        ([], [*dev.IN_PROCESSES, "-m", "not slow", "tests"]),
        (["--all", "-x"], [*dev.IN_PROCESSES, "-x", "tests"]),
        # A folder of the checkout is called refine.
        (["-k", "refine"], [*dev.IN_PROCESSES, "-m", "not slow", "-k", "refine", "tests"]),
        (["-x", HERE], ["-x", HERE]),
        ([f"{HERE}::test_one", "-q"], [f"{HERE}::test_one", "-q"]),
        (["tests/nothing.py"], [*dev.IN_PROCESSES, "-m", "not slow", "tests/nothing.py", "tests"]),
    ],
)
def test_pytest_runs_all_tests_unless_some_are_named(extra: list[str], end: list[str]) -> None:
    assert dev.pytest_arguments(extra) == ["-c", str(ROOT / "tests" / "pytest.ini"), *end]


def test_every_command_is_in_the_makefile_and_the_docs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    docs = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert f"COMMANDS := {' '.join(dev.COMMANDS)}\n" in makefile
    assert all(f"py dev.py {name}" in docs for name in dev.COMMANDS)


def test_the_stamp_changes_with_the_requirements_and_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints: list[str] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for file in dev.REQUIREMENT_FILES:
            shutil.copy(ROOT / file, folder)
        monkeypatch.setattr(dev, "ROOT", folder)
        prints.append(dev.fingerprint())
    with (tmp_path / "two" / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("one-more\n")
    prints.append(dev.fingerprint())
    assert len(set(prints)) == 3


def test_an_unsupported_python_looks_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev.find_python() == sys.executable
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    monkeypatch.setattr(shutil, "which", {"python3.12": "/found/python3.12"}.get)
    assert dev.find_python() == "/found/python3.12"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(dev.DevError, match=r"3\.10 or newer is needed, and this is 3\.9"):
        dev.find_python()


def test_a_venv_that_is_not_there_does_not_work(tmp_path: Path) -> None:
    assert dev.works(Path(sys.executable))
    assert not dev.works(tmp_path / "bin" / "python")


@pytest.mark.parametrize("arguments", [[], ["dance"]])
def test_wrong_usage_is_said_before_anything_is_installed(arguments: list[str]) -> None:
    command = [sys.executable, str(ROOT / "dev.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "usage: dev.py" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.skipif(
    os.name == "nt" or shutil.which("make") is None, reason="no make, or no shell beside it"
)
def test_make_passes_arguments_and_exit_codes_on(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@"\nexit 3\n', "utf-8")
    script.chmod(0o755)
    command = ["make", "test", f"PYTHON={script}", "ARGS=-k refine"]
    # The tests may run below a make themselves, which would speak of itself in the inner one.
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    run = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout.strip().splitlines()[0] == "dev.py test -k refine"
    assert run.returncode == 2  # make's own, for a recipe that failed
