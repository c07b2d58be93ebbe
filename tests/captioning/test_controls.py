"""Placeholders in prompts, and words that an answer must or must not contain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Caption, Job, Stage
from image_refinery.captioning.kept import KeptAnswers
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import run
from image_refinery.cli.main import main
from image_refinery.files import about_file
from image_refinery.memory import StageMemory
from image_refinery.ollama_client import OllamaClient, Server
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


def picture(shade: int) -> Callable[[], Any]:
    return lambda: np.full((40, 60, 3), shade, np.uint8)


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def captions(
    server: FaultyOllama, job: Job, count: int = 1, **more: Any
) -> tuple[list[Caption], list[str]]:
    watcher = Notes()
    with OllamaClient(Server(url=server.url)) as client:
        images = [picture(shade) for shade in range(count)]
        done = run(client, images, job, memory=StageMemory(), watcher=watcher, **more)
    return done, watcher.notes


def asked(server: FaultyOllama) -> list[str]:
    return [request.body["messages"][-1]["content"] for request in server.of("chat")]


# placeholders


def test_each_image_has_its_own_values(ollama: FaultyOllama) -> None:
    job = Job(
        vision=Stage(model="llava"),
        text=Stage(model="llama3.2"),
        custom_prompts=["What is {name}?"],
        instructions=['Use "{tags}" as {"json": "{width}"}.'],
        about=[
            {"name": "cat", "tags": "ohwx, {name}", "width": "60"},
            {"name": "dog", "tags": "", "width": "61"},
        ],
    )
    captions(ollama, job, 2)
    seen, wrote = asked(ollama)[:2], asked(ollama)[2:]
    assert seen == ["What is cat?", "What is dog?"]
    assert wrote[0].endswith('Instructions: Use "ohwx, {name}" as {"json": "60"}.')
    assert wrote[1].endswith('Instructions: Use "" as {"json": "61"}.')


def test_without_values_a_prompt_stays(ollama: FaultyOllama) -> None:
    captions(ollama, Job(vision=Stage(model="llava"), custom_prompts=["What is {name}?"]))
    assert asked(ollama) == ["What is {name}?"]


def test_what_a_file_tells(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (60, 40)).save(folder / "a.b.jpg", exif=exif)
    assert about_file(folder / "a.b.jpg") == {
        "name": "a.b",
        "folder": "cats",
        "tags": "",
        "width": "40",
        "height": "60",
    }
    (folder / "a.b.txt").write_bytes("\ufeffohwx,\r\n cat \xe9".encode())
    assert about_file(folder / "a.b.jpg")["tags"] == "ohwx, cat é"
    (folder / "a.b.txt").write_bytes(b"caf\xe9")
    assert about_file(folder / "a.b.jpg")["tags"] == "caf\ufffd"


def test_the_command_fills_them(
    ollama: FaultyOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    for name, size in (("a", (60, 40)), ("b", (50, 50))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("ohwx dog")
    prompt = "{name} in {folder}, {width} x {height}: {tags}."
    assert main(["describe", str(tmp_path), "--vision-prompt", prompt]) == 0
    assert asked(ollama) == [
        f"a in {tmp_path.name}, 60 x 40: .",
        f"b in {tmp_path.name}, 50 x 50: ohwx dog.",
    ]


# must and must not


def rules(**settings: Any) -> Job:
    return Job(vision=Stage(model="llava", settings=StageOptions(**settings)))


def test_an_answer_that_breaks_a_rule_is_sent_back_once(make_ollama: Any) -> None:
    from faulty_ollama import vision_model

    answers = iter(["A photo of a cat.", "ohwx, a cat."])
    server = make_ollama([vision_model(answer=lambda _: next(answers))])
    done, notes = captions(server, rules(must=["ohwx"], must_not=["photo", "image"]))
    assert done[0].final.text == "ohwx, a cat." and notes == []
    first, second = server.of("chat")
    history = second.body["messages"]
    assert [message["role"] for message in history] == ["user", "assistant", "user"]
    assert history[0] == first.body["messages"][0], "the image goes along"
    assert history[1]["content"] == "A photo of a cat."
    assert 'must contain "ohwx", and must not contain "photo"' in history[2]["content"]
    assert server.loads == {"llava:latest": 1}


def test_a_second_wrong_answer_is_used_and_said(make_ollama: Any) -> None:
    from faulty_ollama import vision_model

    server = make_ollama([vision_model(answer=lambda _: "A photo.")])
    done, notes = captions(server, rules(must_not=["photo"]))
    assert done[0].final.text == "A photo." and len(server.of("chat")) == 2
    assert notes == ['Text 1 must not contain "photo". The model did not correct it.']


def test_a_right_answer_costs_one_request(ollama: FaultyOllama) -> None:
    captions(ollama, rules(must=["red circle"], must_not=["photo"]))
    assert len(ollama.of("chat")) == 1


def test_a_repair_that_fails_loses_no_answer(ollama: FaultyOllama) -> None:
    ollama.script("chat", None, "empty")
    done, notes = captions(ollama, rules(must=["ohwx"]))
    assert done[0].final.text == "A red circle on a white background." and len(notes) == 1


def test_the_words_of_the_output_count(make_ollama: Any) -> None:
    """Not those of a preamble that is removed."""
    from faulty_ollama import text_model, vision_model

    answers = iter(["Here is the prompt with ohwx:\nA ball.", "ohwx, a ball."])
    server = make_ollama([vision_model(), text_model(answer=lambda _: next(answers))])
    text = Stage(model="llama3.2", settings=StageOptions(must=["ohwx"], must_not=["prompt"]))
    job = Job(vision=Stage(model="llava"), text=text, instructions=["Shorten it."])
    done, notes = captions(server, job)
    assert done[0].final.text == "ohwx, a ball." and notes == []


def test_an_answer_that_breaks_a_rule_is_not_kept(make_ollama: Any, tmp_path: Path) -> None:
    from faulty_ollama import vision_model

    server = make_ollama([vision_model(answer=lambda _: "a cat")])
    kept = KeptAnswers(tmp_path / "answers.db")
    captions(server, rules(must=["ohwx"]), kept=kept)
    assert kept.totals()[0] == 0
    kept.close()


def test_a_placeholder_without_a_value_leaves_no_instructions(ollama: FaultyOllama) -> None:
    job = Job(
        vision=Stage(model="llava"),
        text=Stage(model="llama3.2"),
        instructions=["{tags}"],
        about=[{"tags": ""}],
    )
    done, _notes = captions(ollama, job)
    assert done[0].refined is None and len(ollama.of("chat")) == 1


def test_the_context_has_room_for_what_is_filled_in(ollama: FaultyOllama) -> None:
    job = Job(
        vision=Stage(model="llava"), custom_prompts=["{tags}"], about=[{"tags": "word " * 4000}]
    )
    captions(ollama, job)
    (chat,) = ollama.of("chat")
    assert chat.options["num_ctx"] >= 2 * 20_000 / 2


def test_the_context_has_room_for_an_answer_that_goes_back(ollama: FaultyOllama) -> None:
    must = StageOptions(must=["ohwx"])
    stage = Stage(model="llava", options={"num_predict": 8000}, settings=must)
    captions(ollama, Job(vision=stage))
    assert ollama.of("chat")[0].options["num_ctx"] >= 3 * 8000


def test_the_corrected_answer_is_kept(make_ollama: Any, tmp_path: Path) -> None:
    from faulty_ollama import vision_model

    answers = iter(["A photo of a cat.", "ohwx, a cat.", "A third."])
    server = make_ollama([vision_model(answer=lambda _: next(answers))])
    kept = KeptAnswers(tmp_path / "answers.db")
    for _ in range(2):
        done, _notes = captions(server, rules(must=["ohwx"]), kept=kept)
        assert done[0].final.text == "ohwx, a cat."
    done, _notes = captions(server, rules(), kept=kept)
    assert done[0].final.text == "A third.", "other rules are another request"
    kept.close()
