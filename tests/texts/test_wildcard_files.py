"""Which files a wildcard's name stands for, what is read from them, and that no name leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_refinery.texts import WildcardFiles


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "wildcards"
    write(top / "colour.txt", "# warm first\nred\n\n  2::blue  \n// none\n; none\n\\#ff0000\n")
    write(top / "Colours" / "Warm.txt", "orange")
    write(top / "colours" / "cold.TXT", "cyan")
    write(top / "notes.md", "not a wildcard")
    write(tmp_path / "secret.txt", "secret")
    return top


def texts(files: WildcardFiles, name: str) -> list[str]:
    return [line.text for line in files.lines(name)]


def test_comments_and_empty_lines_are_skipped_and_weights_are_read(folder: Path) -> None:
    lines = WildcardFiles([folder]).lines("colour")
    assert [(line.weight, line.text) for line in lines] == [
        (1.0, "red"),
        (2.0, "blue"),
        (1.0, "#ff0000"),
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("COLOUR", ["red", "blue", "#ff0000"]),
        ("colours/warm", ["orange"]),
        ("colours\\warm", ["orange"]),
        ("warm", ["orange"]),
        ("colours/*", ["cyan", "orange"]),
        ("colour*", ["red", "blue", "#ff0000", "cyan", "orange"]),
        ("**/cold", ["cyan"]),
        ("*old", ["cyan"]),
        ("[cw]*", []),
        ("notes", []),
        ("", []),
    ],
)
def test_names_and_globs(folder: Path, name: str, wanted: list[str]) -> None:
    assert texts(WildcardFiles([folder]), name) == wanted


def test_the_first_folder_that_has_a_name_counts(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write(own / "colour.txt", "my red")
    write(own / "extra.txt", "x")
    files = WildcardFiles([own, folder, tmp_path / "not there"])
    assert texts(files, "colour") == ["my red"]
    assert files.names() == ["colour", "colours/cold", "colours/warm", "extra"]


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..\\secret",
        "colours/../../secret",
        "/etc/passwd",
        "//server/share/x",
        "C:\\secret",
        "C:secret",
        "\\\\?\\C:\\secret",
        "secret\0",
        "colour\0.txt",
        "~/secret",
        "file:///etc/passwd",
        "**/../secret",
        "../*",
        "*/secret",
        "con",
        "%HOME%/secret",
    ],
)
def test_no_name_leads_out_of_the_folders(folder: Path, tmp_path: Path, name: str) -> None:
    files = WildcardFiles([folder])
    assert files.lines(name) == ()
    absolute = str(tmp_path / "secret")
    assert files.lines(absolute) == files.lines(absolute + ".txt") == ()


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_links_that_lead_out_are_left_out(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "x.txt", "outside")
    (folder / "leak.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "leaks").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "again.txt").symlink_to(folder / "colour.txt")
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    names = ["again", "colour", "colours/cold", "colours/warm"]
    assert WildcardFiles([folder]).names() == names
    assert WildcardFiles([tmp_path / "linked"]).names() == names, "the folder may be a link itself"


def test_a_glob_made_to_be_slow_ends_at_once(folder: Path) -> None:
    write(folder / ("a" * 100 + ".txt"), "x")
    assert WildcardFiles([folder]).lines("*a" * 80 + "b") == ()


def test_the_stamp_changes_with_the_files(folder: Path) -> None:
    before = WildcardFiles([folder]).stamp()
    assert WildcardFiles([folder]).stamp() == before
    write(folder / "colour.txt", "only one")
    changed = WildcardFiles([folder]).stamp()
    write(folder / "more.txt", "x")
    assert len({before, changed, WildcardFiles([folder]).stamp()}) == 3


def test_a_file_that_cannot_be_read_says_so(folder: Path) -> None:
    files = WildcardFiles([folder])
    assert files.names()
    (folder / "colour.txt").unlink()
    with pytest.raises(FileNotFoundError):
        files.lines("colour")
