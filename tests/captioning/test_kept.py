"""Answers that are kept: what is asked again and what is not, and what a file endures."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from image_refinery.captioning import kept as kept_module
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Caption, Job, Result, Stage, TextJob
from image_refinery.captioning.kept import KeptAnswers, answer_key, open_answers
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import process, run
from image_refinery.llm.backend import Answer, Model
from image_refinery.llm.errors import Cancelled, ServerConfigError
from image_refinery.llm.servers import Server
from image_refinery.memory import StageMemory
from image_refinery.ollama_client import OllamaClient

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[KeptAnswers]:
    kept = KeptAnswers(tmp_path / "user" / "answers.db")
    yield kept
    kept.close()


@pytest.fixture(autouse=True)
def every_line_is_logged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "_logged", set())


def picture(shade: int) -> Callable[[], Any]:
    return lambda: np.full((40, 60, 3), shade, np.uint8)


def job(instructions: str = "Shorten it.", seed: int = 1, **fields: Any) -> Job:
    stages: dict[str, Any] = {
        "vision": Stage(model="llava", options={"seed": seed}),
        "text": Stage(model="llama3.2", options={"seed": seed}),
    }
    return Job(**(stages | {"instructions": [instructions]} | fields))


def refine(
    server: FaultyOllama, kept: KeptAnswers | None, the_job: Job, count: int = 3, **more: Any
) -> list[Caption]:
    images = [picture(shade) for shade in range(count)]
    with OllamaClient(Server(url=server.url)) as client:
        return run(client, images, the_job, memory=StageMemory(), kept=kept, **more)


# what is asked again


@pytest.fixture
def server(make_ollama: Any) -> FaultyOllama:
    from faulty_ollama import text_model, vision_model

    seen = iter(range(10**6))
    wrote = iter(range(10**6))
    return make_ollama(
        [
            vision_model(answer=lambda _: f"Description {next(seen)}."),
            text_model(answer=lambda _: f"Rewrite {next(wrote)}."),
        ]
    )


def texts(captions: list[Caption]) -> list[tuple[str, str]]:
    return [(caption.description.text, caption.final.text) for caption in captions]


def test_the_same_run_again_loads_and_asks_nothing(
    server: FaultyOllama, answers: KeptAnswers
) -> None:
    first = refine(server, answers, job())
    asked = len(server.of("chat"))
    again = refine(server, answers, job())
    assert texts(again) == texts(first) and len({*texts(first)}) == 3
    assert len(server.of("chat")) == asked == 6
    assert server.loads == {"llava:latest": 1, "llama3.2:latest": 1}
    assert all(caption.final.answer and caption.final.answer.kept for caption in again)
    assert not any(caption.final.answer and caption.final.answer.kept for caption in first)


def test_other_instructions_load_no_vision_model(
    server: FaultyOllama, answers: KeptAnswers
) -> None:
    first = refine(server, answers, job())
    # So much longer that the context would grow, if the vision model were asked.
    again = refine(server, answers, job("Write a poem. " * 2000))
    assert server.loads == {"llava:latest": 1, "llama3.2:latest": 2}
    assert [text for text, _ in texts(again)] == [text for text, _ in texts(first)]
    assert {text for _, text in texts(again)}.isdisjoint({text for _, text in texts(first)})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"custom_prompts": ["Count the legs."]},
        {"vision": Stage(model="llava", options={"seed": 1, "temperature": 0.9})},
        {
            "vision": Stage(
                model="llava", options={"seed": 1}, settings=StageOptions(max_image_side=48)
            )
        },
        {"vision": Stage(model="llava", options={"seed": 1}, settings=StageOptions(format="json"))},
    ],
    ids=["seed", "prompt", "temperature", "size as sent", "format"],
)
def test_whatever_changes_the_request_asks_again(
    server: FaultyOllama, answers: KeptAnswers, change: dict[str, Any]
) -> None:
    refine(server, answers, job(text=None))
    refine(server, answers, job(**{"text": None} | change))
    assert len(server.of("chat")) == 6


def test_another_model_under_the_same_name_is_asked(
    server: FaultyOllama, answers: KeptAnswers
) -> None:
    from dataclasses import replace

    refine(server, answers, job(text=None))
    model = server.models["llava:latest"]
    server.models["llava:latest"] = replace(model, listed_digest="f" * 64)
    refine(server, answers, job(text=None))
    assert len(server.of("chat")) == 6


def test_a_cancelled_run_goes_on_after_what_is_done(
    server: FaultyOllama, answers: KeptAnswers
) -> None:
    class CancelsAfter90(Watcher):
        done = 0

        def finished(self, index: int, result: Result) -> None:
            self.done += 1

        def cancelled(self) -> bool:
            return self.done >= 90

    with pytest.raises(Cancelled):
        refine(server, answers, job(text=None), 200, watcher=CancelsAfter90())
    whole = [request for request in server.of("chat") if not request.client_closed]
    assert len(whole) == 90
    begun = len(server.of("chat"))
    assert all(c.final.answer for c in refine(server, answers, job(text=None), 200))
    assert len(server.of("chat")) - begun == 110


def test_what_the_run_says_about_kept_answers(server: FaultyOllama, answers: KeptAnswers) -> None:
    class Notes(Watcher):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    refine(server, answers, job(text=None), 2)
    watcher = Notes()
    refine(server, answers, job(text=None), 3, watcher=watcher)
    assert watcher.notes == ["2 of 3 answers (describe) were kept from earlier requests."]


def test_texts_are_kept_as_well(server: FaultyOllama, answers: KeptAnswers) -> None:
    the_job = TextJob(stage=Stage(model="llama3.2"), texts=["one", "two"], instructions=["Do it."])
    for _ in range(2):
        with OllamaClient(Server(url=server.url)) as client:
            process(client, the_job, memory=StageMemory(), kept=answers)
    assert len(server.of("chat")) == 2 and server.loads == {"llama3.2:latest": 1}


def test_errors_and_cut_answers_are_not_kept(make_ollama: Any, answers: KeptAnswers) -> None:
    from faulty_ollama import Reply, vision_model

    server = make_ollama([vision_model()])
    server.script("chat", Reply(text="A ball", done_reason="length"))
    cut = refine(server, answers, job(text=None), 1)
    assert cut[0].final.answer and cut[0].final.answer.done_reason == "length"
    server.script("chat", Reply(text=""))
    assert refine(server, answers, job(text=None), 1)[0].final.error
    assert answers.totals()[0] == 0
    assert refine(server, answers, job(text=None), 1)[0].final.answer
    assert answers.totals()[0] == 1


def test_a_failed_load_fails_what_is_not_kept(server: FaultyOllama, answers: KeptAnswers) -> None:
    refine(server, answers, job(text=None), 2)
    server.always("load", "load_failure")
    captions = refine(server, answers, job(text=None), 4)
    assert [bool(caption.final.answer) for caption in captions] == [True, True, False, False]
    assert captions[2].final.error is captions[3].final.error


def test_parallel_requests_load_once(server: FaultyOllama, answers: KeptAnswers) -> None:
    vision = Stage(model="llava", settings=StageOptions(parallel=4))
    refine(server, answers, job(vision=vision, text=None), 8)
    assert server.loads == {"llava:latest": 1}
    assert answers.totals()[0] == 8


# the file

MODEL = Model(name="llava:latest", digest="d" * 64)


def key_of(number: int) -> bytes:
    messages: Any = [{"role": "user", "content": str(number)}]
    return answer_key(MODEL, Server(), messages, options={}, think=None, format=None)


def test_an_answer_comes_back_whole(answers: KeptAnswers) -> None:
    answer = Answer(
        text="Ein roter Ball \N{BALLOON}",
        thinking="Hm.",
        model="m",
        done_reason="stop",
        prompt_tokens=5,
        answer_s=0.25,
    )
    answers.put(key_of(1), answer)
    from dataclasses import replace

    assert answers.get(key_of(1)) == replace(answer, kept=True)
    assert answers.get(key_of(2)) is None


def test_without_a_digest_the_server_counts() -> None:
    def key(digest: str, url: str) -> bytes:
        model = Model(name="m", digest=digest)
        return answer_key(model, Server(url=url), [], options={}, think=None, format=None)

    assert key("", "http://a:1") != key("", "http://b:1")
    assert key("d", "http://a:1") == key("d", "http://b:1")


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    limit = kept_module._WAL_BYTES + 2_000_000
    answers = KeptAnswers(tmp_path / "answers.db", max_bytes=limit)
    text = "word " * 2000  # 10 kB
    for number in range(400):
        answers.put(key_of(number), Answer(text=f"{number} {text}"))
        answers.get(key_of(0))  # used all the time
    count, size = answers.totals()
    assert 100 < count < 220 and size <= 2_000_000
    assert answers.get(key_of(0)) and answers.get(key_of(399)) and not answers.get(key_of(1))
    files = sum(path.stat().st_size for path in tmp_path.iterdir())
    answers.close()
    assert files <= limit + 100_000


def test_a_damaged_file_is_set_aside(
    answers: KeptAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    answers.path.parent.mkdir()
    answers.path.write_bytes(b"not a database" * 1000)
    assert answers.get(key_of(1)) is None
    (line,) = caplog.messages
    assert "was damaged" in line and "answers-damaged.db" in line
    answers.put(key_of(1), Answer(text="A ball."))
    assert answers.get(key_of(1))
    aside = answers.path.with_name("answers-damaged.db")
    assert aside.read_bytes().startswith(b"not a database")


def test_pages_that_are_damaged_later_are_noticed(
    answers: KeptAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(500):
        answers.put(key_of(number), Answer(text="word " * 100))
    answers.close()
    size = answers.path.stat().st_size
    with answers.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    assert answers.get(key_of(1)) is None
    assert "was damaged" in caplog.text
    answers.put(key_of(1), Answer(text="A ball."))
    assert answers.get(key_of(1))


def test_a_full_disk_is_one_line(answers: KeptAnswers, caplog: pytest.LogCaptureFixture) -> None:
    answers.put(key_of(0), Answer(text="A ball."))
    # SQLite's own limit fails as a full disk does: "database or disk is full".
    assert answers._connection is not None
    pages = answers._connection.execute("PRAGMA page_count").fetchone()[0]
    answers._connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(1, 20):
        answers.put(key_of(number), Answer(text="word " * 20_000))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Answers are not kept" in caplog.text and "full" in caplog.text
    assert answers.get(key_of(0)), "what is there still serves"


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "user").write_text("a file")
    answers = KeptAnswers(tmp_path / "user" / "answers.db")
    for number in range(3):
        answers.put(key_of(number), Answer(text="A ball."))
    assert len(caplog.records) == 1 and answers.get(key_of(0)) is None


WRITER = """
import importlib.util, sys
from pathlib import Path
root, path, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
spec = importlib.util.spec_from_file_location(
    "image_refinery", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["image_refinery"] = module = importlib.util.module_from_spec(spec)
from image_refinery.captioning.kept import KeptAnswers
from image_refinery.llm.backend import Answer
answers = KeptAnswers(path)
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + count):
    answers.put(number.to_bytes(4, "big"), Answer(text=f"text {number}"))
