"""Every fault of the scripted servers ends in the whole answer, or in one sentence that fits it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fault_cases import KINDS, OPENAI_CHAT, OPENAI_LIST
from image_refinery._advice import Edge, with_advice
from image_refinery.llm import errors
from image_refinery.llm.backend import Answer, collect
from image_refinery.llm.http import Timeouts
from scripted_servers import Reply

QUESTION: Any = [{"role": "user", "content": "Say something."}]
SHORT = Timeouts(connect_s=0.3, first_byte_s=0.3, silence_s=0.3, quick_s=0.3)
EDGE = Edge(again="queue again", options="the options")
WHOLE = "It is a test."

SLOW = ("big_line", "endless_line")
"""Faults that send 20 MB: once is enough."""
CHAT: dict[str, Any] = {name: wanted or WHOLE for name, wanted in OPENAI_CHAT.items()} | {
    "endless": WHOLE + " more" * 73  # with a small num_predict
}


def waits(fault: str) -> Timeouts:
    """Short where a test waits for their end; a slow machine needs the usual ones elsewhere."""
    return SHORT if fault.startswith("hang") else Timeouts()


def check_sentence(error: errors.LLMError) -> None:
    """One sentence of one line, with what to do, and nothing of Ollama or of Python."""
    message = str(error)
    assert error.server is not None
    assert message.endswith(".") and "\n" not in message
    assert message[:1].isupper() or message.startswith(error.server.product)
    assert len(message) < 600 and "{'" not in message and "Traceback" not in message
    advised = with_advice(error, EDGE)
    assert advised.startswith(message) and "ollama" not in advised.lower()


def outcome(client: Any, server: Any, **more: Any) -> Answer | errors.LLMError:
    name = next(iter(server.models))
    try:
        return collect(client.chat(name, QUESTION, options={"num_predict": 12}, **more))
    except errors.LLMError as error:
        return error


def check(result: Answer | errors.LLMError, wanted: Any) -> None:
    """Assert an answer, or the class of an error and words of its message."""
    if isinstance(wanted, str):
        assert isinstance(result, Answer), result
        assert result.text == wanted
    else:
        assert type(result) is wanted[0], result
        assert wanted[1] in str(result)
        check_sentence(result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [fault for fault in CHAT if fault not in SLOW])
def test_a_chat_ends_in_a_sentence_or_in_the_whole_answer(
    open_kind: Any, kind: str, fault: str
) -> None:
    client, server = open_kind(kind, timeouts=waits(fault))
    server.script("chat", fault)
    result = outcome(client, server)
    check(result, CHAT[fault])
    if fault in ("cut_short", "endless"):
        assert isinstance(result, Answer) and result.done_reason == "length"
    server.forget_script()
    client.close()  # the server may be about to close what is idle: a run would ask again
    check(outcome(client, server, timeout_s=20), WHOLE)


@pytest.mark.parametrize("fault", SLOW)
def test_a_line_without_an_end_is_not_collected(open_kind: Any, fault: str) -> None:
    client, server = open_kind("openai")
    server.script("chat", fault)
    check(outcome(client, server), CHAT[fault])


def test_a_stream_of_anything_else_is_not_collected(open_kind: Any) -> None:
    """Comments keep a connection alive; what is no event must not fill the memory."""
    client, server = open_kind("openai")
    lines = (b"x" * 2**20,) * 20
    server.script("chat", Reply(lines=lines), Reply(lines=(b": " + b"x" * 2**20,) * 20))
    for _ in range(2):
        result = outcome(client, server)
        assert isinstance(result, errors.WrongForm) and "more than 16 MB" in str(result)


def test_pings_before_the_answer_are_no_body(open_kind: Any) -> None:
    client, server = open_kind("openai")
    server.script("chat", Reply(lines=(b": ping", b"", b": ping", b"")), "comments")
    check(outcome(client, server), (errors.IncompleteAnswer, "the stream ended early"))
    check(outcome(client, server), WHOLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", OPENAI_LIST)
def test_a_list_that_fails_is_a_sentence(open_kind: Any, kind: str, fault: str) -> None:
    client, server = open_kind(kind, timeouts=waits(fault))
    server.always("list", fault)
    for call in (client.list, lambda: client.find("anything")):
        with pytest.raises(errors.LLMError) as raised:
            call()
        check(raised.value, OPENAI_LIST[fault])


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_nonsense_has_no_models_without_a_name(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    server.always("list", "wrong_body")
    assert all(model.name for model in client.list())
    client.ps()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_is_gone_is_a_sentence(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    with server.refusing():
        check(outcome(client, server), (errors.ServerUnreachable, "Can't reach "))
        for call in (client.list, client.ps):
            if kind == "openai" and call == client.ps:
                continue  # it cannot say, and is not asked
            with pytest.raises(errors.ServerUnreachable) as raised:
                call()
            assert raised.value.refused
            check_sentence(raised.value)
    assert client.list()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_the_model_does_not_take(open_kind: Any, kind: str, red_image: str) -> None:
    client, server = open_kind(kind, [{"name": "blind"}])
    question: Any = [{"role": "user", "content": "What is it?", "images": [red_image]}]
    with pytest.raises(errors.NoVision, match=r'The model "blind" on the .* does not take images'):
        collect(client.chat("blind", question))
    assert len(server.of("chat")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_none(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind, [{"name": "seer", "vision": True}])
    question: Any = [{"role": "user", "content": "What is it?", "images": ["bm90aGluZw=="]}]
    with pytest.raises(errors.UnexpectedResponse) as raised:
        collect(client.chat("seer", question))
    assert raised.value.status == 400
    check_sentence(raised.value)
    assert len(server.of("chat")) == 1


@pytest.mark.parametrize("kind", ["router", "lmstudio", "llama-swap"])
def test_a_chat_whose_model_cannot_be_loaded(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind, [{"name": "broken", "exit_code": 1}])
    with pytest.raises(errors.LoadFailed, match='could not load "broken"') as raised:
        collect(client.chat("broken", QUESTION))
    check_sentence(raised.value)


def test_lm_studio_that_loads_nothing_by_itself(open_kind: Any) -> None:
    client, _ = open_kind("lmstudio", jit=False)
    with pytest.raises(errors.LoadFailed, match="No models loaded"):
        collect(client.chat("llama-3.2-3b-instruct", QUESTION))
    client.load("llama-3.2-3b-instruct")
    assert collect(client.chat("llama-3.2-3b-instruct", QUESTION)).text == WHOLE


def test_a_vllm_that_sleeps(open_kind: Any) -> None:
    client, server = open_kind("vllm", sleep_mode=True, entry={"unload": True})
    name = next(iter(server.models))
    assert client.unload(name).confirmed
    check(outcome(client, server), (errors.UnexpectedResponse, "The engine is sleeping"))
    client.load(name)
    check(outcome(client, server), WHOLE)


def test_the_wait_for_the_first_byte_can_be_longer(open_kind: Any) -> None:
    client, server = open_kind("openai", timeouts=SHORT, prompt_s=1.5)
    assert isinstance(outcome(client, server), errors.ServerTimeout)
    started = time.monotonic()
    check(outcome(client, server, timeout_s=20), WHOLE)
    assert time.monotonic() - started < 10
