"""`batch --task rewrite`: captions that exist, by the text model only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

CRIMSON = "A crimson disc floats on snow."
REWRITE = ("--task", "rewrite", "--instructions", "Shorten it.")
OVERWRITE = (*REWRITE, "--out", "txt", "--existing", "overwrite")

pytestmark = pytest.mark.usefixtures("address")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images with captions."""
    top = tmp_path / "set"
    top.mkdir()
    for shade, name in enumerate("abc"):
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(top / f"{name}.png")
        (top / f"{name}.txt").write_text(f"ohwx {name},\n on snow\n")
    return top


@pytest.fixture
def batch(images: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        return main(["batch", str(images), "--job", str(tmp_path / "job"), *options])

    return run


def rows_of(tmp_path: Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(tmp_path / "job")}


def asked(server: FaultyOllama) -> list[str]:
    """The captions that were sent, without the instructions."""
    said = [request.body["messages"][-1]["content"] for request in server.of("chat")]
    return [next(one for one in "abc" if f"ohwx {one}, on snow" in text) for text in said]


def test_captions_are_rewritten_and_no_vision_model_is_needed(
    batch: Callable[..., int], tmp_path: Path, images: Path, named: Any
) -> None:
    from faulty_ollama import text_model

    pen = named(pen=([text_model("llama3.2:latest")],))["pen"]
    assert batch(*REWRITE, "--server", "pen") == 0
    rows = rows_of(tmp_path)
    assert rows["a.png"] | {"at": 0, "version": ""} == {
        "id": "a.png",
        "at": 0,
        "by": "pen",
        "version": "",
        "status": "done",
        "text": CRIMSON,
        "flags": [],
        "text_model": "llama3.2:latest",
        "text_digest": rows["a.png"]["text_digest"],
        "tags": "ohwx a, on snow",
    }
    assert sorted(asked(pen)) == ["a", "b", "c"] and pen.loads == {"llama3.2:latest": 1}
    assert not pen.loaded and not any(request.images for request in pen.of("chat"))
    assert (images / "a.txt").read_text() == "ohwx a,\n on snow\n", "only with --out txt"
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text())
    assert "vision_model" not in str(manifest) and "rewrite" in str(manifest)
    lines = (tmp_path / "job" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [CRIMSON] * 3


def test_a_second_run_rewrites_the_original(
    batch: Callable[..., int], tmp_path: Path, images: Path, ollama: FaultyOllama
) -> None:
    from faulty_ollama import Reply

    ollama.script("chat", Reply(tokens=("I cannot write that.",)))
    assert batch(*OVERWRITE) == 0
    assert (images / "a.txt").read_text() == "I cannot write that."
    assert (images / "b.txt").read_text() == CRIMSON
    assert batch(*OVERWRITE) == 0 and len(ollama.of("chat")) == 3
    assert batch(*OVERWRITE, "--retry-flagged") == 0
    assert Counter(asked(ollama)) == {"a": 2, "b": 1, "c": 1}
    row = rows_of(tmp_path)["a.png"]
    assert (row["tags"], row["text"], row["attempt"]) == ("ohwx a, on snow", CRIMSON, 1)
    assert (images / "a.txt").read_text() == CRIMSON


def test_a_missing_caption_is_a_failure_that_can_be_retried(
    batch: Callable[..., int], tmp_path: Path, images: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (images / "b.txt").unlink()
    (images / "c.txt").write_text(" \n")
    assert batch(*OVERWRITE) == 1
    assert "1 done, 2 failed, 0 left." in capsys.readouterr().err
    error = rows_of(tmp_path)["b.png"]["error"]
    assert error["message"].startswith(f"{images / 'b.png'} has no caption to rewrite. Write one")
    assert error["code"] == "R303" and not (images / "b.txt").exists()
    for name in "bc":
        (images / f"{name}.txt").write_text(f"ohwx {name}, on snow")
    assert batch(*OVERWRITE, "--retry-failed") == 0
    assert Counter(asked(ollama)) == {"a": 1, "b": 1, "c": 1}


def test_captions_beside_the_images_are_replaced_only_on_request(
    batch: Callable[..., int], images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    assert batch(*REWRITE, "--out", "txt") == 1
    said = capsys.readouterr().err
    assert "--existing overwrite" in said and "--output" in said and not ollama.of("chat")
    assert batch(*REWRITE, "--out", "txt", "--output", str(tmp_path / "new")) == 0
    assert (tmp_path / "new" / "a.txt").read_text() == CRIMSON
    assert (images / "a.txt").read_text().startswith("ohwx a")


@pytest.mark.usefixtures("quick_retries")
def test_servers_share_the_captions_and_one_may_fail(
    batch: Callable[..., int], tmp_path: Path, named: Any, capsys: Any
) -> None:
    servers = named(one=(), two=())
    servers["one"].always("chat", "busy")
    words = ("--server", "one", "--server", "two", "--chunk", "1")
    assert batch(*REWRITE, *words) == 0
    assert "Error: one: " in capsys.readouterr().err
    assert {row["by"] for row in rows_of(tmp_path).values()} == {"two"}
    assert all(row["tags"].startswith("ohwx") for row in rows_of(tmp_path).values())


def test_placeholders_and_an_image_that_cannot_be_read(
    batch: Callable[..., int], tmp_path: Path, images: Path, ollama: FaultyOllama
) -> None:
    (images / "b.png").write_text("no image")
    assert batch("--task", "rewrite", "--instructions", "Name {name}, {width} px.") == 1
    rows = rows_of(tmp_path)
    assert rows["b.png"]["error"]["kind"] == "UnusableImage"
    said = str(ollama.of("chat")[0].body["messages"])
    assert "Name a, 60 px." in said and "{" not in said.replace("{'", "")


def test_options_for_a_vision_model_are_refused(batch: Callable[..., int], capsys: Any) -> None:
    for words, said in (
        (("--vision-model", "x"), "--task rewrite takes no --vision-model"),
        (("--vision-prompt", "x"), "--task rewrite takes no --vision-prompt"),
        (("--text-server", "x"), "takes no --text-server, did you mean --server?"),
    ):
        with pytest.raises(SystemExit) as ended:
            batch(*REWRITE, *words)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_another_task_on_the_same_job_is_refused(batch: Callable[..., int], capsys: Any) -> None:
    assert batch(*REWRITE) == 0
    assert batch("--task", "caption", "--instructions", "Shorten it.") == 1
    assert 'task "rewrite", and now it is "caption"' in capsys.readouterr().err


def test_a_long_caption_fits_into_the_context(
    batch: Callable[..., int], images: Path, ollama: FaultyOllama
) -> None:
    (images / "a.txt").write_text("ohwx a, on snow " + "and more " * 2000)
    assert batch(*REWRITE, "--num-predict", "50") == 0
    assert ollama.of("chat")[0].body["options"]["num_ctx"] > 18_000 / 4