answers.close()
"""


def test_two_processes_that_write_lose_nothing(answers: KeptAnswers) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(ROOT), str(answers.path), str(first), "1000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in (0, 1000)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0 and said == "", said
    assert answers.totals()[0] == 2000
    for number in (0, 999, 1000, 1999):
        answer = answers.get(number.to_bytes(4, "big"))
        assert answer and answer.text == f"text {number}"


def test_an_answer_is_found_while_another_process_writes(answers: KeptAnswers) -> None:
    answers.put(key_of(1), Answer(text="A ball."))
    with closing(sqlite3.connect(answers.path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert answers.totals()[0] == 1


def test_a_hit_among_a_hundred_thousand_costs_little(answers: KeptAnswers) -> None:
    answers.put(key_of(0), Answer(text="A ball."))
    assert answers._connection is not None
    text = '{"text": "' + "word " * 60 + '"}'
    answers._connection.execute("BEGIN")
    answers._connection.executemany(
        "INSERT INTO answers VALUES (?, ?, ?)",
        ((number.to_bytes(32, "big"), float(number), text) for number in range(100_000)),
    )
    answers._connection.execute("COMMIT")
    took: list[float] = []
    for number in range(0, 100_000, 997):
        begun = time.perf_counter()
        assert answers.get(number.to_bytes(32, "big"))
        took.append(time.perf_counter() - begun)
    assert sorted(took)[len(took) // 2] < 0.005


# settings


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    config = tmp_path / "image-refinery.toml"
    for line, wanted in (
        ("", True),
        ("keep_answers = true", True),
        ("keep_answers = false", False),
    ):
        config.write_text(line)
        with open_answers(tmp_path / "answers.db", config=config) as answers:
            assert (answers is not None) is wanted
    config.write_text('keep_answers = "no"')
    with pytest.raises(ServerConfigError, match="keep_answers"), open_answers(config=config):
        pass
    assert not (tmp_path / "answers.db").exists(), "nothing was kept, nothing is written"


def test_all_can_be_removed(answers: KeptAnswers) -> None:
    assert (answers.totals(), answers.clear()) == ((0, 0), 0)
    assert not answers.path.exists()
    for number in range(100):
        answers.put(key_of(number), Answer(text="word " * 1000))
    assert answers.totals()[0] == 100 and answers.totals()[1] > 400_000
    assert answers.clear() == 100
    assert answers.totals()[0] == 0 and answers.path.stat().st_size < 100_000


def test_no_prompt_and_no_image_is_in_the_file(server: FaultyOllama, answers: KeptAnswers) -> None:
    refine(server, answers, job("A very private instruction."))
    answers.close()
    with closing(sqlite3.connect(answers.path)) as connection:
        rows = connection.execute("SELECT key, answer FROM answers").fetchall()
    assert len(rows) == 6 and all(len(key) == 32 for key, _ in rows)
    assert not any("private" in text or server.url in text for _, text in rows)


def test_a_run_of_kept_answers_can_be_cancelled(server: FaultyOllama, answers: KeptAnswers) -> None:
    class CancelsAfterTwo(Watcher):
        done = 0

        def finished(self, index: int, result: Result) -> None:
            self.done += 1

        def cancelled(self) -> bool:
            return self.done >= 2

    refine(server, answers, job(text=None), 5)
    watcher = CancelsAfterTwo()
    with pytest.raises(Cancelled):
        refine(server, answers, job(text=None), 5, watcher=watcher)
    assert watcher.done == 2 and len(server.of("chat")) == 5
