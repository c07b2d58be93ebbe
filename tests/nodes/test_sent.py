"""What a node sent, as the page's dialog shows it: exact, without images, addresses and keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from image_refinery.captioning.options import StageOptions
from image_refinery.llm.errors import LLMError

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

IMAGE = torch.full((1, 300, 400, 3), 0.5)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is sent to the page with the client id "tab", instead of every page."""
    from server import PromptServer

    monkeypatch.setattr(PromptServer.instance, "client_id", "tab")
    monkeypatch.setattr(PromptServer.instance, "events", [])
    return PromptServer.instance.events


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    """Runs LLM Image Refine as node 7 of a graph."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.llm_image_refine import LLMImageRefine

    monkeypatch.setattr(LLMImageRefine, "hidden", type("Hidden", (), {"unique_id": "7"}))

    def run(**inputs: Any) -> Any:
        named = {"vision_model": "llava", "text_model": "llama3.2", "image": IMAGE} | inputs
        return LLMImageRefine.execute(**{name: [value] for name, value in named.items()})

    return run


def text_of(events: list[Any]) -> str:
    ((name, data, client),) = events
    assert (name, data["node"], client) == ("imagerefinery.sent", "7", "tab")
    return data["text"]


def test_both_stages_as_the_server_got_them(
    execute: Any, events: list[Any], ollama: FaultyOllama
) -> None:
    options = StageOptions(format={"type": "object"}, model_options={"num_ctx": 8192})
    ui = execute(user_instructions="Café, please.", text_options=options).ui
    text = text_of(events)
    seeing, writing = [r.body for r in ollama.requests if r.kind == "chat"]
    for body in (seeing, writing):
        assert f"options: {json.dumps(body['options'])}" in text
        for message in body["messages"]:
            assert f"[{message['role']}]\n{message['content']}" in text
    assert "[1 image, 400 x 300 JPEG, " in text
    assert '"num_ctx": 8192' in text and 'format: {"type": "object"}' in text
    assert "think" not in text, "it was not sent"
    assert seeing["messages"][-1]["images"][0][:30] not in text
    assert "server: default (Ollama)" in text and ollama.url not in text
    assert "num_ctx" not in json.dumps(ui), "the history keeps `ui`"


def test_three_requests_are_shown_and_all_are_counted(execute: Any, events: list[Any]) -> None:
    for settings in (StageOptions(), StageOptions(parallel=4)):
        events.clear()
        images = torch.rand(8, 300, 400, 3)  # unlike each other: an answer is kept
        execute(image=images, user_instructions="", vision_options=settings)
        text = text_of(events)
        assert "describe with llava: 8 of 8 sent" in text
        assert text.count("[1 image, ") == text.count(" of 8 ---") == 3
        assert text.endswith("... and 5 more, not shown.")


def test_images_of_one_request(execute: Any, events: list[Any]) -> None:
    execute(image=IMAGE.repeat(5, 1, 1, 1), batch_mode="one text for all images")
    assert "[5 images, the first 400 x 300 JPEG, " in text_of(events)


def test_a_run_with_kept_answers_sends_less(
    execute: Any, events: list[Any], ollama: FaultyOllama
) -> None:
    execute(user_instructions="Shorten it.", seed=71)
    events.clear()
    execute(user_instructions="Lengthen it.", seed=71)
    text = text_of(events)
    assert "describe with llava: 0 of 1 sent" in text
    assert "rewrite with llama3.2: 1 of 1 sent" in text
    events.clear()
    execute(user_instructions="Lengthen it.", seed=71)
    assert text_of(events) == ""
    assert sum(request.kind == "chat" for request in ollama.requests) == 3


def test_a_run_that_stops_tells_as_well(
    execute: Any, events: list[Any], ollama: FaultyOllama
) -> None:
    ollama.script("chat", "empty")
    with pytest.raises(LLMError):
        execute(on_error="stop the workflow")
    assert "1 of 1 sent" in text_of(events)


def test_where_nothing_is_sent_the_text_is_empty(
    execute: Any, events: list[Any], ollama: FaultyOllama
) -> None:
    ollama.models = {}
    execute()
    assert text_of(events) == ""


def test_a_run_without_a_page_sends_no_event(
    execute: Any, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    monkeypatch.setattr(PromptServer.instance, "client_id", None)
    execute()
    assert events == []


def test_options_that_a_server_does_not_support_are_not_shown() -> None:
    from image_refinery.captioning.events import Watcher
    from image_refinery.captioning.job import Stage, TextJob
    from image_refinery.captioning.run import process
    from image_refinery.llm.backend import Answer, Model
    from image_refinery.llm.retry import Retries
    from image_refinery.llm.servers import Server

    class Backend:
        server = Server(name="studio", url="http://127.0.0.1:9", kind="openai")
        retries = Retries()

        def list(self, cancelled: Any) -> Any:
            return [Model(name="m")]

        def find(self, *_: Any, **__: Any) -> Model:
            return Model(name="m")

        def ignored(self, options: Any) -> list[str]:
            return [name for name in ("num_ctx", "think") if options.get(name) is not None]

        def load(self, *_: Any, **__: Any) -> None: ...

        def chat(self, *_: Any, **__: Any) -> Any:
            yield "x"
            return Answer(text="x")

    class Kept(Watcher):
        def sent(self, index: int, request: Any) -> None:
            self.request = request

    watcher = Kept()
    stage = Stage(model="m", options={"seed": 3})
    process(Backend(), TextJob(stage=stage, texts=["a"]), watcher=watcher)  # type: ignore[arg-type]
    assert watcher.request.options == {"num_predict": 1024, "seed": 3}
    assert watcher.request.server.startswith("studio (")
