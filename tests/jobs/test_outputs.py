"""What other programs read of a job: parquet and WebDataset shards."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.cli.main import main
from image_refinery.jobs import shards
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."
NAMES = ("a.png", "a.b.jpg", "cats/a.png", "cats/a.webp")


pytestmark = pytest.mark.usefixtures("address")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    top = tmp_path / "set"
    (top / "cats").mkdir(parents=True)
    for shade, name in enumerate(NAMES):
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(top / name)
    (top / "bad.png").write_text("no image")
    return top


@pytest.fixture
def batch(images: Path, tmp_path: Path) -> Callable[..., int]:
    words = ["batch", str(images), "--recursive", "--job", str(tmp_path / "job")]
    return lambda *more: main([*words, *map(str, more)])


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """The files of each key in all shards of a folder."""
    found: dict[str, dict[str, bytes]] = {}
    for file in sorted(folder.iterdir()):
        with tarfile.open(file) as tar:
            for member in tar:
                key, ending = member.name.split(".")
                data = tar.extractfile(member)
                assert data is not None and ending not in found.setdefault(key, {})
                found[key][ending] = data.read()
    return found


def test_parquet_has_a_row_for_each_result(batch: Callable[..., int], tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    words = ("--task", "caption", "--instructions", "Shorten it.", "--prefix", "ohwx, ")
    assert batch(*words, "--out", "parquet") == 1
    rows = {
        row["file_name"]: row
        for row in pq.read_table(tmp_path / "job/captions.parquet").to_pylist()
    }
    assert sorted(rows) == sorted((*NAMES, "bad.png"))
    assert rows["cats/a.png"] == {
        "file_name": "cats/a.png",
        "text": f"ohwx, {CRIMSON}",
        "description": RED,
        "vision_model": "llava:latest",
        "text_model": "llama3.2:latest",
        "flags": [],
        "status": "done",
        "error": None,
    }
    bad = rows["bad.png"]
    assert bad["text"] is None and bad["status"] == "failed" and bad["error"].endswith("(R302)")
    assert not list((tmp_path / "job").glob("*.new"))


def test_shards_have_each_image_as_it_is(
    batch: Callable[..., int], images: Path, tmp_path: Path
) -> None:
    for _ in range(2):  # a second run replaces them
        batch("--out", "wds", "--prefix", "ohwx, ")
        found = samples(tmp_path / "job" / "wds")
        assert len(found) == 4
        names = set[str]()
        for sample in found.values():
            about = json.loads(sample["json"])
            path = images / about["file_name"]
            names.add(about["file_name"])
            assert sample[path.suffix[1:]] == path.read_bytes()
            assert sample["txt"].decode() == about["text"] == f"ohwx, {RED}"
            assert about["vision_model"] == "llava:latest" and "error" not in about
        assert names == set(NAMES)
    assert not [path for path in (tmp_path / "job").iterdir() if ".new" in path.name]


def test_shards_are_limited(
    batch: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job" / "wds"
    monkeypatch.setattr(shards, "MAX_SAMPLES", 3)
    batch("--out", "wds")
    assert sorted(path.name for path in folder.iterdir()) == ["000000.tar", "000001.tar"]
    assert len(samples(folder)) == 4
    monkeypatch.setattr(shards, "MAX_BYTES", 10)
    batch("--out", "wds")
    assert len(list(folder.iterdir())) == 4 and len(samples(folder)) == 4
    monkeypatch.undo()


def test_shards_that_cannot_be_finished_leave_the_last_ones(
    batch: Callable[..., int], images: Path, tmp_path: Path, capsys: Any
) -> None:
    batch("--out", "wds")
    folder = tmp_path / "job" / "wds"
    before = samples(folder)

    def broken() -> Any:
        yield {"png": b"x"}
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        shards.write_shards(folder, broken())
    assert samples(folder) == before
    assert not folder.with_name("wds.new").exists()


def test_what_others_wrote_is_not_replaced(
    batch: Callable[..., int], images: Path, tmp_path: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    out = tmp_path / "out"
    for kind, name in (("parquet", "captions.parquet"), ("wds", "wds/000000.tar")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("by hand")
        assert batch("--out", kind, "--output", out) == 1
        assert "is there already, and not from this job" in capsys.readouterr().err
        assert (out / name).read_text() == "by hand" and not ollama.of("chat")
    (out / "wds" / "000000.tar").rename(out / "wds" / "notes.md")
    batch()
    assert batch("--out", "wds", "--output", out) == 1
    assert "not from this job" in capsys.readouterr().err
    assert (out / "wds" / "notes.md").exists()


def test_parquet_without_pyarrow_is_said_before_the_first_image(
    batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any, ollama: FaultyOllama
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert batch("--out", "parquet") == 1
    assert "need the package pyarrow" in capsys.readouterr().err and not ollama.of("chat")
