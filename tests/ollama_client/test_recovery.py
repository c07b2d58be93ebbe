"""What passes by itself is asked again, what runs away is stopped, what overflows is said."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Result, Stage, TextJob
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import process
from image_refinery.llm import errors
from image_refinery.llm.retry import Retries
from image_refinery.memory import StageMemory, finish_pending_unloads
from image_refinery.ollama_client import OllamaClient, Server, Timeouts

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

HELLO = [{"role": "user", "content": "Hello"}]
QUICK = Retries(first_pause_s=0.02, start_s=0.3, limit_s=20.0)


class Listener(Watcher):
    """Remembers what it was told; `stop` is what it answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.told_at = 0.0
        self.pieces = ""
        self.stop: Callable[[], bool] = lambda: False

    def cancelled(self) -> bool:
        return self.stop()

    def waiting(self, reason: str, seconds: float) -> None:
        self.told.append((reason, seconds))
        self.told_at = time.monotonic()

    def token(self, index: int, piece: str) -> None:
        self.pieces += piece


def write(
    ollama: FaultyOllama,
    *,
    retries: Retries = QUICK,
    watcher: Watcher | None = None,
    settings: StageOptions | None = None,
    silence_s: float = 10.0,
    texts: tuple[str, ...] = ("a",),
    **options: Any,
) -> list[Result]:
    stage = Stage(model="llama3.2", options=options, settings=settings or StageOptions())
    job = TextJob(stage=stage, texts=texts, instructions=["Shorten it."])
    with OllamaClient(Server(url=ollama.url), Timeouts(silence_s=silence_s), retries) as client:
        return process(client, job, memory=StageMemory(), watcher=watcher)


def chats(ollama: FaultyOllama) -> int:
    return len(ollama.of("chat"))


@pytest.mark.parametrize("kind", ["tags", "load", "chat", "unload"])
@pytest.mark.parametrize("fault", ["busy", "drop", "reset"])
def test_what_passes_by_itself_is_asked_again(ollama: FaultyOllama, kind: str, fault: str) -> None:
    ollama.script(kind, fault)
    watcher = Listener()
    (outcome,) = write(ollama, watcher=watcher)
    assert outcome.answer
    assert len(ollama.of(kind)) == 2
    assert ollama.loaded == []
    if kind != "unload":  # what happens behind the answer is not worth a line on the node
        reason = "the server is busy" if fault == "busy" else "the connection broke"
        assert watcher.told == [(reason, 0.02)]


def test_tokens_that_were_shown_are_never_asked_for_again(ollama: FaultyOllama) -> None:
    for fault in ("reset_mid_stream", "cut_mid_stream", "no_done", "error_line"):
        ollama.script("chat", fault)
        watcher = Listener()
        before = chats(ollama)
        (outcome,) = write(ollama, watcher=watcher)
        assert isinstance(outcome.error, errors.IncompleteAnswer), fault
        assert watcher.pieces and not watcher.told
        assert chats(ollama) == before + 1


def test_thinking_counts_as_a_token(make_ollama: Any) -> None:
    from faulty_ollama import Reply

    ollama = make_ollama()
    ollama.script("chat", Reply(thinking="Well, the picture", ending="reset", after=2))
    (outcome,) = write(ollama)
    assert isinstance(outcome.error, errors.IncompleteAnswer)
    assert "after 0 characters" in str(outcome.error)
    assert chats(ollama) == 1


@pytest.mark.parametrize(
    ("fault", "tries", "kind"),
    [
        ("busy", 6, errors.ServerBusy),
        ("drop", 3, errors.ConnectionBroke),
        ("too_many_requests", 1, errors.ServerBusy),
        ("oom", 1, errors.OutOfMemory),
        ("not_found", 1, errors.ModelNotFound),
        ("bad_gateway", 1, errors.UnexpectedResponse),
    ],
)
def test_tries_are_counted(ollama: FaultyOllama, fault: str, tries: int, kind: type) -> None:
    ollama.always("chat", fault)
    (outcome,) = write(ollama)
    assert type(outcome.error) is kind
    assert chats(ollama) == tries


def test_time_is_bounded_too(ollama: FaultyOllama) -> None:
    ollama.always("chat", "busy")
    (outcome,) = write(ollama, retries=Retries(first_pause_s=0.2, limit_s=0.5, count=99))
    assert isinstance(outcome.error, errors.ServerBusy)
    assert chats(ollama) == 2, "0.2 s later, but not 0.4 s after that"


NOT_YET = "the server does not answer yet"


