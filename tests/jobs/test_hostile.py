"""Jobs where the disk, the folder or another process is against them: a sentence, nothing lost.

Names, huge and damaged images are in test_items.py, kills in test_batch.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama, RecordedRequest

ROOT = Path(__file__).resolve().parents[2]
RED = "A red circle on a white background."
COUNT = 30
UNIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions and limits")


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    top = tmp_path / "set"
    top.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(top / f"{number:02}.png")
    return top


def words_of(images: Path, job: Path, *more: object) -> list[str]:
    return ["batch", str(images), "--job", str(job), *map(str, more)]


def run(words: list[str], *before: str) -> tuple[int, str]:
    """Run the command in a process; return its exit code and what it printed last."""
    command = [*before, sys.executable, str(ROOT), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def without_rights() -> list[str]:
    """Return what to put before a command so that permissions hold for root, too."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root can read and write everything")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", "--bounding-set", rights, "--inh-caps", rights]


def rows_of(job: Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(job)}


def drafts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.new"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a small disk, on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)


def test_a_full_disk_ends_the_job(
    disk: Path, images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    words = words_of(images, disk / "job", "--out", "txt,jsonl")
    assert main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"Error: {disk / 'job'} cannot be written (No space left on device). What is done is kept: "
        "then run the same command again. (R511)"
    )
    done = len(rows_of(disk / "job"))
    assert 0 < done == len(list(images.glob("*.txt"))) < COUNT
    enlarge(disk)
    assert main(words) == 0
    assert len(rows_of(disk / "job")) == len(list(images.glob("*.txt"))) == COUNT
    assert len(ollama.of("chat")) <= COUNT + 1 and not drafts(tmp_path)


def test_an_output_on_a_full_disk_is_written_later(
    disk: Path, images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (disk / "other").write_bytes(bytes(60_000))
    words = words_of(images, tmp_path / "job", "--out", "txt,jsonl", "--output", disk / "out")
    assert main(words) == 1
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "job")) == COUNT and not drafts(disk)
    enlarge(disk)
    assert main(words) == 0
    assert {file.read_text() for file in (disk / "out").glob("*.txt")} == {RED}
    assert len(list((disk / "out").glob("*.txt"))) == len(ollama.of("chat")) == COUNT
    assert len((disk / "out" / "metadata.jsonl").read_text().splitlines()) == COUNT


