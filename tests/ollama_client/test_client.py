"""The client against a real socket: requests, answers, errors, cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.llm import errors
from image_refinery.llm.backend import think_value
from image_refinery.llm.servers import parse_login
from image_refinery.ollama_client import OllamaClient, Server, Timeouts, collect

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

HELLO = [{"role": "user", "content": "Hello"}]


def client_of(ollama: FaultyOllama, **timeouts: float) -> OllamaClient:
    return OllamaClient(Server(url=ollama.url), Timeouts(**timeouts))


def ask(client: OllamaClient, model: str = "llama3.2", **fields: Any) -> Any:
    return collect(client.chat(model, HELLO, **fields))


def test_an_answer_carries_text_counts_and_durations(ollama: FaultyOllama) -> None:
    pieces: list[str] = []
    with client_of(ollama) as client:
        answer = collect(client.chat("llama3.2", HELLO), pieces.append)
    assert answer.text == "A crimson disc floats on snow."
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text
    assert answer.done_reason == "stop"
    assert answer.answer_tokens == 6
    assert answer.prompt_tokens is not None and answer.prompt_tokens > 0
    assert answer.total_s is not None and 0 < answer.total_s < 10


def test_only_what_was_asked_for_is_sent(ollama: FaultyOllama) -> None:
    with client_of(ollama) as client:
        ask(client, options={"seed": 1}, keep_alive=0)
    (chat,) = [request for request in ollama.requests if request.kind == "chat"]
    assert chat.body == {
        "model": "llama3.2",
        "messages": HELLO,
        "stream": True,
        "options": {"seed": 1},
        "keep_alive": 0,
    }


def test_one_connection_serves_many_calls(ollama: FaultyOllama) -> None:
    with client_of(ollama) as client:
        for _ in range(3):
            client.version()
            ask(client)
    assert len({request.connection for request in ollama.requests}) == 1


@pytest.mark.parametrize("version", ["0.6.4", "0.12.0", "0.20.0", "0.33.0"])
def test_capabilities_are_known_on_every_release(
    make_ollama: Callable[..., FaultyOllama], version: str
) -> None:
    ollama = make_ollama(version=version)
    with client_of(ollama) as client:
        assert not client.find("llava").lacks("vision")
        assert client.find("llama3.2:latest").lacks("vision")
        client.find("llava")
    shows = [request for request in ollama.requests if request.kind == "show"]
    assert len(shows) <= 2, "one look at each digest is enough for the life of the process"


def test_a_missing_model_is_named(ollama: FaultyOllama) -> None:
    with client_of(ollama) as client:
        with pytest.raises(errors.ModelNotFound, match=r'"qwen3-vl:8b" is not installed'):
            client.find("qwen3-vl:8b")
        with pytest.raises(errors.ModelNotFound, match=r'"gone" is not installed'):
            ask(client, "gone")


def test_load_and_confirmed_unload(make_ollama: Callable[..., FaultyOllama]) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model(load_s=0.05, unload_s=0.3)])
    with client_of(ollama) as client:
        client.load("llama3.2", options={"num_ctx": 8192})
        (loaded,) = client.ps()
        assert (loaded.name, loaded.context_length) == ("llama3.2:latest", 8192)
        unloaded = client.unload("llama3.2")
        assert unloaded.confirmed
        assert unloaded.vram_bytes == loaded.vram_bytes > 0
        assert client.ps() == []
        assert client.unload("llama3.2").vram_bytes == 0, "the second call finds nothing"
    assert ollama.unloads == {"llama3.2:latest": 1}


def test_an_unload_that_never_shows_is_reported(make_ollama: Callable[..., FaultyOllama]) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model(never_unloads=True)])
    with client_of(ollama) as client:
        client.load("llama3.2")
        assert not client.unload("llama3.2", limit_s=0.3).confirmed


FAULTS = [
    ("drop", errors.ConnectionBroke, "broke"),
    ("reset", errors.ConnectionBroke, "broke"),
    ("reset_mid_stream", errors.IncompleteAnswer, "broke off after"),
    ("cut_mid_stream", errors.IncompleteAnswer, "broke off after"),
    ("half_utf8", errors.IncompleteAnswer, "broke off after"),
    ("error_line", errors.IncompleteAnswer, "an error was encountered while running"),
    ("no_done", errors.IncompleteAnswer, "repeats itself"),
    ("no_line", errors.IncompleteAnswer, "after 0 characters"),
    ("empty", errors.EmptyAnswer, r"Empty response from model .*done_reason: stop"),
    ("empty_length", errors.EmptyAnswer, "num_predict was used up"),
    ("thinking_only", errors.EmptyAnswer, "used up num_predict for thinking"),
    ("endless_line", errors.WrongForm, "more than 16 MB"),
    ("not_json", errors.WrongForm, "answered"),
    ("wrong_types", errors.WrongForm, "answered"),
    ("bad_request", errors.UnexpectedResponse, "400 Bad Request"),
    ("context_length", errors.ContextTooLong, "context"),
    ("context_length_old", errors.ContextTooLong, "context"),
    ("signin", errors.AccessDenied, "401 Unauthorized"),
    ("forbidden", errors.AccessDenied, "403 Forbidden"),
    ("cloud_disabled", errors.AccessDenied, "ollama cloud is disabled"),
    ("not_found", errors.ModelNotFound, "llama3.2"),
    ("not_found_old", errors.ModelNotFound, "llama3.2"),
    ("too_many_requests", errors.ServerBusy, "too busy"),
    ("oom_old", errors.OutOfMemory, "12.5 GiB"),
    ("oom", errors.OutOfMemory, "not have enough memory"),
    ("oom_runtime", errors.OutOfMemory, "not have enough memory"),
    ("load_failure", errors.UnexpectedResponse, "error loading model"),
    ("load_timeout", errors.UnexpectedResponse, "timed out waiting"),
    ("wrong_option", errors.UnexpectedResponse, "num_ctx"),
    ("bad_gateway", errors.UnexpectedResponse, "502 Bad Gateway"),
    ("busy", errors.ServerBusy, "maximum pending requests"),
    ("proxy_page", errors.UnexpectedResponse, "502 Bad Gateway"),
    ("html", errors.WrongForm, "answered"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), FAULTS, ids=[row[0] for row in FAULTS])
def test_each_fault_is_one_sentence_of_its_class(
    ollama: FaultyOllama, fault: str, kind: type[errors.LLMError], words: str
) -> None:
    ollama.script("chat", fault)
    with client_of(ollama) as client:
        with pytest.raises(kind, match=words) as caught:
            ask(client)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        assert ollama.url in str(caught.value)
        assert ask(client).text, "the next call works"


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("one_byte", "A crimson disc floats on snow."),
        ("gzip", "A crimson disc floats on snow."),
        ("no_counts", "A crimson disc floats on snow."),
        ("no_done_reason", "A crimson disc floats on snow."),
        ("line_separators", "one\u0085two three\u2028four\u2029 five\x0b\x0c\x1csix"),
        ("duplicate_keys", "second"),
        ("half_characters", "A \U0001f600 and \ufffd alone"),
    ],
)
def test_odd_but_whole_answers_are_answers(ollama: FaultyOllama, fault: str, text: str) -> None:
    ollama.script("chat", fault)
    with client_of(ollama) as client:
        answer = ask(client)
    assert answer.text == text
    if fault == "no_counts":
        assert answer.answer_tokens is None and answer.total_s is None


def test_thinking_is_kept_apart(make_ollama: Callable[..., FaultyOllama]) -> None:
    from faulty_ollama import thinking_model

    for fields in ({}, {"thinking_template": False}):
        ollama = make_ollama([thinking_model(**fields)])
        with client_of(ollama) as client:
            answer = ask(client, "qwen3", think=True)
        assert answer.text == "It is a test."
        assert answer.thinking == "Let me see."


def test_think_is_sent_only_to_models_that_can(make_ollama: Callable[..., FaultyOllama]) -> None:
    from faulty_ollama import text_model, thinking_model

    ollama = make_ollama([thinking_model(), text_model()])
    with client_of(ollama) as client:
        thinks, plain = client.find("qwen3"), client.find("llama3.2")
        assert think_value(thinks, False, client.server) is False
        assert think_value(thinks, "high", client.server) == "high"
        assert think_value(plain, False, client.server) is None
        with pytest.raises(errors.NoThinking, match=r'"llama3\.2:latest" on the Ollama server'):
            think_value(plain, True, client.server)


def test_refused_at_once_where_nothing_listens() -> None:
    with OllamaClient(Server(url="http://127.0.0.1:9")) as client:
        started = time.monotonic()
        with pytest.raises(errors.ServerUnreachable, match="Can't reach Ollama at"):
            client.version()
        assert time.monotonic() - started < 2.5


def test_a_silent_server_times_out(ollama: FaultyOllama) -> None:
    # A short limit for the silence that it is about only: a slow machine needs time elsewhere.
    ollama.always("chat", "hang")
    with client_of(ollama, first_byte_s=0.3, connect_s=0.2) as client:
        with pytest.raises(errors.ServerTimeout, match=r'loading or running "llama3\.2"'):
            ask(client)
        ollama.forget_script()
        assert ask(client, timeout_s=30).text
    ollama.always("chat", "hang_between_tokens")
    with client_of(ollama, first_byte_s=30, silence_s=0.3) as client:
        with pytest.raises(errors.IncompleteAnswer, match=r"sent nothing for 0\.3 s"):
            ask(client)
        ollama.forget_script()
        assert ask(client, timeout_s=30).text


def test_tokens_before_a_pause_are_handed_on_while_it_lasts(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    words = tuple(f"word{number} " for number in range(20))
    ollama.script("chat", Reply(tokens=words, token_s=0.005, ending="hang", after=20))
    pieces: list[str] = []
    begun = time.monotonic()
    # Who hands on a word only after the pause is not cancelled, but ends with IncompleteAnswer.
    with client_of(ollama, silence_s=30.0) as client, pytest.raises(errors.Cancelled):
        collect(
            client.chat("llama3.2", HELLO, cancelled=lambda: len(pieces) == len(words)),
            pieces.append,
        )
    assert pieces == list(words)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("phase", ["load", "prompt", "tokens"])
def test_cancel_closes_the_connection_at_once(
    make_ollama: Callable[..., FaultyOllama], phase: str
) -> None:
    from faulty_ollama import Reply, text_model

    slow = {"load": {"load_s": 30.0}, "prompt": {"prompt_s": 30.0}, "tokens": {"token_s": 0.35}}
    ollama = make_ollama([text_model(answer=" ".join(f"word{n}" for n in range(300)))])
    ollama.script("chat", Reply(**slow[phase]))
    asked: list[float] = []

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 6 and bool(ollama.of("chat"))

    with client_of(ollama) as client:
        with pytest.raises(errors.Cancelled):
            ask(client, cancelled=cancelled)
        ended = time.monotonic()
        assert ended - asked[0] < 10, "the phase would last for 30 s or more"
        # A pause of the machine lengthens some gaps, but not all.
        gaps = sorted(later - sooner for sooner, later in pairwise(asked))
        assert gaps[len(gaps) // 4] < 0.15, "polled at least every 0.1 s, give or take"
        (request,) = ollama.of("chat")
        assert ollama.wait_until(lambda: request.client_closed, 10)
        assert request.closed_at is not None and request.closed_at - ended < 5
        assert ask(client).text, "the next call works"
    deadline = time.monotonic() + 20.0  # a busy machine takes its time
    while (left := _http_threads()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def _http_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "image-refinery-http"]


def test_closing_the_generator_closes_the_connection(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    words = " ".join(f"word{number}" for number in range(600))
    ollama.script("chat", Reply(text=words, token_s=0.05))
    with client_of(ollama) as client:
        tokens = client.chat("llama3.2", HELLO)
        next(tokens)
        tokens.close()
        first = ollama.of("chat")[0]
        assert ollama.wait_until(lambda: first.client_closed, 20), "the answer would last 30 s"
    assert ollama.of("chat") == [first]


def test_a_proxy_never_serves_this_machine(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with client_of(ollama) as client:
        assert client.version()


def test_no_connection_stays_open_after_the_block(ollama: FaultyOllama) -> None:
    with client_of(ollama) as client:
        client.version()
        assert ollama._sockets, "it is kept for the next request"
    assert ollama.wait_until(lambda: not ollama._sockets)


def test_a_key_goes_to_loopback_or_https_only(
    ollama: FaultyOllama, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(url=ollama.url, api_key="very-secret")
    with OllamaClient(server) as client:
        client.version()
    assert ollama.requests[-1].headers["authorization"] == "Bearer very-secret"
    assert "very-secret" not in repr(server) + caplog.text
    assert not Server(url="http://gpu-box:11434", api_key="x").may_send_key
    assert Server(url="https://gpu-box:443", api_key="x").may_send_key


def test_a_login_in_the_address_is_used_and_never_shown(ollama: FaultyOllama) -> None:
    address = ollama.url.replace("http://", "http://me:hidden@")
    server = Server(url=ollama.url, login=parse_login(address))
    ollama.script("chat", "bad_request")
    with OllamaClient(server) as client, pytest.raises(errors.UnexpectedResponse) as caught:
        ask(client)
    assert ollama.requests[-1].headers["authorization"].startswith("Basic ")
    assert "hidden" not in str(caught.value) + repr(server)


def test_a_redirect_is_not_followed(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    ollama.script("version", Reply(status=301, headers={"Location": "https://elsewhere/api"}))
    told = pytest.raises(errors.Redirected, match="https://elsewhere/api")
    with client_of(ollama) as client, told:
        client.version()


def test_pull_reports_bytes_and_errors(make_ollama: Callable[..., FaultyOllama]) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model()])
    with client_of(ollama) as client:
        steps = list(client.pull("llama3.2"))
        assert steps[-1].status == "success"
        assert any(0 < step.completed_bytes <= step.total_bytes for step in steps)
        with pytest.raises(errors.NotInLibrary, match='no model "nothing"'):
            list(client.pull("nothing"))
