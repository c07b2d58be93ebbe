"""README's VRAM table: what machines measured, and no file that somebody made up."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "machines_table.py"
GIB = 2**30
GB = 10**9
REFINER = "sd_xl_refiner_1.0.safetensors"

PERIOD = {"end_bytes": GB, "stand_in": False, "gone": None}
PROOF: dict[str, Any] = {
    "schema": 1,
    "gpu": {"name": "NVIDIA GeForce RTX 3060", "memory_bytes": 12 * GIB},
    "models": {
        "vision": {"name": "smolvlm:256m", "stand_in": False, "shares_gpu": True},
        "text": {"name": "llama3.2:latest", "stand_in": False, "shares_gpu": True},
        "refiner": {"name": REFINER, "stand_in": False, "size_bytes": 6.1 * GB},
    },
    "timeline": [
        {"who": who, "what": what, "start_s": start, "end_s": end, "start_bytes": GB,
         "peak_bytes": peak, **PERIOD}
        for who, what, start, end, peak in (
            ("smolvlm:256m", "load", 0, 1, 1.3 * GB),
            ("smolvlm:256m", "describe", 1, 5.5, 1.5 * GB),
            ("smolvlm:256m", "unload", 5.5, 5.75, 1.5 * GB),
            ("llama3.2:latest", "rewrite", 6, 7, 3.6 * GB),
            (REFINER, "unload", 8, 9.25, 8 * GB),
        )
    ],
    "peaks": [
        {"mode": "gpu", "peak_bytes": 7.3 * GIB, "seconds": 4},
        {"mode": "offload", "error": "Out of memory."},
        {"mode": "low_vram", "peak_bytes": 2.1 * GIB, "seconds": 9},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> Iterator[Any]:
    """tools/machines_table.py."""
    spec = importlib.util.spec_from_file_location("machines_table", TOOL)
    assert spec is not None and spec.loader is not None
    module = sys.modules["machines_table"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["machines_table"]


@pytest.fixture
def table(tool: Any, tmp_path: Path) -> Callable[..., str]:
    """table(proof, ...): the text of a README whose table was written from proofs."""
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- vram -->\nold\n<!-- /vram -->\nbelow\n", "utf-8")

    def write(*proofs: dict[str, Any]) -> str:
        for number, proof in enumerate(proofs):
            (tmp_path / f"{number}.json").write_text(json.dumps(proof), "utf-8")
        words = ["--readme", str(readme), "--machines", str(tmp_path)]
        assert tool.main([*words, "--check"]) == 1, "it is still the old one"
        assert tool.main(words) == 0 == tool.main([*words, "--check"])
        return readme.read_text("utf-8")

    return write


def changed(**changes: Any) -> dict[str, Any]:
    """The proof with other values: changed(models__vision__stand_in=True)."""
    proof = copy.deepcopy(PROOF)
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner: Any = proof
        for name in parents:
            inner = inner[int(name) if name.isdecimal() else name]
        inner[last] = value
    return proof


def test_the_table_in_the_readme_is_that_of_the_machines(tool: Any) -> None:
    assert tool.main(["--check"]) == 0


def test_without_machines_all_is_computed(table: Callable[..., str]) -> None:
    text = table()
    assert text.startswith("above\n<!-- vram -->\n| VRAM | Vision model |")
    assert text.endswith("not measured on a GPU yet.\n<!-- /vram -->\nbelow\n")
    assert "| gpu: 7.2 GiB |" in text and "| offload: 4.6 GiB |" in text and "old" not in text


def test_what_a_machine_measured_replaces_what_was_computed(table: Callable[..., str]) -> None:
    text = table(PROOF, changed(gpu__name="Other", peaks__0__peak_bytes=7.6 * GIB))
    assert "| gpu: 7.6 GiB measured |" in text, "the most of all machines"
    assert "| offload: 4.6 GiB |" in text, "nobody has measured it"
    assert "not measured on a GPU yet" not in text
    assert (
        "| NVIDIA GeForce RTX 3060, 12.0 GiB | smolvlm:256m: 0.5 GB | llama3.2:latest: 2.6 GB "
        "| gpu: 7.3 GiB, low_vram: 2.1 GiB | 1.2 s |\n"
    ) in text


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"models__vision__stand_in": True}, "smolvlm"),
        ({"models__vision__shares_gpu": False}, "smolvlm"),
        ({"models__refiner__stand_in": True}, "measured |"),
        ({"models__refiner__name": "sd_xl_base_1.0.safetensors"}, "measured |"),
        ({"models__refiner__size_bytes": 5_000_000}, "measured |"),
        ({"gpu": None}, "measured by"),
        ({"gpu__memory_bytes": None}, "measured by"),
        ({"models": {}}, "measured by"),
    ],
)
def test_stand_ins_and_machines_without_a_gpu_do_not_count(
    table: Callable[..., str], tmp_path: Path, changes: dict[str, Any], gone: str
) -> None:
    assert gone in table(PROOF)
    (tmp_path / "README.md").write_text("<!-- vram -->\n<!-- /vram -->", "utf-8")
    text = table(changed(**changes))
    assert gone not in text.replace("smolvlm:256m, smolvlm2:2.2b", "")


HUGE = "9" * 5000
HOSTILE = {
    "no object": "[1]",
    "no JSON": "{",
    "an empty file": "",
    "NaN": json.dumps(PROOF).replace("1.25", "NaN").replace('"end_s": 5.5', '"end_s": NaN'),
    "deep": "[" * 200_000,
    "a number of 5000 digits": json.dumps(PROOF).replace('"end_s": 1,', f'"end_s": {HUGE},'),
    "an infinite number": json.dumps(PROOF).replace('"end_s": 1,', '"end_s": 1e999,'),
    "another schema": changed(schema=2),
    "a true schema of another type": changed(schema="1"),
    "no timeline": {name: value for name, value in PROOF.items() if name != "timeline"},
    "a timeline of text": changed(timeline="load"),
    "a long timeline": changed(timeline=PROOF["timeline"] * 300),
    "a model that is nothing": changed(models__vision=None),
    "a period of text": changed(timeline=["load"]),
    "a name with HTML": changed(gpu__name="<img src=x>"),
    "a name with a bar": changed(gpu__name="RTX | 9"),
    "a name with a link": changed(models__vision__name="[x](http://evil.example)"),
    "a name with a line break": changed(gpu__name="RTX\n# Heading"),
    "a long name": changed(gpu__name="x" * 121),
    "a name that is a number": changed(gpu__name=3060),
    "a negative size": changed(gpu__memory_bytes=-1),
    "a size that is true": changed(gpu__memory_bytes=True),
    "a stand-in that is a word": changed(models__refiner__stand_in="no"),
    "an unknown mode": changed(peaks__0__mode="turbo"),
    "a mode that is a list": changed(peaks__0__mode=["gpu"]),
    "an end before the start": changed(timeline__0__start_s=99),
    "a peak below the start": changed(timeline__0__peak_bytes=1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_one_sentence_and_changes_nothing(
    tool: Any, tmp_path: Path, name: str, capsys: Any
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- vram -->\n<!-- /vram -->", "utf-8")
    text = HOSTILE[name]
    file = tmp_path / "bad.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
    assert tool.main(["--readme", str(readme), "--machines", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bad.json cannot be used: ") and line.endswith(".")
    assert readme.read_text("utf-8") == "<!-- vram -->\n<!-- /vram -->"


def test_bytes_that_are_no_text_and_large_files_are_refused(
    tool: Any, tmp_path: Path, capsys: Any
) -> None:
    words = ["--readme", str(tmp_path / "README.md"), "--machines", str(tmp_path)]
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{}")
    assert tool.main(words) == 1
    (tmp_path / "bad.json").write_text(json.dumps(PROOF) + " " * 2_000_000)
    assert tool.main(words) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "it is not JSON" in first and "it is larger than 2 MB" in second


def test_a_readme_without_marks_is_named(tool: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "README.md").write_text("no table")
    words = ["--readme", str(tmp_path / "README.md"), "--machines", str(tmp_path)]
    assert tool.main(words) == 1
    assert "README.md has no <!-- vram -->" in capsys.readouterr().err