@UNIX
def test_a_row_that_is_written_in_part_is_asked_again(
    images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    """As on a full disk: the system takes the beginning of a row, and refuses the rest."""
    words = words_of(images, tmp_path / "job", "--out", "jsonl")
    code, said = run(words, "sh", "-c", 'ulimit -f 4; exec "$@"', "sh")
    assert code == 1 and "cannot be written (File too large)" in said
    (file,) = (tmp_path / "job" / "rows").iterdir()
    assert not file.read_bytes().endswith(b"\n")
    assert main(words) == 0
    assert len(rows_of(tmp_path / "job")) == COUNT
    assert len((tmp_path / "job" / "metadata.jsonl").read_text().splitlines()) == COUNT
    assert len(ollama.of("chat")) <= COUNT + 1


@UNIX
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_image(
    images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    before = without_rights()
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    images.chmod(0o555)
    for words, place in (
        (words_of(images, closed / "job"), f"The job directory {closed / 'job'}"),
        (words_of(images, tmp_path / "job", "--out", "txt"), images),
        (words_of(images, tmp_path / "job", "--out", "jsonl", "--output", closed / "a"), closed),
    ):
        code, said = run(words, *before)
        assert code == 1 and said.startswith(f"Error: {place}"), said
        assert "cannot be written" in said and said.endswith("(R511)")
    assert not ollama.of("chat")


@UNIX
def test_an_image_that_may_not_be_read_is_a_failure(
    images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    before = without_rights()
    (images / "01.png").chmod(0)
    words = words_of(images, tmp_path / "job", "--limit", "3")
    assert run(words, *before)[0] == 1
    (images / "01.png").chmod(0o644)
    rows = rows_of(tmp_path / "job")
    assert rows["01.png"]["error"]["message"] == (
        f"{images / '01.png'} cannot be read (Permission denied)."
    )
    assert main([*words, "--retry-failed"]) == 0
    assert len(rows_of(tmp_path / "job")) == 5 and len(ollama.of("chat")) == 5


def test_a_folder_that_changes_during_a_run(
    images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    away = tmp_path / "away.png"

    def change(request: RecordedRequest) -> None:
        if len(ollama.of("chat")) == 3:
            (images / "20.png").rename(away)
            Image.new("RGB", (40, 30), "white").save(images / "new.png")

    ollama.always("chat", change)
    words = words_of(images, tmp_path / "job", "--out", "txt,jsonl")
    assert main(words) == 1
    assert f"{COUNT - 1} done, 1 failed, 0 left." in capsys.readouterr().err
    assert "20.png does not exist" in rows_of(tmp_path / "job")["20.png"]["error"]["message"]
    assert main(words) == 0, "an image that has left the input does not count"
    listed = (tmp_path / "job" / "metadata.jsonl").read_text().splitlines()
    assert {json.loads(line)["file_name"] for line in listed} == {
        file.name for file in images.glob("*.png")
    }
    away.rename(images / "20.png")
    assert main([*words, "--retry-failed"]) == 0
    assert len(list(images.glob("*.txt"))) == len(ollama.of("chat")) == COUNT + 1


def test_a_second_run_of_a_job_that_works(
    images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(token_s=0.01))
    words = words_of(images, tmp_path / "job", "--out", "txt,jsonl")
    first = subprocess.Popen([sys.executable, str(ROOT), *words], stderr=subprocess.DEVNULL)
    assert ollama.wait_until(lambda: len(ollama.of("chat")) >= 2, 60)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: Another process is working on the job") and said.count("\n") == 1
    assert first.wait(60) == 0
    assert len(ollama.of("chat")) == len(list(images.glob("*.txt"))) == COUNT


def test_a_caption_that_was_not_replaced_is_replaced_by_the_next_run(
    images: Path, tmp_path: Path, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between a row and its caption file, which has the text from before."""
    old = images / "03.txt"
    old.write_text("by hand")
    before = time.time() - 60
    os.utime(old, (before, before))
    words = words_of(images, tmp_path / "job", "--out", "txt", "--existing", "overwrite")
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target) == old:
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", failing)
        assert main(words) == 1
    assert old.read_text() == "by hand" and len(rows_of(tmp_path / "job")) == COUNT
    assert main(words) == 0
    assert old.read_text() == RED and len(ollama.of("chat")) == COUNT
    old.write_text("changed by hand later")
    assert main(words) == 0
    assert old.read_text() == "changed by hand later"


def test_rows_by_somebody_else_lead_nowhere(
    images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    """A job directory that was downloaded: rows of other images, of other types, and no rows."""
    words = words_of(images, tmp_path / "job", "--out", "txt,jsonl")
    assert main(words) == 0
    asked = len(ollama.of("chat"))
    (file,) = (tmp_path / "job" / "rows").iterdir()
    lines = file.read_text("utf-8").splitlines()
    foreign = [
        *('{"id": "../../evil.png", "status": "done", "text": "x", "at": 1}', "[1, 2]", "7"),
        *('{"status": "done"}', '{"id": 5, "status": "done"}', '{"id": "00.png"}', "null"),
    ]
    wrong = json.loads(lines[0]) | {"text": {"a": 1}}  # in place of the first row
    file.write_text("\n".join([json.dumps(wrong), *lines[1:], *foreign, ""]), "utf-8")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    (images / wrong["id"]).with_suffix(".txt").unlink()  # else its image is left out
    assert main(words) == 0
    assert len(ollama.of("chat")) - asked <= 1, "a row that is none is asked again, or was kept"
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert {one.read_text() for one in images.glob("*.txt")} == {RED}
    assert len((tmp_path / "job" / "metadata.jsonl").read_text().splitlines()) == COUNT
