"""Jobs from the command line: results, resumption, outputs, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from image_refinery.jobs.captions import seed_of
from image_refinery.jobs.schedule import ChunkSizes
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."


pytestmark = pytest.mark.usefixtures("address")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images, two of them in a folder inside."""
    top = tmp_path / "set"
    (top / "inner").mkdir(parents=True)
    for shade, name in enumerate(("a", "b", "c", "d", "inner/a", "inner/b")):
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(top / f"{name}.png")
    (top / "notes.md").write_text("no image")
    return top


@pytest.fixture
def batch(images: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        job = str(tmp_path / "job")
        return main(["batch", str(images), "--recursive", "--job", job, *options])

    return run


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(folder)}


IDS = ["a.png", "b.png", "c.png", "d.png", "inner/a.png", "inner/b.png"]


def test_a_job_has_a_row_and_an_output_for_each_image(
    batch: Callable[..., int], images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    words = ("--task", "caption", "--instructions", "Shorten it.", "--out", "txt,jsonl")
    assert batch(*words, "--prefix", "ohwx, ") == 0
    rows = rows_of(tmp_path / "job")
    assert sorted(rows) == IDS
    assert rows["a.png"] | {"at": 0} == {
        "id": "a.png",
        "at": 0,
        "by": "default",
        "version": rows["a.png"]["version"],
        "status": "done",
        "text": CRIMSON,
        "flags": [],
        "description": RED,
        "vision_model": "llava:latest",
        "vision_digest": rows["a.png"]["vision_digest"],
        "text_model": "llama3.2:latest",
        "text_digest": rows["a.png"]["text_digest"],
    }
    assert len(rows["a.png"]["vision_digest"]) == len(rows["a.png"]["text_digest"]) == 12
    assert (images / "inner" / "a.txt").read_text() == f"ohwx, {CRIMSON}"
    lines = (tmp_path / "job" / "metadata.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["file_name"] for line in lines) == IDS
    assert json.loads(lines[0])["text"] == f"ohwx, {CRIMSON}"
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 1}
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert report["done"] == 6 and report["left"] == report["failed"] == 0
    assert "6 done, 0 failed, 0 left." in capsys.readouterr().err


def test_the_same_command_again_asks_nothing(
    batch: Callable[..., int], ollama: FaultyOllama, images: Path
) -> None:
    assert batch("--out", "txt") == 0
    asked = len(ollama.of("chat"))
    (images / "b.txt").unlink()
    assert batch("--out", "txt") == 0
    assert len(ollama.of("chat")) == asked == 6
    assert (images / "b.txt").read_text() == RED, "outputs are made from the rows"
    Image.new("RGB", (60, 40), "white").save(images / "new.png")
    assert batch("--out", "txt") == 0
    assert len(ollama.of("chat")) == 7, "the input may grow"


def test_chunks_swap_models_once_each(batch: Callable[..., int], ollama: FaultyOllama) -> None:
    words = ("--task", "caption", "--instructions", "Shorten it.", "--chunk", "2")
    assert batch(*words) == 0
    assert ollama.loads == {"llava:latest": 3, "llama3.2:latest": 3}


def test_each_chunk_is_timed(batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    chunks: list[tuple[int, float]] = []
    monkeypatch.setattr(ChunkSizes, "learn", lambda sizes, *chunk: chunks.append(chunk))
    began = time.monotonic()
    assert batch() == 0
    ((count, seconds),) = chunks
    assert count == 6 and 0 < seconds <= time.monotonic() - began


def test_other_settings_on_the_same_job_are_refused(
    batch: Callable[..., int], capsys: Any, ollama: FaultyOllama
) -> None:
    assert batch("--seed", "1") == 0
    assert batch("--seed", "2") == 1
    said = capsys.readouterr().err
    assert "was begun with seed 1, and now it is 2" in said and said.endswith("(R511)\n")
    assert batch("--seed", "1", "--vision-prompt", "What is it?") == 1
    assert 'vision_prompt "", and now it is "What is it?"' in capsys.readouterr().err
    assert batch("--seed", "1", "--num-predict", "20") == 1
    assert len(ollama.of("chat")) == 6


@pytest.mark.usefixtures("quick_retries")
def test_a_job_without_a_result_may_get_other_settings(
    batch: Callable[..., int], ollama: FaultyOllama
) -> None:
    """Such as the digest of a model that could not be loaded, and was downloaded again."""
    ollama.always("load", "busy")
    assert batch() == 1
    ollama.forget_script()
    ollama.models["llava:latest"] = replace(ollama.models["llava:latest"], listed_digest="f" * 64)
    assert batch("--seed", "2") == 0
    assert batch() == 1


def test_a_job_is_worked_on_by_one_process(
    batch: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    with jobs.locked(tmp_path / "job"):
        assert batch() == 1
    assert "Another process is working on the job" in capsys.readouterr().err


def test_a_failure_is_a_row_and_can_be_retried_alone(
    batch: Callable[..., int], images: Path, tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (images / "b.png").write_text("no image")
    assert batch() == 1
    row = rows_of(tmp_path / "job")["b.png"]
    assert row["status"] == "failed" and row["error"]["kind"] == "UnusableImage"
    assert "5 done, 1 failed, 0 left." in capsys.readouterr().err
    Image.new("RGB", (60, 40), "white").save(images / "b.png")
    assert batch() == 1 and len(ollama.of("chat")) == 5, "a failure stays until it is retried"
    assert batch("--retry-failed") == 0
    assert rows_of(tmp_path / "job")["b.png"]["text"] == RED
    assert len(ollama.of("chat")) == 6


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_ends_makes_no_rows(
    batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    ollama.script("chat", None, None)
    ollama.always("chat", "busy")
    assert batch() == 1
    assert "2 done, 0 failed, 4 left." in capsys.readouterr().err
    assert len(rows_of(tmp_path / "job")) == 2
    ollama.forget_script()
    assert batch() == 0
    assert len(rows_of(tmp_path / "job")) == 6


def test_an_image_that_a_server_cannot_take_stops_no_other(
    batch: Callable[..., int], tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    """Out of memory for one image: it has a row, and the others go on."""
    ollama.script("chat", None, "oom")
    assert batch() == 1
    assert "5 done, 1 failed, 0 left." in capsys.readouterr().err
    assert rows_of(tmp_path / "job")["b.png"]["error"]["kind"] == "OutOfMemory"
    assert batch("--retry-failed") == 0


def test_a_server_without_memory_ends_the_run(
    batch: Callable[..., int], ollama: FaultyOllama, capsys: Any
) -> None:
    ollama.always("chat", "oom")
    assert batch() == 1
    said = capsys.readouterr().err
    assert "0 done, 1 failed, 5 left." in said and "(R207)" in said


def test_files_of_others_are_not_replaced(
    images: Path, tmp_path: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    listed = images / "metadata.jsonl"
    listed.write_text('{"file_name": "a.png", "label": 1}\n')
    job = ["--job", str(tmp_path / "job"), "--output", str(images)]
    assert main(["batch", str(images), *job]) == 1
    assert "is there already, and not from this job" in capsys.readouterr().err
    assert main(["batch", str(listed), *job]) == 1
    assert "metadata.jsonl is an input" in capsys.readouterr().err
    assert "label" in listed.read_text() and not ollama.of("chat")
    elsewhere = ["--job", str(tmp_path / "job"), "--output"]
    assert main(["batch", str(images / "a.png"), *elsewhere, str(tmp_path / "out")]) == 0
    assert main(["batch", str(images / "a.png"), *elsewhere, str(images)]) == 1
    assert "not from this job" in capsys.readouterr().err, "nor by a job that has begun elsewhere"
    assert main(["batch", str(images / "a.png"), *elsewhere, str(tmp_path / "out")]) == 0
    assert "label" in listed.read_text()


def test_captions_stay_below_the_output_folder(
    images: Path, tmp_path: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    listed = images / "inner" / "list.txt"
    listed.write_text("../a.png\n")
    words = ["batch", str(listed), "--job", str(tmp_path / "job"), "--out", "txt"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "../a.png would not be below --output" in capsys.readouterr().err
    assert main(words) == 0 and (images / "a.txt").exists()


def test_tags_need_captions_that_are_not_left_out(
    batch: Callable[..., int], images: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    (images / "a.txt").write_text("ohwx cat")
    assert batch("--out", "txt", "--vision-prompt", "Use {tags}.") == 1
    assert "{tags} is the caption beside an image" in capsys.readouterr().err
    assert batch("--out", "jsonl", "--vision-prompt", "Use {tags}.") == 0
    asked = [request.body["messages"][-1]["content"] for request in ollama.of("chat")]
    assert sorted(asked)[-1] == "Use ohwx cat."


def test_tags_are_the_caption_from_before_the_job(
    batch: Callable[..., int], images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    from faulty_ollama import Reply

    (images / "a.txt").write_text("ohwx cat")
    (images / "b.txt").write_text("ohwx dog")
    (images / "c.png").write_text("no image")
    words = ("--out", "txt", "--existing", "overwrite", "--vision-prompt", "Use {tags}.")
    ollama.script("chat", Reply(tokens=("I cannot describe it.",)))
    assert batch(*words) == 1
    rows = rows_of(tmp_path / "job")
    assert rows["a.png"]["flags"] == ["refusal"] and rows["a.png"]["tags"] == "ohwx cat"
    assert rows["d.png"]["tags"] == "" and "tags" not in rows["c.png"]
    assert (images / "a.txt").read_text() == "I cannot describe it."
    (images / "c.txt").write_text("ohwx owl")
    Image.new("RGB", (60, 40)).save(images / "c.png")
    ollama.requests.clear()
    ollama.script("chat", Reply(tokens=("I cannot describe it.",)))
    assert batch(*words, "--retry-flagged", "--retry-failed") == 0
    assert batch(*words, "--retry-flagged") == 0
    asked = [request.body["messages"][-1]["content"] for request in ollama.of("chat")]
    assert asked == ["Use ohwx cat.", "Use ohwx owl.", "Use ohwx cat."]
    assert rows_of(tmp_path / "job")["a.png"]["tags"] == "ohwx cat"
    assert (images / "b.txt").read_text() == RED


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8_is_done_once(
    batch: Callable[..., int], images: Path, ollama: FaultyOllama
) -> None:
    os.rename(images / "a.png", os.fsencode(images) + b"/caf\xe9.png")
    for _ in range(2):
        assert batch("--out", "txt,jsonl") == 0
    assert len(ollama.of("chat")) == 6


def test_what_is_beside_the_images_is_no_list(images: Path) -> None:
    (images / "a.txt").write_text("A caption.")
    (images / "inner" / "up").symlink_to(images, target_is_directory=True)
    found = jobs.find_items([images / "a.png", images / "a.txt"])
    assert [item.id for item in found] == ["a.png"]
    assert [item.id for item in jobs.find_items([images], recursive=True)] == IDS
    (images / "list.txt").write_text("missing.png\n")
    with pytest.raises(jobs.BadInputList, match="names no file"):
        jobs.find_items([images / "list.txt"])


def test_servers_may_have_any_name(tmp_path: Path) -> None:
    for worker in ("a/b", "..", "Box", "box"):
        log = jobs.RowLog(tmp_path, worker)
        log.write({"id": worker, "status": "done"})
        log.close()
    assert sorted(row["id"] for row in jobs.Rows(tmp_path)) == ["..", "Box", "a/b", "box"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_captions_of_others_stay_unless_they_may_be_replaced(
    batch: Callable[..., int], images: Path, capsys: Any
) -> None:
    (images / "b.txt").write_text("by hand")
    assert batch("--out", "txt") == 0
    assert "Left out, as they have a caption: 1 images." in capsys.readouterr().err
    assert (images / "b.txt").read_text() == "by hand"
    assert batch("--out", "txt", "--existing", "overwrite") == 0
    assert (images / "b.txt").read_text() == RED


def test_two_images_of_one_caption_file_are_refused(
    batch: Callable[..., int], images: Path, capsys: Any, ollama: FaultyOllama
) -> None:
    Image.new("RGB", (60, 40)).save(images / "A.jpg")
    assert batch("--out", "txt") == 1
    assert "would have the same caption file" in capsys.readouterr().err
    assert not ollama.of("chat")


def test_outputs_may_go_to_a_folder_of_their_own(
    batch: Callable[..., int], images: Path, tmp_path: Path
) -> None:
    assert batch("--out", "txt,jsonl", "--output", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == RED
    assert (tmp_path / "out" / "metadata.jsonl").exists()
    assert not list(images.rglob("*.txt"))


def test_lists_name_images(images: Path, tmp_path: Path) -> None:
    (images / "list.txt").write_text("inner/b.png\n\na.png\n")
    (images / "metadata.jsonl").write_text('{"file_name": "c.png"}\n{"file_name": "d.png"}\n')
    found = jobs.find_items([images / "list.txt", images / "metadata.jsonl", images / "a.png"])
    assert [item.id for item in found] == ["inner/b.png", "a.png", "c.png", "d.png"]
    (images / "bad.jsonl").write_text("[]\n")
    with pytest.raises(jobs.BadInputList, match=r"Line 1 of .*bad\.jsonl"):
        jobs.find_items([images / "bad.jsonl"])
    (tmp_path / "a.png").write_bytes((images / "a.png").read_bytes())
    with pytest.raises(jobs.BadInputList, match=r"the same id a\.png"):
        jobs.find_items([images, tmp_path / "a.png"])


def test_a_dry_run_asks_nobody(
    batch: Callable[..., int], ollama: FaultyOllama, capsys: Any
) -> None:
    assert batch("--limit", "2") == 0
    ollama.requests.clear()
    assert batch("--dry-run") == 0
    assert capsys.readouterr().out == "6 images, 2 have a result, 4 to do.\n"
    assert ollama.requests == []


def test_a_limit_is_one_of_this_run(batch: Callable[..., int], tmp_path: Path) -> None:
    for done in (4, 6):
        assert batch("--limit", "4") == 0
        assert len((tmp_path / "job" / "metadata.jsonl").read_text().splitlines()) == done


def test_a_task_says_which_options_it_needs(batch: Callable[..., int], capsys: Any) -> None:
    for words, said in (
        (("--task", "caption"), "needs --instructions or --preset"),
        (("--task", "rewrite"), "--task rewrite needs --instructions or --preset"),
        (("--instructions", "x"), "takes no --instructions"),
        (("--out", "png"), "png is not one of txt, jsonl"),
    ):
        with pytest.raises(SystemExit) as ended:
            batch(*words)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_seed_comes_from_the_id() -> None:
    one, other = jobs.Item("a.png", "/x"), jobs.Item("b.png", "/x")
    assert seed_of(one, 0) == seed_of(jobs.Item("a.png", "/y"), 0) != seed_of(other, 0)
    assert seed_of(one, 0) != seed_of(one, 1)


def test_several_servers_share_the_images(
    images: Path, tmp_path: Path, make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import Reply

    servers = {name: make_ollama() for name in ("one", "two")}
    config = tmp_path / "config" / "image-refinery" / "image-refinery.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "".join(f'[servers.{name}]\nurl = "{one.url}"\n' for name, one in servers.items())
    )
    for one in servers.values():
        one.always("chat", Reply(token_s=0.02))
    words = ["batch", str(images), "--recursive", "--job", str(tmp_path / "job"), "--chunk", "1"]
    assert main([*words, "--server", "one", "--server", "two"]) == 0
    by = Counter(row["by"] for row in rows_of(tmp_path / "job").values())
    assert sum(by.values()) == 6 and set(by) == {"one", "two"}


CAPTION = ("--task", "caption", "--instructions", "Shorten it.")
ROLES = ("--vision-server", "eye", "--text-server", "pen")


def test_servers_with_a_role_swap_nothing(
    batch: Callable[..., int], named: Callable[..., Any], tmp_path: Path
) -> None:
    servers = named(eye=(), pen=())
    assert batch(*CAPTION, *ROLES, "--chunk", "2") == 0
    assert servers["eye"].loads == {"llava:latest": 1}
    assert servers["pen"].loads == {"llama3.2:latest": 1}
    assert not servers["eye"].loaded and not servers["pen"].loaded, "unloaded at the end"
    rows = rows_of(tmp_path / "job")
    assert len(rows) == 6
    assert {(row["by"], row["text"], row["description"]) for row in rows.values()} == {
        ("pen", CRIMSON, RED)
    }
    asked = len(servers["eye"].of("chat"))
    assert batch(*CAPTION, *ROLES) == 0 and len(servers["eye"].of("chat")) == asked == 6


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_rewrites_no_more_loses_no_description(
    batch: Callable[..., int], named: Callable[..., Any], tmp_path: Path, capsys: Any
) -> None:
    servers = named(eye=(), pen=())
    servers["pen"].script("chat", None, None)
    servers["pen"].always("chat", "busy")
    assert batch(*CAPTION, *ROLES, "--chunk", "2") == 1
    assert "2 done, 0 failed, 4 left." in capsys.readouterr().err
    servers["pen"].forget_script()
    assert batch(*CAPTION, *ROLES) == 0
    assert len(servers["eye"].of("chat")) == 6, "descriptions are kept"
    assert len(rows_of(tmp_path / "job")) == 6


def test_a_bad_image_is_a_failure_of_the_server_that_describes(
    batch: Callable[..., int], named: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    named(eye=(), pen=())
    (images / "b.png").write_text("no image")
    assert batch(*CAPTION, *ROLES) == 1
    rows = rows_of(tmp_path / "job")
    assert rows["b.png"]["by"] == "eye" and rows["b.png"]["status"] == "failed"
    assert len(rows) == 6


def test_roles_that_contradict_each_other(batch: Callable[..., int], capsys: Any) -> None:
    for words, said in (
        ((*CAPTION, *ROLES, "--server", "x"), "--server is for both models"),
        ((*CAPTION, "--vision-server", "x"), "belong together"),
        ((*CAPTION, "--vision-server", "x", "--text-server", "x"), "x would have both roles"),
        (ROLES, "--task describe takes no --text-server"),
        (("--parallel", "65"), "invalid choice"),
    ):
        with pytest.raises(SystemExit) as ended:
            batch(*words)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_another_model_under_the_same_name_stops_before_the_first_image(
    batch: Callable[..., int], named: Callable[..., Any], tmp_path: Path, capsys: Any
) -> None:
    from faulty_ollama import vision_model

    one, other = vision_model("llava"), replace(vision_model("llava"), listed_digest="f" * 64)
    servers = named(one=([one],), two=([other],))
    words = ("--server", "one", "--server", "two")
    assert batch(*words) == 1
    assert '"one" and "two" have different models under the name' in capsys.readouterr().err
    assert not any(server.of("chat") for server in servers.values())
    assert batch(*words, "--allow-mixed", "--chunk", "1") == 0
    digests = {row["vision_digest"] for row in rows_of(tmp_path / "job").values()}
    assert digests <= {one.digest[:12], "f" * 12}
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text())
    assert manifest["fingerprint"]["vision_digest"] == "mixed"


def test_a_flagged_text_is_answered_again_with_another_seed(
    batch: Callable[..., int], images: Path, tmp_path: Path, ollama: FaultyOllama
) -> None:
    from faulty_ollama import Reply

    ollama.script("chat", Reply(text="I'm sorry, but I can't describe this image."))
    assert batch("--out", "txt") == 0
    first = rows_of(tmp_path / "job")["a.png"]
    assert first["flags"] == ["refusal"]
    assert batch("--out", "txt", "--retry-flagged") == 0
    row = rows_of(tmp_path / "job")["a.png"]
    assert row["text"] == RED and row["attempt"] == 1 and (images / "a.txt").read_text() == RED
    chats = ollama.of("chat")
    assert len(chats) == 7
    assert chats[0].body["options"]["seed"] != chats[6].body["options"]["seed"]


def test_an_estimate_tells_how_long_the_rest_takes(
    batch: Callable[..., int], ollama: FaultyOllama, capsys: Any
) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(token_s=0.02))
    assert batch("--limit", "2", "--estimate") == 0
    assert "the 4 images that are left would take about 0:00:0" in capsys.readouterr().out


def test_requests_at_a_time(
    batch: Callable[..., int], ollama: FaultyOllama, tmp_path: Path
) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(token_s=0.02))
    assert batch("--parallel", "3") == 0
    assert len(rows_of(tmp_path / "job")) == 6
    chats = sorted(ollama.of("chat"), key=lambda chat: chat.started)
    assert chats[0].ended is not None and chats[2].started < chats[0].ended


# a process that is killed


log = logging.getLogger(__name__)

KILLED_JOBS = int(os.environ.get("KILLED_JOBS", "1"))
KILLED_SERVERS = int(os.environ.get("KILLED_SERVERS", "1"))


def many(folder: Path) -> Path:
    """Forty images."""
    images = folder / "many"
    images.mkdir()
    for number in range(40):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(images / f"{number:02}.png")
    return images


def start(images: Path, job: Path, *more: str) -> subprocess.Popen[str]:
    words = ["batch", str(images), "--job", str(job), "--out", "txt,jsonl", *more]
    return subprocess.Popen(
        [sys.executable, str(ROOT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")
@pytest.mark.parametrize("seed", range(KILLED_JOBS))
def test_a_killed_job_continues_and_loses_nothing(
    tmp_path: Path, ollama: FaultyOllama, seed: int
) -> None:
    from faulty_ollama import Reply

    images, job = many(tmp_path), tmp_path / "job"
    ollama.always("chat", Reply(token_s=0.004))
    kills = 0
    chance = random.Random(seed)
    while kills < 4:
        process = start(images, job)
        begun = len(ollama.of("chat"))
        wanted = chance.randrange(1, 9)
        until = time.monotonic() + 60
        while len(ollama.of("chat")) < begun + wanted and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        kills += 1
    process = start(images, job)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    twice = check_that_all_is_done(images, job, ollama)
    log.info("seed %s: %s kills, %s requests asked twice", seed, kills, twice)
    assert twice <= kills, "only what was in flight is asked again"


def check_that_all_is_done(images: Path, job: Path, ollama: FaultyOllama) -> int:
    """Check that each of 40 images has one result everywhere; return the requests asked twice."""
    done = [row["id"] for row in jobs.Rows(job)]
    assert len(done) == len(set(done)) == 40
    listed = (job / "metadata.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["file_name"] for line in listed) == sorted(done)
    assert {file.read_text() for file in images.glob("*.txt")} == {RED}
    assert len(list(images.glob("*.txt"))) == 40
    assert not list(images.parent.rglob("*.new"))
    asked = Counter(request.images[0] for request in ollama.of("chat"))
    assert len(asked) == 40
    return sum(count - 1 for count in asked.values())


@pytest.mark.parametrize("seed", range(KILLED_SERVERS))
def test_a_server_that_dies_loses_nothing(tmp_path: Path, ollama: FaultyOllama, seed: int) -> None:
    from faulty_ollama import Reply

    images, job = many(tmp_path), tmp_path / "job"
    ollama.always("chat", Reply(token_s=0.004))
    chance = random.Random(1000 + seed)
    process = start(images, job)
    for _ in range(2):
        begun, wanted = len(ollama.of("chat")), chance.randrange(1, 9)
        assert ollama.wait_until(lambda b=begun, w=wanted: len(ollama.of("chat")) >= b + w, 60)
        time.sleep(chance.random() * 0.05)
        ollama.stop_listening()
        time.sleep(chance.choice((0.0, 0.5, 4.0)))  # within the retries, and longer
        ollama.listen_again()
        if process.poll() is not None:
            process = start(images, job)
    _, said = process.communicate(timeout=120)
    if process.returncode:
        assert " failed, " in said and "Traceback" not in said
        process = start(images, job, "--retry-failed")  # an answer that broke off is a failure
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    twice = check_that_all_is_done(images, job, ollama)
    log.info("seed %s: 2 deaths of the server, %s requests asked twice", seed, twice)
    assert twice <= 2


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, images: Path, ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(token_s=0.05))
    process = start(images, tmp_path / "job")
    assert ollama.wait_until(lambda: len(ollama.of("chat")) >= 3, 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command continues." in said and "Traceback" not in said
    assert "A red circle" in (tmp_path / "job" / "report.html").read_text("utf-8")
    assert len(rows_of(tmp_path / "job")) >= 2


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_a_second_ctrl_c_ends_it(tmp_path: Path, images: Path, ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(token_s=0.05))
    ollama.always("unload", "hang")
    process = start(images, tmp_path / "job")
    assert ollama.wait_until(lambda: len(ollama.of("chat")) >= 3, 60)
    process.send_signal(signal.SIGINT)
    assert ollama.wait_until(lambda: len(ollama.of("unload")) >= 1, 60), "it waits for the unload"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 3
    assert len(rows_of(tmp_path / "job")) >= 2


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    log = jobs.RowLog(tmp_path, "one")
    log.write({"id": "a", "status": "done"})
    log.close()
    (file,) = (tmp_path / "rows").iterdir()
    with file.open("ab") as torn:
        torn.write(b'damaged\n{"id": "b", "sta')
    assert [row["id"] for row in jobs.Rows(tmp_path)] == ["a"]
    log = jobs.RowLog(tmp_path, "one")
    log.write({"id": "c", "status": "failed"})
    log.close()
    assert [row["id"] for row in jobs.Rows(tmp_path)] == ["a", "c"]


def test_a_success_counts_more_than_a_failure(tmp_path: Path) -> None:
    for worker, status in (("1", "failed"), ("2", "done"), ("3", "failed")):
        log = jobs.RowLog(tmp_path, worker)
        log.write({"id": "a", "status": status, "by": worker})
        log.close()
    rows = jobs.Rows(tmp_path)
    assert rows.status("a") == "done" and rows.status("b") == ""
    assert [row["by"] for row in rows] == ["2"]
