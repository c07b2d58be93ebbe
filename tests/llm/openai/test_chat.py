"""A chat with each kind of server: what is sent, what comes back, and how it is stopped."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from image_refinery.llm.backend import Answer, collect
from image_refinery.llm.errors import Cancelled, EmptyAnswer, ModelNotFound
from image_refinery.llm.servers import Server

KINDS = ["router", "llama-server", "lmstudio", "llama-swap", "vllm", "openai"]
QUESTION: Any = [{"role": "user", "content": "Say something."}]
CLOSED_WITHIN_S = 1.0


def vision_model(server: Any) -> str:
    return next(model.name for model in server.models.values() if model.vision)


def chat(client: Any, server: Any, **more: Any) -> Answer:
    return collect(client.chat(vision_model(server), QUESTION, **more))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_come_as_they_are_written_and_make_up_the_answer(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    pieces: list[str] = []
    answer = collect(client.chat(vision_model(server), QUESTION), pieces.append)
    assert "".join(pieces) == answer.text == "It is a test." and len(pieces) > 1
    assert answer.done_reason == "stop" and not answer.remark
    assert answer.prompt_tokens == 2 and answer.answer_tokens == 4
    has_timings = kind in ("router", "llama-server", "llama-swap")
    assert (answer.prompt_s is not None) is (answer.answer_s is not None) is has_timings
    assert answer.total_s is not None and answer.total_s < 30


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_arrives_before_the_text(open_kind: Any, kind: str, red_image: str) -> None:
    client, server = open_kind(kind)
    system = {"role": "system", "content": "Be brief."}
    question = {"role": "user", "content": "What is it?", "images": [red_image]}
    answer = collect(client.chat(vision_model(server), [system, question]))
    assert answer.text == "A red image."
    (record,) = server.of("chat")
    assert record.fields["messages"][0] == system
    parts = record.fields["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert parts[1]["text"] == "What is it?"


def test_a_png_is_called_one(open_kind: Any) -> None:
    import base64
    import io

    from PIL import Image

    client, server = open_kind("openai")
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "blue").save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    question: Any = {"role": "user", "content": "What is it?", "images": [image]}
    assert collect(client.chat("qwen2.5-vl", [question])).text == "A blue image."
    url = server.of("chat")[0].fields["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")


# Names


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_name_is_found_before_the_chat(open_kind: Any, kind: str) -> None:
    """A llama-server with one model answers to any name."""
    client, server = open_kind(kind)
    with pytest.raises(ModelNotFound, match=r'The model "nothing" is not installed on the '):
        client.find("nothing")
    assert client.find(vision_model(server)).name == vision_model(server)
    assert not server.of("chat", "load")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama-server"])
def test_a_model_that_has_gone_since_is_not_found(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    with pytest.raises(ModelNotFound, match=r'The model "gone" is not installed on the '):
        collect(client.chat("gone", QUESTION))
    assert len(server.of("chat")) == 1


# Reasoning


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["reasoning_content", "reasoning", "think_tags"])
def test_reasoning_is_kept_apart(open_kind: Any, kind: str, fault: str) -> None:
    client, server = open_kind(kind)
    server.script("chat", fault)
    pieces: list[str] = []
    answer = collect(client.chat(vision_model(server), QUESTION, think=True), pieces.append)
    assert (answer.text, answer.thinking) == ("It is a test.", "Let me see.")
    assert "".join(pieces) == "It is a test."


def test_tags_of_reasoning_may_be_cut_anywhere(open_kind: Any) -> None:
    client, server = open_kind("openai")
    server.script("chat", "think_split")
    answer = chat(client, server)
    assert (answer.text, answer.thinking) == ("A test.", "Let me see.")


def test_reasoning_may_begin_in_the_prompt(open_kind: Any) -> None:
    """Some chat templates end with <think>, so that only </think> is in the answer."""
    client, server = open_kind("openai")
    server.script("chat", "think_no_open")
    answer = chat(client, server)
    assert (answer.text, answer.thinking) == ("It is a test.", "Let me see.")


@pytest.mark.parametrize("fault", ["reasoning_only", "think_no_close"])
def test_an_answer_that_is_only_reasoning_is_empty(open_kind: Any, fault: str) -> None:
    client, server = open_kind("lmstudio")
    server.script("chat", fault)
    with pytest.raises(EmptyAnswer, match="it used up num_predict for thinking") as raised:
        chat(client, server)
    assert raised.value.thought and raised.value.done_reason == "length"


# The context


@pytest.mark.parametrize("kind", ["router", "llama-server", "lmstudio", "vllm"])
@pytest.mark.parametrize("words", [4, 64])
def test_a_full_context_is_told_by_the_size_in_force(open_kind: Any, kind: str, words: int) -> None:
    """Not by num_ctx: only LM Studio takes it, when it loads the model."""
    context = {"default_context": 64} if kind == "lmstudio" else {"context": 64}
    client, server = open_kind(kind, **context)
    name = vision_model(server)
    client.find(name)
    client.load(name)
    assert client.context_of(name) == 64
    question: Any = [{"role": "user", "content": "word " * words}]
    answer = collect(client.chat(name, question, options={"num_ctx": 4096}))
    assert answer.context_full is (words == 64)


def test_lm_studio_tells_the_context_that_it_took(open_kind: Any) -> None:
    client, server = open_kind("lmstudio")
    name = vision_model(server)
    client.load(name, options={"num_ctx": 10**6})
    assert client.context_of(name) == server.models[name].context, "no longer than it was trained"


def test_a_model_that_was_loaded_keeps_its_context(open_kind: Any) -> None:
    client, server = open_kind("lmstudio", loaded=["llama-3.2-3b-instruct"])
    client.load("llama-3.2-3b-instruct", options={"num_ctx": 2048})
    assert client.context_of("llama-3.2-3b-instruct") == 131072
    assert not server.of("load")


def test_the_context_of_a_server_that_was_still_loading_is_known_after_it(open_kind: Any) -> None:
    client, server = open_kind("llama-server", context=512, load_s=0.3)
    assert client.list()[0].context_length is None
    client.load("qwen2.5-vl")
    assert client.context_of("qwen2.5-vl") == 512
    assert server.loaded == ["qwen2.5-vl"]


@pytest.mark.parametrize("kind", ["openai", "llama-swap"])
def test_a_context_that_nobody_tells_is_never_full(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    client.list()
    question: Any = [{"role": "user", "content": "word " * 9000}]
    assert not collect(client.chat(vision_model(server), question)).context_full


# Cancel


def cancel_after(server: Any, begin: Any, ready: Any) -> float:
    """Run `begin(cancelled)` until `ready()`, cancel, and return the seconds that it took."""
    stop = threading.Event()
    raised: list[Exception] = []

    def work() -> None:
        try:
            begin(stop.is_set)
        except Exception as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert server.wait_until(ready, 20)
    started = time.monotonic()
    stop.set()
    thread.join(20)
    assert [type(error) for error in raised] == [Cancelled]
    return time.monotonic() - started


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
def test_cancel_closes_the_connection(open_kind: Any, kind: str, when: str) -> None:
    pace = {"prompt_s": 60.0} if when == "before the first byte" else {"token_s": 0.02}
    client, server = open_kind(kind, **pace)
    if when == "in the middle":
        server.script("chat", "endless")
    least = 0 if when == "before the first byte" else 3
    name = vision_model(server)
    seconds = cancel_after(
        server,
        lambda cancelled: collect(client.chat(name, QUESTION, cancelled=cancelled)),
        lambda: bool(server.of("chat")) and server.of("chat")[0].tokens_sent >= least,
    )
    assert seconds < CLOSED_WITHIN_S
    assert server.wait_until(lambda: bool(server.aborted), CLOSED_WITHIN_S)
    assert server.aborted[0].kind == "chat"
    server.prompt_s = 0.0
    assert chat(client, server).text == "It is a test.", "the next chat is not disturbed"


@pytest.mark.parametrize("kind", ["llama-swap", "lmstudio", "router"])
def test_cancel_ends_a_chat_that_loads_its_model(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind, load_s=60.0)
    name = vision_model(server)
    seconds = cancel_after(
        server,
        lambda cancelled: collect(client.chat(name, QUESTION, cancelled=cancelled)),
        lambda: bool(server.of("chat")),
    )
    assert seconds < CLOSED_WITHIN_S
    assert server.wait_until(lambda: bool(server.aborted), CLOSED_WITHIN_S)


@pytest.mark.parametrize("kind", ["lmstudio", "router", "llama-server"])
def test_cancel_ends_a_load(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind, load_s=60.0)
    name = vision_model(server)
    first = "status" if kind == "llama-server" else "load"
    seconds = cancel_after(
        server,
        lambda cancelled: client.load(name, cancelled=cancelled),
        lambda: bool(server.of(first)),
    )
    assert seconds < CLOSED_WITHIN_S
    if kind == "lmstudio":
        assert server.wait_until(lambda: bool(server.aborted), CLOSED_WITHIN_S)


@pytest.mark.parametrize("kind", KINDS)
def test_cancel_ends_a_list_that_hangs(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    server.always("list", "hang")
    seconds = cancel_after(server, client.list, lambda: bool(server.of("list")))
    assert seconds < CLOSED_WITHIN_S


def test_closing_the_chat_closes_the_connection(open_kind: Any) -> None:
    client, server = open_kind("openai", token_s=0.01)
    server.script("chat", "endless")
    pieces = client.chat("qwen2.5-vl", QUESTION)
    next(pieces)
    pieces.close()
    assert server.wait_until(lambda: bool(server.aborted), CLOSED_WITHIN_S)


# Keys


def test_a_key_goes_to_its_own_address_only(open_kind: Any) -> None:
    with_key, locked = open_kind("openai", api_key="secret", entry={"api_key": "secret"})
    without, open_one = open_kind("lmstudio")
    assert chat(with_key, locked).text and chat(without, open_one).text
    assert {record.key for record in locked.requests} == {"secret"}
    assert {record.key for record in open_one.requests} == {""}


def test_a_redirect_does_not_carry_the_key_away(open_kind: Any) -> None:
    from image_refinery.llm.errors import Redirected
    from scripted_servers import Reply

    client, server = open_kind("openai", entry={"api_key": "secret"})
    _, thief = open_kind("openai")
    location = {"Location": f"{thief.url}/v1/chat/completions"}
    server.always("*", Reply(status=307, body=b"", headers=location))
    with pytest.raises(Redirected):
        chat(client, server)
    assert thief.requests == []


def test_a_key_is_not_sent_in_the_clear() -> None:
    """To another machine it goes over https only."""
    assert not Server(url="http://192.0.2.7:8000", kind="openai", api_key="k").may_send_key
    assert Server(url="https://192.0.2.7:8000", kind="openai", api_key="k").may_send_key


# assume


@pytest.mark.parametrize("kind", KINDS)
def test_assumed_capabilities_are_added_to_what_the_server_tells(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind, entry={"assume": frozenset({"vision"})})
    for model in client.list():
        assert model.capabilities == {"completion", "vision"}
        assert not model.lacks("vision") and not model.lacks("thinking")


def test_assumed_thinking_is_sent(open_kind: Any) -> None:
    from image_refinery.llm.backend import think_value

    client, _ = open_kind("vllm", entry={"assume": frozenset({"thinking"})})
    model = client.list()[0]
    assert think_value(model, False, client.server) is False
    assert think_value(model, True, client.server) is True
