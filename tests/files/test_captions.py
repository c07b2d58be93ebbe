"""Caption files: name, encoding, prefix and suffix, and what happens to one that exists."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from image_refinery.files import caption_file, write_caption


def test_a_caption_is_utf_8_with_its_trigger_words(tmp_path: Path) -> None:
    file = caption_file(tmp_path / "new" / "one.png")
    assert write_caption(file, " caf\u00e9 \u96ea\n", prefix="ohwx, ", suffix=", photo")
    assert file.read_bytes() == "ohwx, caf\u00e9 \u96ea, photo".encode()


@pytest.mark.parametrize(
    ("existing", "wanted"),
    [("skip", "old\n"), ("overwrite", "new"), ("append", "old, new")],
)
def test_a_caption_that_exists(tmp_path: Path, existing: str, wanted: str) -> None:
    file = tmp_path / "one.txt"
    file.write_text("old\n", "utf-8")
    assert write_caption(file, "new", existing=existing) == (existing != "skip")
    assert file.read_text("utf-8") == wanted


def test_appending_to_nothing_leaves_no_empty_line(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(" \n")
    write_caption(tmp_path / "one.txt", "new", existing="append")
    assert (tmp_path / "one.txt").read_text() == "new"


def test_the_caption_of_before_stays_if_the_new_one_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.txt"
    write_caption(file, "before")

    def full(*_: object) -> None:
        assert file.read_text() == "before"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_caption(file, "new")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='existing is "replace"'):
        write_caption(tmp_path / "one.txt", "x", existing="replace")
    assert not (tmp_path / "one.txt").exists()


def test_halves_of_surrogate_pairs_become_characters(tmp_path: Path) -> None:
    write_caption(tmp_path / "one.txt", "a \ud83d\ude00 and \ud83d alone")
    assert (tmp_path / "one.txt").read_text("utf-8") == "a \U0001f600 and \ufffd alone"


@pytest.mark.parametrize(
    ("before", "wanted"),
    [("A cat.", "A cat. new"), ("cat, mat", "cat, mat, new"), ("a\nb,\n", "a b, new")],
)
def test_what_is_appended_stays_on_the_line(tmp_path: Path, before: str, wanted: str) -> None:
    file = tmp_path / "one.txt"
    file.write_text(before, "utf-8")
    write_caption(file, "new", existing="append")
    assert file.read_text("utf-8") == wanted


def test_line_breaks_are_kept_by_choice(tmp_path: Path) -> None:
    file = tmp_path / "one.txt"
    write_caption(file, "one\ntwo", keep_line_breaks=True)
    write_caption(file, "three", existing="append", keep_line_breaks=True)
    assert file.read_text("utf-8") == "one\ntwo\nthree"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_readers_of_the_first_line_get_the_whole_caption(tmp_path: Path, line_break: str) -> None:
    """kohya's sd-scripts reads `readlines()[0]`, OneTrainer and ai-toolkit split at line breaks."""
    file = tmp_path / "one.txt"
    write_caption(file, f"a cat{line_break} {line_break}on a mat", prefix="ohwx, ")
    with open(file, encoding="utf-8") as lines:
        assert lines.readlines() == ["ohwx, a cat on a mat"]
    assert file.read_text("utf-8").splitlines() == ["ohwx, a cat on a mat"]
