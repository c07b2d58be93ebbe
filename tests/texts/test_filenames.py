"""Text To Filename: names that Linux, macOS and Windows all take, and that ComfyUI leaves alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_refinery.texts import safe_filename

RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
RESERVED |= {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"}


def wrong(name: str, longest_bytes: int) -> str:
    """What some system would not take about a name; empty: nothing."""
    if not name or len(name.encode()) > longest_bytes:
        return "length"
    if re.search(r'[<>:"/\\|?*%\x00-\x1f\x7f]', name):
        return "characters"
    if name != name.strip() or name[-1] == "." or name[0] in ".-~":
        return "ends"
    if name.partition(".")[0].strip().lower() in RESERVED:
        return "device"
    return ""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red ball.", "A red ball"),
        ("a/b\\c", "a b c"),
        ("../../etc/passwd", "etc passwd"),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ('<b>"quoted": yes|no?*', "b quoted yes no"),
        ("%date:yyyy% 100%", "date yyyy 100"),
        ("con", "_con"),
        ("Con .txt", "_Con .txt"),
        ("COM1.tar.gz", "_COM1.tar.gz"),
        ("lpt\u00b9", "_lpt\u00b9"),
        ("console", "console"),
        ("  .hidden.  . ", "hidden"),
        ("-rf ~", "rf ~"),
        ("", "image"),
        ("///", "image"),
        ("\x00\x07\x85", "image"),
        ("\ud800lone", "lone"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u96ea\u306e\u5c71 \u05d4\u05e8", "\u96ea\u306e\u5c71 \u05d4\u05e8"),
    ],
)
def test_names(text: str, name: str) -> None:
    assert safe_filename(text) == name


def test_a_long_text_ends_at_a_word_within_its_bytes() -> None:
    name = safe_filename("word " * 100, longest_bytes=23)
    assert name == "word word word word"
    assert len(safe_filename("x" * 1000).encode()) == 120
    snow = safe_filename("\u96ea" * 1000, longest_bytes=100)
    assert snow == "\u96ea" * 33, "whole letters only"


def test_a_cut_leaves_no_letter_without_its_mark() -> None:
    marked = "q\u0323" * 40  # no single letter exists for it
    assert safe_filename(marked, longest_bytes=13) == "q\u0323" * 4


@pytest.mark.parametrize("longest_bytes", [7, 256])
def test_a_length_out_of_range_is_refused(longest_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"longest_bytes is {longest_bytes}"):
        safe_filename("x", longest_bytes=longest_bytes)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300), st.integers(8, 255))
def test_any_text_gives_a_safe_name_that_gives_itself(text: str, longest_bytes: int) -> None:
    name = safe_filename(text, longest_bytes=longest_bytes)
    assert wrong(name, longest_bytes) == "", repr(name)
    assert safe_filename(name, longest_bytes=longest_bytes) == name


def test_a_file_of_that_name_can_be_made(tmp_path: Path) -> None:
    for text in ("A: B/C" * 60, "aux", "\u96ea" * 200, "..."):
        file = tmp_path / f"{safe_filename(text, longest_bytes=240)}_00001_.png"
        file.write_bytes(b"")
        assert file.is_file()
