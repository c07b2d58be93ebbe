"""What the registry and comfy-test want of every Python file, those of tools and tests too.

The real ones need a network or a running ComfyUI (CONTRIBUTING.md); these are their rules.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# comfy-test's level "syntax" fails on these. It reads line by line and knows no strings, so this
# file may not spell them either.
FORBIDDEN = {
    "a device by name": re.compile(
        r"\.cuda" + r"\s*\(|\.to\s*\(\s*(torch\.device\s*\(\s*)?[\"']cuda"
    ),
    "autocast of torch": re.compile(r"torch\.(cuda\.)?(amp\.)?autocast" + r"\s*\("),
    "a layer of torch.nn by its full name": re.compile(
        r"(?<![\w.])(torch\.)?nn\.(Linear|Conv[123]d|ConvTranspose[12]d|LayerNorm|GroupNorm|Embedding)"
        + r"\s*\("
    ),
    "pickle": re.compile(r"torch\.load" + r"\s*\("),
}


def python_files() -> list[Path]:
    """Every .py file that git knows, or would on the next `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the pack is not known")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def test_every_file_can_be_written_in_the_code_page_of_western_windows():
    wrong = {}
    for file in python_files():
        text = file.read_text(encoding="utf-8")
        bad = {char for char in set(text) if not _in_cp1252(char)}
        if bad:
            wrong[str(file.relative_to(ROOT))] = sorted(hex(ord(char)) for char in bad)
    assert wrong == {}


def _in_cp1252(char: str) -> bool:
    try:
        char.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("name", FORBIDDEN)
def test_nothing_that_comfy_test_forbids(name: str):
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in python_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN[name].search(line) and not line.lstrip().startswith("#")
    ]
    assert found == []


def test_no_exec_no_eval_and_one_statement_per_line():
    """What `comfy node validate` runs; warnings today, errors soon, it says."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "S102,S307,E702"]
    files = [str(file) for file in python_files()]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout
