"""llama.cpp's own server, as a person runs llama-server: with a vision and a text model.

The text model has random weights, and writes nonsense without end: no test is about its words.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from image_refinery._backends import open_backend
from image_refinery.captioning.job import Job, Stage
from image_refinery.captioning.run import run
from image_refinery.llm import probe
from image_refinery.llm.backend import Answer, collect
from image_refinery.llm.errors import (
    AccessDenied,
    Cancelled,
    ContextTooLong,
    IncompleteAnswer,
    ModelNotFound,
    NoVision,
    ServerUnreachable,
    UnexpectedResponse,
)
from image_refinery.llm.llamacpp.library import Library
from image_refinery.llm.servers import Server
from image_refinery.memory import StageMemory
from llama_server import llama_server
from PIL import Image

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(
        importlib.util.find_spec("xllamacpp") is None,
        reason="xllamacpp is not installed (extra `embedded`)",
    ),
]

SCENE = Path(__file__).resolve().parents[3] / "examples" / "scene.png"
KEY = "a-key"
SOON_S = 1.0
LONG: dict[str, Any] = {"num_predict": 8000, "seed": 1}
"""Options of an answer that takes many seconds."""
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
STORY: Any = [{"role": "user", "content": "Count from one to ten thousand, one number a line."}]


@contextmanager
def serving(name: str, num_ctx: int, folders: Sequence[Path] | None = None) -> Iterator[Server]:
    """A llama-server with one model, and the entry of it that a person would write."""
    model = Library(folders).find(name)
    files = model.path, model.mmproj
    with llama_server(Path(sys.executable), *files, name, num_ctx, Path(os.devnull)) as url:
        yield Server(name="box", url=url, kind="", api_key=KEY)


@pytest.fixture(scope="module")
def seeing() -> Iterator[Server]:
    with serving("toy-vision", 2048) as server:
        yield server


@pytest.fixture(scope="module")
def writing(models: Path) -> Iterator[Server]:
    with serving("slow", 8192, [models]) as server:
        yield server


@pytest.fixture
def opened() -> Iterator[Callable[[Server], Any]]:
    with ExitStack() as backends:
        yield lambda server: backends.enter_context(closing(open_backend(server)))


def scene() -> Any:
    return Image.open(SCENE).convert("RGB")


def test_it_is_recognized_and_lists_its_model(seeing: Server, writing: Server, opened: Any) -> None:
    for server, name, sees, context in (
        (seeing, "toy-vision", True, 512),  # its trained length, though 2048 was asked for
        (writing, "slow", False, 8192),
    ):
        backend = opened(server)
        assert (backend.server.kind, backend.server.name) == ("llama-server", "box")
        (model,) = backend.list()
        assert (model.name, model.lacks("vision")) == (name, not sees)
        assert not model.lacks("completion") and not model.lacks("thinking")
        assert model.size_bytes and model.size_bytes > 10**6
        assert model.context_length == context
        assert [loaded.name for loaded in backend.ps()] == [name]
        backend.load(name)
        assert backend.context_of(name) == context
        unloaded = backend.unload(name)
        assert not unloaded.possible and not unloaded.confirmed


def test_a_search_passes_a_server_with_a_key(
    writing: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends none, so such a server needs an entry with its address."""
    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setattr(probe, "PORTS", (int(writing.url.rpartition(":")[2]),))
    assert not list(probe.find_servers())
    with pytest.raises(AccessDenied, match="401"):
        probe.identify(Server(url=writing.url, kind=""))


def test_it_describes_an_image(seeing: Server, opened: Any) -> None:
    job = Job(vision=Stage(model="toy-vision", options={"temperature": 0, "num_predict": 80}))
    (caption,) = run(opened(seeing), [scene], job, memory=StageMemory())
    text = caption.description.text.lower()
    assert text.count(" ") >= 4 and any(color in text for color in ("red", "blue", "yellow"))
    answer = caption.description.answer
    assert answer and answer.done_reason == "stop" and not answer.remark
    assert answer.prompt_tokens and answer.answer_tokens and answer.answer_tokens < 80
    assert answer.prompt_s and answer.answer_s and answer.total_s


def test_two_servers_in_one_run(seeing: Server, writing: Server, opened: Any) -> None:
    job = Job(
        vision=Stage(model="auto", options={"temperature": 0, "num_predict": 80}),
        text=Stage(model="auto", options={"num_predict": 16, "seed": 1}),
        instructions=["Shorten it."],
    )
    captions = run(opened(seeing), [scene, scene], job, text_backend=opened(writing))
    for caption in captions:
        assert caption.description.answer and caption.description.answer.model == "toy-vision"
        assert caption.final.answer and caption.final.answer.model == "slow"
        assert caption.final.text
    assert captions[0].description.text == captions[1].description.text


def test_the_same_seed_gives_the_same_words(writing: Server, opened: Any) -> None:
    backend = opened(writing)

    def say(seed: int) -> str:
        options = {"seed": seed, "num_predict": 24, "temperature": 1.5}
        return collect(backend.chat("slow", STORY, options=options)).text

    assert say(3) == say(3) != say(4)


def test_an_answer_is_cut_at_num_predict(writing: Server, opened: Any) -> None:
    backend = opened(writing)
    backend.list()
    options = {"num_predict": 8, "num_ctx": 32, "seed": 1}
    answer = collect(backend.chat("slow", STORY, options=options))
    assert (answer.done_reason, answer.answer_tokens) == ("length", 8)
    assert not answer.context_full and answer.remark == "The answer was cut at num_predict."


def test_the_context_is_that_of_the_server(models: Path, opened: Any) -> None:
    with serving("tiny", 256, [models]) as server:
        backend = opened(server)
        backend.list()

        def read(words: int) -> Answer:
            question: Any = [{"role": "user", "content": "x" * words}]
            options = {"num_predict": 12, "num_ctx": 8192, "seed": 1}
            # The format, so that there is an answer.
            chat = backend.chat("tiny", question, options=options, format=NUMBER)
            return collect(chat)

        short = read(1)
        assert short.prompt_tokens and not short.context_full
        nearly = read(248 - short.prompt_tokens)
        assert nearly.prompt_tokens and 240 <= nearly.prompt_tokens < 256 and nearly.context_full
        with pytest.raises(ContextTooLong, match="context"):
            read(300)


def test_a_format_holds(writing: Server, opened: Any) -> None:
    question: Any = [{"role": "user", "content": "Pick a number."}]
    backend = opened(writing)
    options = {"num_predict": 200, "temperature": 0}
    answer = collect(backend.chat("slow", question, options=options, format=NUMBER))
    assert isinstance(json.loads(answer.text)["n"], int)


def test_an_image_for_a_model_that_takes_none(writing: Server, opened: Any) -> None:
    """The run knows before; a chat has llama.cpp's word."""
    import base64

    backend = opened(writing)
    job = Job(vision=Stage(model="slow"))
    (caption,) = run(backend, [scene], job)
    assert isinstance(caption.final.error, NoVision)
    image = base64.b64encode(SCENE.read_bytes()).decode()
    question: Any = [{"role": "user", "content": "What is it?", "images": [image]}]
    with pytest.raises(NoVision, match="does not take images"):
        collect(backend.chat("slow", question))
    assert collect(backend.chat("slow", STORY, options={"num_predict": 4, "seed": 1})).text


def test_a_broken_image_is_a_sentence(seeing: Server, opened: Any) -> None:
    question: Any = [{"role": "user", "content": "What is it?", "images": ["bm90aGluZw=="]}]
    with pytest.raises(UnexpectedResponse) as raised:
        collect(opened(seeing).chat("toy-vision", question))
    assert raised.value.status == 400 and "\n" not in str(raised.value)


def test_a_wrong_name_or_key(writing: Server, opened: Any) -> None:
    with pytest.raises(ModelNotFound):
        opened(writing).find("llava")
    wrong = opened(Server(url=writing.url, kind="llama-server", api_key="wrong"))
    with pytest.raises(AccessDenied, match="401"):
        collect(wrong.chat("slow", STORY))


@pytest.mark.parametrize("when", ["before the first token", "in the middle"])
def test_cancel_frees_the_server(writing: Server, opened: Any, when: str) -> None:
    backend = opened(writing)
    backend.list()
    stop = threading.Event()
    pieces: list[str] = []
    times: list[float] = []

    def work() -> None:
        with pytest.raises(Cancelled):
            collect(
                backend.chat("slow", STORY, options=LONG, cancelled=stop.is_set),
                pieces.append,
            )
        times.append(time.monotonic())

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 60
    while when == "in the middle" and len(pieces) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    started = time.monotonic()
    stop.set()
    thread.join(30)
    assert times and times[0] - started < SOON_S
    # It has one slot: the next answer would wait for the end of the first.
    answer = collect(backend.chat("slow", STORY, options={"num_predict": 2, "seed": 1}))
    assert answer.text and time.monotonic() - started < 20


def test_a_server_that_ends_in_the_middle(models: Path, opened: Any) -> None:
    with ExitStack() as server_ends:
        backend = opened(server_ends.enter_context(serving("slow", 8192, [models])))
        tokens = backend.chat("slow", STORY, options=LONG)
        next(tokens)
        server_ends.close()
        with pytest.raises(IncompleteAnswer, match="broke off after"):
            collect(tokens)
        with pytest.raises(ServerUnreachable):
            backend.list()