def test_a_server_that_starts_is_waited_for(ollama: FaultyOllama) -> None:
    class Starter(Listener):
        """Starts the server when it was asked in vain for the second time."""

        def waiting(self, reason: str, seconds: float) -> None:
            super().waiting(reason, seconds)
            if len(self.told) == 2:
                ollama.listen_again()

    ollama.stop_listening()
    watcher = Starter()
    (outcome,) = write(
        ollama, watcher=watcher, retries=Retries(first_pause_s=0.1, start_s=20.0, count=9)
    )
    assert outcome.answer
    assert [reason for reason, _ in watcher.told] == [NOT_YET, NOT_YET]


def test_a_server_that_restarts_during_a_run_is_waited_for_longer(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    missed = threading.Event()
    restarts: list[threading.Thread] = []

    class Witness(Listener):
        def waiting(self, reason: str, seconds: float) -> None:
            super().waiting(reason, seconds)
            if reason == NOT_YET:
                missed.set()

    def restart() -> None:
        ollama.stop_listening()
        missed.wait(20)  # until the client has found nobody there
        ollama.listen_again()

    def restarting(_: Any) -> Reply:
        restarts.append(threading.Thread(target=restart))
        restarts[0].start()
        return Reply(hang=True)

    ollama.script("chat", restarting)
    watcher = Witness()
    retries = Retries(first_pause_s=0.1, start_s=0.0, limit_s=20.0)
    (outcome,) = write(ollama, watcher=watcher, retries=retries)
    missed.set()
    restarts[0].join()
    assert outcome.answer
    assert NOT_YET in [reason for reason, _ in watcher.told]


def test_where_nothing_is_the_wait_is_short() -> None:
    watcher = Listener()
    job = TextJob(stage=Stage(model="m"), texts=["a"])
    begun = time.monotonic()
    with OllamaClient(Server(url="http://127.0.0.1:9")) as client:
        (outcome,) = process(client, job, memory=StageMemory(), watcher=watcher)
    assert isinstance(outcome.error, errors.ServerUnreachable)
    assert [seconds for _, seconds in watcher.told] == [0.5, 1.0]
    assert time.monotonic() - begun < 10.0


def test_a_name_that_does_not_resolve_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unknown(host: str, *_: Any) -> Any:  # a real resolver may be slow, or know every name
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    watcher = Listener()
    with OllamaClient(Server(url="http://no-such-host.invalid:11434")) as client:
        job = TextJob(stage=Stage(model="m"), texts=["a"])
        (outcome,) = process(client, job, watcher=watcher)
    assert isinstance(outcome.error, errors.ServerUnreachable)
    assert not outcome.error.refused and not watcher.told
    assert asked == ["no-such-host.invalid"]


def test_cancel_ends_the_wait(ollama: FaultyOllama) -> None:
    ollama.always("chat", "busy")
    watcher = Listener()
    watcher.stop = lambda: bool(watcher.told)  # pressed as soon as the wait is seen
    with pytest.raises(errors.Cancelled):
        write(ollama, watcher=watcher, retries=Retries(first_pause_s=10.0))
    assert time.monotonic() - watcher.told_at < 5.0
    finish_pending_unloads()
    assert ollama.loaded == []


def test_cancel_during_an_unload_leaves_it_to_a_thread(make_ollama: Any, end_unloads: Any) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model(unload_s=30.0)])
    watcher = Listener()
    watcher.stop = lambda: bool(ollama.of("unload"))
    begun = time.monotonic()
    (outcome,) = write(ollama, watcher=watcher)
    assert outcome.answer, "what was written is not thrown away"
    assert time.monotonic() - begun < 7, "nobody waits 15 s for the unload"
    assert ollama.loaded == ["llama3.2:latest"]
    end_unloads(ollama)
    finish_pending_unloads()
    assert ollama.loaded == []


