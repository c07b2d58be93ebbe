"""Which files a wildcard's name stands for, what is read from them, and that no name leads out."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from image_refinery.texts import WildcardFiles, expand


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


needs_links = pytest.mark.skipif(
    os.name == "nt", reason="making links needs a privilege on Windows"
)


@needs_links
def test_links_in_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "x.txt", "outside")
    write(tmp_path / "outside" / "deep" / "lists.yaml", "size: [small, tall]")
    (folder / "linked.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "mine").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "again.txt").symlink_to(folder / "colour.txt")
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
    names = [
        "again",
        "colour",
        "colours/cold",
        "colours/warm",
        "linked",
        "mine/deep/size",
        "mine/x",
    ]
    assert WildcardFiles([folder]).names() == names
    assert WildcardFiles([tmp_path / "linked"]).names() == names, "the folder may be a link itself"
    assert texts(WildcardFiles([folder]), "mine/x") == ["outside"]
    assert WildcardFiles([folder]).lines("mine/../secret") == ()


@needs_links
def test_a_link_does_not_make_a_text_of_another_file(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "id_rsa", "a key")
    (folder / "leak.txt").symlink_to(tmp_path / "id_rsa")
    (folder / "leak.yaml").symlink_to(tmp_path / "id_rsa")
    assert "leak" not in WildcardFiles([folder]).names()


@needs_links
def test_links_in_a_circle_end(tmp_path: Path) -> None:
    top = tmp_path / "top"
    write(top / "a" / "x.txt", "x")
    write(top / "b" / "y.txt", "y")
    (top / "a" / "to_b").symlink_to(top / "b", target_is_directory=True)
    (top / "b" / "to_a").symlink_to(top / "a", target_is_directory=True)
    (top / "b" / "here").symlink_to(top / "b", target_is_directory=True)
    (top / "up").symlink_to(tmp_path, target_is_directory=True)
    (top / "root").symlink_to("/", target_is_directory=True)
    assert WildcardFiles([top]).names() == ["a/to_b/y", "a/x", "b/to_a/x", "b/y"]


@needs_links
def test_folders_that_links_multiply_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("image_refinery.texts.wildcard_files._MAX_FOLDERS", 100)
    for n in range(20):
        (tmp_path / f"{n}").mkdir()
        for name in "pq":
            (tmp_path / f"{n}" / name).symlink_to(tmp_path / f"{n + 1}", target_is_directory=True)
    assert WildcardFiles([tmp_path]).names() == []
    assert "more than 100 folders" in caplog.text


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


def test_collections_are_read_only_when_a_name_is_not_a_text_file_s(folder: Path) -> None:
    broken = write(folder / "broken.yaml", "a: [1\nb: 2\n")
    files = WildcardFiles([folder])
    assert texts(files, "colour")[0] == "red" and not files.problems
    assert files.lines("nowhere") == ()
    (problem,) = files.problems
    assert problem.startswith("broken.yaml cannot be read (line 2: ") and str(folder) in problem
    broken.unlink()
    assert not expand("__nowhere__", WildcardFiles([folder]), 0).problems[1:]


def test_a_text_file_comes_before_a_collection_and_both_before_the_next_folder(
    folder: Path, tmp_path: Path
) -> None:
    write(folder / "list.yaml", "colour: [from yaml]\nonly: [first]\ncolours: {warm: [other]}")
    write(folder / "more.json", '{"only": ["second"], "more": ["json"]}')
    write(tmp_path / "next" / "only.txt", "next")
    write(tmp_path / "next" / "more.txt", "next")
    files = WildcardFiles([folder, tmp_path / "next"])
    assert texts(files, "colour")[0] == "red"
    assert texts(files, "colours/warm") == ["orange"]
    assert texts(files, "only") == ["first"] and texts(files, "more") == ["json"]
    assert texts(WildcardFiles([tmp_path / "next", folder]), "only") == ["next"]


def test_a_collection_is_read_again_when_it_changes(folder: Path) -> None:
    path = write(folder / "list.yaml", "size: [small]")
    first, stamp = WildcardFiles([folder]).lines("size"), WildcardFiles([folder]).stamp()
    assert WildcardFiles([folder]).lines("size")[0] is first[0], "kept in memory"
    write(path, "size: [small, tall]")
    assert texts(WildcardFiles([folder]), "size") == ["small", "tall"]
    assert WildcardFiles([folder]).stamp() != stamp


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.yaml", "x: &c [one, two]\ny: *c", {"x": ["one", "two"], "y": ["one", "two"]}),
        ("a.yaml", "b: &b {k: [one]}\nx:\n  <<: *b\n  m: [two]\n  k: [three]",
         {"b/k": ["one"], "x/k": ["three"], "x/m": ["two"]}),
        ("a.yaml", "x: [1990, no, on, 1.50, ~, null, '', 2026-01-01, '~']",
         {"x": ["1990", "no", "on", "1.50", "2026-01-01", "~"]}),
        ("a.yaml", "x: text\ny: 3\nz: 0.5\nn: null\nt: true\nq: '7'", {"x": ["text"], "q": ["7"]}),
        ("a.yaml", "x:\n  - [in, a, list]\n  - key: value\n  - last", {"x": ["last"]}),
        ("a.yaml", "x: [one]\n---\ny: [two]\n...\n", {"x": ["one"], "y": ["two"]}),
        ("a.yaml", "x: !!python/object/apply:os.system [echo]\ny: !mine tagged",
         {"x": ["echo"], "y": ["tagged"]}),
        ("a.yaml", "\ufeffx: [caf\u00e9]", {"x": ["caf\u00e9"]}),
        ("a.yaml", "x: ['# kept', '\\#kept']\n? [a, b]\n: [c]", {"x": ["# kept", "\\#kept"]}),
        ("a.yaml", "X Y/ z: [one]", {"x y/ z": ["one"]}),
        ("a.json", '{"x": ["one", 2, null, true, {"text": "t", "weight": 3}]}',
         {"x": ["one", "2", "t"]}),
        ("a.json", '["one", "two"]', {"a": ["one", "two"]}),
        ("a.yaml", "", {}),
        ("a.yaml", "just a text", {}),
        ("a.json", '"just a text"', {}),
    ],
)  # fmt: skip
def test_what_is_read_of_a_collection(
    tmp_path: Path, name: str, text: str, wanted: dict[str, list[str]]
) -> None:
    write(tmp_path / name, text)
    files = WildcardFiles([tmp_path])
    assert {found: texts(files, found) for found in files.names()} == wanted
    assert not files.problems


LAUGHS = "".join(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 39))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.yaml", f"a0: &a0 [ha]\n{LAUGHS}", "it has more than 200,000 names"),
        ("a.yaml", "x: &x [*x]", "*x has no &x before it"),
        ("a.yaml", "x: &x {y: *x}", "*x has no &x before it"),
        ("a.yaml", "- " * 50_000 + "x", "it has more than 40 levels"),
        ("a.yaml", "[" * 200_000, ""),
        ("a.yaml", "{a: " * 50_000, "it has more than 40 levels"),
        ("a.yaml", "x:\n\t- y", "line 2: found character"),
        ("a.yaml", "x: \x01", "control characters are not allowed"),
        ("a.yaml", "x: 'never closed", "line 1: found unexpected end of stream"),
        ("a.json", "[" * 200_000, ""),
        ("a.json", '{"a":' * 100 + "1" + "}" * 100, "it has more than 40 levels"),
        ("a.json", "{'x': 1}", "line 1 column 2"),
        ("a.json", "", "line 1 column 1"),
    ],
    ids=["laughs", "itself", "in itself", "deep", "lists", "maps", "tab", "control", "open",
         "json deep", "json levels", "json quotes", "json empty"],
)  # fmt: skip
def test_a_hostile_or_broken_collection_is_one_sentence(
    tmp_path: Path, name: str, text: str, why: str
) -> None:
    write(tmp_path / name, text)
    write(tmp_path / "good.txt", "good")
    begun = time.monotonic()
    files = WildcardFiles([tmp_path])
    assert files.names() == ["good"]
    assert time.monotonic() - begun < 5.0
    (problem,) = files.problems
    assert problem.startswith(f"{name} cannot be read (") and why in problem
    assert problem.count("\n") == 0 and len(problem) < 400 + len(str(tmp_path))


def test_laughs_of_lists_take_no_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    write(tmp_path / "laughs.yaml", "\n".join(lines))
    tracemalloc.start()
    try:
        assert len(WildcardFiles([tmp_path]).lines("a0")) == 9
        assert WildcardFiles([tmp_path]).lines("a11") == ()
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_collection_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    monkeypatch.setattr(Path, "read_bytes", None)
    files = WildcardFiles([tmp_path])
    assert files.lines("x") == () and "more than 64 MiB" in files.problems[0]


def test_without_libyaml_the_same_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    write(tmp_path / "a.yaml", "x: [one, 2::two]\ny: 3\n")
    write(tmp_path / "b.yaml", "- " * 1000)
    write(tmp_path / "c.yaml", "x:\n\t- y")
    files = WildcardFiles([tmp_path])
    assert texts(files, "x") == ["one", "two"] and files.names() == ["x"]
    assert "40 levels" in files.problems[0] and "line 2: " in files.problems[1]
