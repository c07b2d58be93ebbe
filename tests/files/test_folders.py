"""Names stay inside their folder; pictures are found and sorted as a person counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_refinery.files import OutsideFolder, count_links_out, find_images, inside, subfolders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "input"
    for name in ("b10.png", "b2.PNG", "a.jpg", "sub/c.webp", "sub/deep/d.gif", "x.txt", ".h.png"):
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"")
    return top


def names(folder: Path, **how: object) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in find_images(folder, **how)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", ".", "cats", "cats/one.png", "cats\\one.png", "a..b", "..."])
def test_names_that_stay(folder: Path, name: str) -> None:
    assert inside(folder, name).resolve().is_relative_to(folder.resolve())


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../outside",
        "cats/../../outside",
        "cats\\..\\..\\outside",
        "/etc/passwd",
        "\\etc",
        "//server/share",
        "C:\\Windows",
        "C:x",
        "x.png:stream",
        "s3://bucket/a.png",
        "a\0b",
        "~/x",
        "con",
        "cats/aux.png",
    ],
)
def test_names_that_lead_out_are_refused_on_every_system(folder: Path, name: str) -> None:
    with pytest.raises(OutsideFolder, match="cannot be used in"):
        inside(folder, name)


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_links_that_lead_out(folder: Path, tmp_path: Path) -> None:
    (folder / "leak").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "leak.png").symlink_to(tmp_path / "outside" / "secret.png")
    with pytest.raises(OutsideFolder):
        inside(folder, "leak/secret.png")
    assert not any("leak" in name for name in names(folder, recursive=True))
    assert "leak" not in subfolders(folder)
    assert count_links_out(folder, recursive=True) == 1, "a linked folder is not walked"
    assert count_links_out(folder, pattern="b*") == 0


def test_pictures_are_sorted_as_a_person_counts(folder: Path) -> None:
    assert names(folder) == ["a.jpg", "b2.PNG", "b10.png"]
    everything = ["a.jpg", "b2.PNG", "b10.png", "sub/c.webp", "sub/deep/d.gif"]
    assert names(folder, recursive=True) == everything
    assert names(folder, pattern="B*.png") == ["b2.PNG", "b10.png"]
    assert names(folder, pattern=" ") == names(folder)


def test_a_folder_that_is_not_there_says_so(folder: Path) -> None:
    with pytest.raises(NotADirectoryError, match="There is no folder"):
        find_images(folder / "nowhere")


def test_subfolders_are_listed(folder: Path) -> None:
    (folder / ".hidden").mkdir()
    assert subfolders(folder) == ["sub", "sub/deep"]
    assert subfolders(folder, deepest=1) == ["sub"]
    assert subfolders(folder, most=1) == ["sub"]
    assert subfolders(folder / "nowhere") == []