class Manager(SimpleNamespace):
    """comfy.model_management with one model of 3 GB and plenty of free memory beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.models = [SimpleNamespace(loaded_size=lambda: 3 * 10**9)]

    def loaded_models(self) -> list[Any]:
        return self.models

    def unload_all_models(self) -> None:
        self.models = []

    def soft_empty_cache(self) -> None:
        pass

    def get_torch_device(self) -> str:
        return "cuda:0"

    def get_free_memory(self, device: str) -> int:
        return 10**12


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    fake = Manager()
    monkeypatch.setitem(sys.modules, "comfy.model_management", fake)
    return fake


@pytest.mark.parametrize("kind", ["load", "chat"])
@pytest.mark.parametrize("fault", ["oom", "oom_old", "oom_runtime"])
def test_out_of_memory_frees_comfyui_once_and_tries_again(
    ollama: FaultyOllama, manager: Manager, kind: str, fault: str
) -> None:
    ollama.script(kind, fault)
    when_needed = StageOptions(free_memory="when needed")
    (outcome,) = write(ollama, settings=when_needed)
    assert outcome.answer
    assert manager.models == []
    assert len(ollama.of(kind)) == 2


def test_out_of_memory_twice_is_said(ollama: FaultyOllama, manager: Manager) -> None:
    ollama.always("chat", "oom")
    outcomes = write(
        ollama, settings=StageOptions(free_memory="when needed"), texts=("a", "b", "c")
    )
    assert {type(outcome.error) for outcome in outcomes} == {errors.OutOfMemory}
    assert "not have enough memory" in str(outcomes[0].error)
    assert chats(ollama) == 2


def test_who_wants_nothing_freed_keeps_it(ollama: FaultyOllama, manager: Manager) -> None:
    ollama.script("chat", "oom")
    (outcome,) = write(ollama, settings=StageOptions(free_memory="never"))
    assert isinstance(outcome.error, errors.OutOfMemory)
    assert len(manager.models) == 1 and chats(ollama) == 1


def test_every_answer_has_an_end(ollama: FaultyOllama) -> None:
    write(ollama)
    assert {r.options["num_predict"] for r in ollama.of("load", "chat")} == {1024}


def test_a_phrase_again_and_again_is_an_incomplete_answer(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    endless = ("A ball. ", *(["blue,", " blue-ish, "] * 5000))
    ollama.script("chat", Reply(tokens=endless, ending="hang"))
    watcher = Listener()
    (outcome,) = write(ollama, watcher=watcher, num_predict=20_000)
    assert isinstance(outcome.error, errors.IncompleteAnswer)
    assert "it repeats itself" in str(outcome.error)
    assert len(watcher.pieces) < 3000
    (chat,) = ollama.of("chat")
    assert ollama.wait_until(lambda: chat.client_closed, 20), "the server was told to stop"


def test_thinking_in_circles_is_noticed_too(ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    ollama.script("chat", Reply(thinking="Wait. Let me see. " * 1000))
    (outcome,) = write(ollama, num_predict=20_000)
    assert isinstance(outcome.error, errors.IncompleteAnswer)
    assert "it repeats itself" in str(outcome.error)


@pytest.mark.parametrize("given", [{"num_predict": 50}, {"num_predict": -1, "num_ctx": 50}])
def test_a_server_that_ignores_num_predict_is_cut_off(
    ollama: FaultyOllama, given: dict[str, int]
) -> None:
    from faulty_ollama import Reply

    endless = tuple(
        b'{"message":{"role":"assistant","content":"word%d "},"done":false}' % n
        for n in range(5000)
    )
    ollama.script("chat", Reply(lines=endless))
    (outcome,) = write(ollama, **given)
    assert outcome.answer
    assert outcome.answer.done_reason == "length" and "num_predict" in outcome.answer.remark
    assert 50 <= len(outcome.text.split()) <= 50 + 65


def test_a_full_context_is_said_and_the_answer_kept(
    ollama: FaultyOllama, caplog: pytest.LogCaptureFixture
) -> None:
    from faulty_ollama import Reply

    full = {"prompt_eval_count": 4090}
    long = {"prompt_eval_count": 3900, "eval_count": 196}
    ollama.script("chat", Reply(done_fields=full), Reply(done_fields=long, done_reason="length"))
    with caplog.at_level(logging.WARNING):
        outcomes = write(ollama, texts=("a", "b", "c"), num_ctx=4096)
    assert [o.answer and o.answer.context_full for o in outcomes] == [True, True, False]
    assert all(o.text for o in outcomes)
    assert [record.getMessage() for record in caplog.records] == [
        f"llama3.2:latest, answer {n}: The context was full: part of the request, or the end "
        "of the answer, is missing."
        for n in (1, 2)
    ]


def test_an_answer_cut_at_num_predict_says_so(ollama: FaultyOllama) -> None:
    (outcome,) = write(ollama, num_predict=3)
    assert outcome.answer
    assert outcome.text == "A crimson disc"
    assert outcome.answer.remark == "The answer was cut at num_predict."


@pytest.mark.parametrize("fault", ["hang", "hang_between_tokens", "hang_mid_line"])
def test_silence_is_bounded_and_timeout_s_is_the_first_bytes(
    ollama: FaultyOllama, fault: str
) -> None:
    ollama.script("chat", fault)
    begun = time.monotonic()
    (outcome,) = write(ollama, settings=StageOptions(timeout_s=0.3), silence_s=0.4)
    wanted = errors.ServerTimeout if fault == "hang" else errors.IncompleteAnswer
    assert type(outcome.error) is wanted
    assert "sent nothing for" in str(outcome.error)
    assert time.monotonic() - begun < 20.0
