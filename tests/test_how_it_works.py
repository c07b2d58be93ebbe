"""The pages that follow an image name functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("image-*.md"))
NAME = r"`(_?[A-Za-z]\w*(?:\._?\w+)?)`"
FILE = r"`([\w/]+\.py)`"


def defined(file: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{m.name}" for m in node.body if isinstance(m, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_function_of_the_page_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(rf"{NAME} \({FILE}\)", text) + re.findall(rf"{NAME} in {FILE}", text)
    assert len(named) > 15
    missing = [
        f"{file}: {name}"
        for name, file in named
        if not (ROOT / file).is_file() or name not in defined(ROOT / file)
    ]
    assert missing == []
    known = {name for file in {file for _, file in named} for name in defined(ROOT / file)}
    methods = re.findall(r"`(_?[A-Z]\w*\._?\w+)`", text)
    assert [name for name in methods if name not in known] == []
