"""Where a job's images may be: folders, lists, tables, tar files and addresses."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from image_refinery.llm.errors import UnusableImage
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


pytestmark = pytest.mark.usefixtures("address")


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., int]:
    return lambda *words: main(["batch", *map(str, words), "--job", str(tmp_path / "job")])


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(folder)}


def png(width: int = 60, height: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 0, 0)).save(file, "PNG")
    return file.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def ids(*inputs: Path | str, **options: Any) -> list[str]:
    return [item.id for item in jobs.find_items(inputs, **options)]


# folders


def test_patterns_choose_by_the_path(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "cats/a.png", "cats/old/b.png", "dogs/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    found = lambda *patterns: ids(tmp_path, recursive=True, patterns=patterns)  # noqa: E731
    assert found("*.jpg") == ["b.JPG"]
    assert found("cats/*") == ["cats/a.png", "cats/old/b.png"]
    assert found("a.*", "dogs/*") == ["a.png", "dogs/a.png"]
    assert found("[") == []


def test_an_empty_folder_is_no_error(batch: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert batch(tmp_path / "set", "--out", "txt,jsonl,parquet,wds") == 0
    assert (tmp_path / "job" / "metadata.jsonl").read_text() == ""
    assert list((tmp_path / "job" / "wds").iterdir()) == []


@LINUX
def test_hostile_names(batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama) -> None:
    top = tmp_path / "set"
    top.mkdir()
    names = ["n" * 251 + ".png", "-rf.png", "a b .png", "a..b.c.png", "..a.png", "'\"$(x).png"]
    for name in (*names, "x.PNG", "X2.png", "line\nbreak.png"):
        (top / name).write_bytes(png())
    (top / "Same.jpg").write_bytes(png())
    (top / "same.jpg").write_bytes(png())
    Path(os.fsdecode(os.fsencode(top) + b"/caf\xe9.png")).write_bytes(png())
    out = tmp_path / "out"
    assert batch(top, "--out", "jsonl,parquet,wds", "--output", out) == 0
    rows = rows_of(tmp_path / "job")
    assert len(rows) == len(ollama.of("chat")) == 11  # a leading dot hides a file
    (top / "Same.jpg").unlink()
    assert batch(top, "--out", "txt,jsonl", "--output", out) == 0
    assert len(list(out.glob("*.txt"))) == 10 and not list(out.glob("*.new"))
    assert len(ollama.of("chat")) == 11
    # Other programs, and a job of ours, read the list.
    (out / "metadata.jsonl").rename(top / "list.jsonl")
    assert sorted(ids(top / "list.jsonl")) == sorted(ids(top))


def test_images_that_cannot_be_used_are_failures(
    batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama
) -> None:
    top = tmp_path / "set"
    top.mkdir()
    (top / "long.png").write_bytes(png(10_000, 1))
    (top / "bomb.png").write_bytes(bomb())
    (top / "empty.png").write_bytes(b"")
    (top / "cut.png").write_bytes(png()[:60])
    (top / "text.png").write_text("no image")
    (top / "link.png").symlink_to(top / "missing.png")
    (top / "folder.png").mkdir()
    assert batch(top) == 1
    rows = rows_of(tmp_path / "job")
    assert {id: row["status"] for id, row in rows.items()} == {
        "long.png": "done",
        "bomb.png": "failed",
        "empty.png": "failed",
        "cut.png": "failed",
        "text.png": "failed",
    }
    assert len(ollama.of("chat")) == 1
    assert "too large" in rows["bomb.png"]["error"]["message"]


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 px in a few bytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    data = part(b"IHDR", size) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# tables


@pytest.mark.parametrize("column", ["file_name", "path", "image_path", "where"])
def test_parquet_files_name_images(tmp_path: Path, column: str) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "cats").mkdir()
    for name in ("a.png", "cats/b.png"):
        (tmp_path / name).write_bytes(png())
    table = pyarrow.table({"n": [1, 2], column: ["cats/b.png", "a.png"]})
    pq.write_table(table, tmp_path / "list.parquet")
    named = {"column": column} if column == "where" else {}
    assert ids(tmp_path / "list.parquet", **named) == ["cats/b.png", "a.png"]


def test_parquet_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    file = tmp_path / "list.parquet"
    for columns, said in (
        ({"n": [1]}, "has no column file_name or path or image_path, but n. Name the one"),
        ({"path": ["a.png", None]}, "Row 2 of .* has no path in path"),
        ({"path": [1]}, "Row 1 of .* has no path"),
        ({"path": ["a.png", "missing.png"]}, "Row 2 of .* names no file: missing.png"),
    ):
        (tmp_path / "a.png").write_bytes(png())
        pq.write_table(pyarrow.table(columns), file)
        with pytest.raises(jobs.BadInputList, match=said):
            jobs.find_items([file])
    file.write_bytes(b"PAR1 no parquet")
    with pytest.raises(jobs.BadInputList, match="is no parquet file, or is damaged"):
        jobs.find_items([file])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(jobs.BadInputList, match=r"need the package pyarrow: .*pip install pyarrow"):
        jobs.find_items([file])


# tar files


def test_images_in_a_tar_file(
    batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama
) -> None:
    shard = make_tar(
        tmp_path / "s0.tar",
        {
            "a.jpg": png(),
            "a.txt": b"ohwx cat",
            "a.json": b"{}",
            "b.left.png": png(30, 20),
            "b.txt": b"by key",
        },
    )
    prompt = "{name}, {folder}, {tags}, {width} x {height}"
    out = tmp_path / "out"
    assert batch(shard, "--out", "txt", "--output", out, "--vision-prompt", prompt) == 0
    asked = [request.body["messages"][-1]["content"] for request in ollama.of("chat")]
    assert asked == ["a, s0.tar, ohwx cat, 60 x 40", "b.left, s0.tar, by key, 30 x 20"]
    assert sorted(rows_of(tmp_path / "job")) == ["s0.tar/a.jpg", "s0.tar/b.left.png"]
    assert (out / "s0.tar" / "a.txt").exists() and (out / "s0.tar" / "b.left.txt").exists()
    item = jobs.find_items([shard])[0]
    assert item.open().size == (60, 40) and item.read() == png()


def test_a_list_names_tar_files(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        make_tar(tmp_path / "shards" / f"{number}.tar", {"a.jpg": png()})
    (tmp_path / "list.txt").write_text("shards/0.tar\nshards/1.tar\n")
    assert ids(tmp_path / "list.txt") == ["shards/0.tar/a.jpg", "shards/1.tar/a.jpg"]


def test_captions_of_a_tar_file_need_a_place(
    batch: Callable[..., int], tmp_path: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    shard = make_tar(tmp_path / "s.tar", {"a.jpg": png()})
    assert batch(shard, "--out", "txt") == 1
    assert "s.tar/a.jpg is no file on a disk, so no caption" in capsys.readouterr().err
    assert not ollama.of("chat") and batch(shard) == 0


def test_a_tar_file_leads_nowhere_else(
    batch: Callable[..., int], tmp_path: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    shard = make_tar(
        tmp_path / "s.tar",
        {"../../../x.png": png(), "/etc/y.png": png(), "ok.png": png(), "x\\..\\..\\z.png": png()},
    )
    with tarfile.open(shard, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    out = tmp_path / "deep" / "out"
    assert batch(shard, "--out", "txt", "--output", out) == 1
    assert "s.tar/../../../x.png would not be below --output" in capsys.readouterr().err
    before = {path for path in tmp_path.rglob("*") if tmp_path / "job" not in path.parents}
    assert batch(shard, "--out", "jsonl,parquet,wds") == 0
    assert sorted(rows_of(tmp_path / "job")) == [
        "s.tar/../../../x.png", "s.tar//etc/y.png", "s.tar/ok.png", "s.tar/x\\..\\..\\z.png",
    ]  # fmt: skip
    after = {path for path in tmp_path.rglob("*") if tmp_path / "job" not in path.parents}
    assert before == after
    with tarfile.open(tmp_path / "job" / "wds" / "000000.tar") as tar:
        assert all(name[:9].isdigit() and "/" not in name for name in tar.getnames())


def test_tar_files_that_cannot_be_used(tmp_path: Path) -> None:
    whole = make_tar(
        tmp_path / "s.tar", {"a.jpg": png(), "b.jpg": png(500, 400), "b.txt": b"x"}
    ).read_bytes()
    damaged = bytearray(whole)
    damaged[1024:1536] = b"\xff" * 512
    for name, data, said in (
        ("cut.tar", whole[: 1024 + 700], "is no tar file, or is damaged or cut off"),
        ("half.tar", whole[:1024], "cut off"),
        ("damaged.tar", bytes(damaged), "cut off"),
        ("empty.tar", b"", "cut off"),
        ("text.tar", b"no tar" * 1000, "cut off"),
        ("packed.tar", gzip.compress(whole), "is a compressed tar file, and only uncompressed"),
        ("packed.tar.gz", gzip.compress(whole), "is a compressed tar file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(jobs.BadInputList, match=said):
            jobs.find_items([tmp_path / name])


def test_a_tar_file_that_changes_later_is_a_failure(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "s.tar", {"a.jpg": png()})
    (item,) = jobs.find_items([shard])
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(UnusableImage, match="has become shorter"):
        item.open()
    shard.unlink()
    with pytest.raises(UnusableImage, match="cannot be read"):
        item.open()


# addresses


def test_images_at_an_address(
    batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name, data in (
        ("/set/a.png", png()),
        ("/set/a.txt", b"ohwx cat"),
        ("/set/cats/b.png", png(30, 20)),
        ("/set/.hidden/c.png", png()),
        ("/setting/d.png", png()),
    ):
        files.pipe(name, data)
    try:
        assert ids("memory://set") == ["a.png"]
        assert ids("memory://set/", recursive=True) == ["a.png", "cats/b.png"]
        assert ids("memory://set/cats/b.png") == ["b.png"]
        assert batch("memory://set", "--recursive", "--out", "txt") == 1
        assert "memory://set/a.png is no file on a disk" in capsys.readouterr().err
        prompt = ("--vision-prompt", "{name}, {folder}, {tags}, {width}")
        out = ("--out", "txt,wds", "--output", tmp_path / "out")
        assert batch("memory://set", "--recursive", *out, *prompt) == 0
        asked = [request.body["messages"][-1]["content"] for request in ollama.of("chat")]
        assert asked == ["a, set, ohwx cat, 60", "b, cats, , 30"]
        assert (tmp_path / "out" / "cats" / "b.txt").exists()
        (item,) = jobs.find_items(["memory://set"])
        files.rm("/set/a.png")
        with pytest.raises(UnusableImage, match=r"a\.png does not exist"):
            item.open()
    finally:
        files.rm("/set", recursive=True)
        files.rm("/setting", recursive=True)


def test_addresses_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(jobs.BadInputList, match="nothing at this address"):
        jobs.find_items(["memory://missing"])
    with pytest.raises(jobs.BadInputList, match="nonsense://x cannot be read"):
        jobs.find_items(["nonsense://x"])
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(jobs.BadInputList, match=r"a package that is missing .*install s3fs$"):
        jobs.find_items(["s3://bucket/x"])
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(jobs.BadInputList, match="need the package fsspec"):
        jobs.find_items(["s3://bucket/x"])
