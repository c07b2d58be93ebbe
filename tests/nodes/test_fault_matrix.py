"""Every fault of a server, in every node that talks to one, with both values of on_error.

tools/fault_matrix.py runs this file and prints it as a table; docs/quality/faults.md is that table.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from image_refinery.llm import errors
from image_refinery.llm.http import Http
from image_refinery.llm.retry import Retries
from image_refinery.ollama_client import OllamaClient, Timeouts

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama
    from image_refinery.llm.servers import Server

FULL = bool(os.environ.get("FULL_FAULT_MATRIX"))
"""All combinations; else each fault meets each node, with one value of on_error in turn."""
BOUND_S = 30.0
"""No run may take longer; those that time out wait for less than 1 s in each place."""
SHORT_S, LONG_S = 0.4, 60.0
"""How long to wait for what hangs, and for all else, which a slow machine must not run into."""
FDS = Path("/proc/self/fd")
SEEN, WRITTEN = "A red circle on a white background.", "A crimson disc floats on snow."


class Case(NamedTuple):
    """A fault at one kind of request, and the error it must become; None: a good answer."""

    kind: str
    fault: str
    error: type[errors.LLMError] | None = None
    words: str = ""
    answer: str = ""

    @property
    def id(self) -> str:
        return f"{self.kind} {self.fault}"


BROKE_OFF, BROKE = "broke off after", "The connection to Ollama"
FORMS = "This is not what Ollama answers"

CHAT = [
    Case("chat", "hang", errors.ServerTimeout, "sent nothing for"),
    Case("chat", "hang_mid_line", errors.IncompleteAnswer, "sent nothing for"),
    Case("chat", "hang_between_tokens", errors.IncompleteAnswer, "sent nothing for"),
    Case("chat", "drop", errors.ConnectionBroke, BROKE),
    Case("chat", "reset", errors.ConnectionBroke, BROKE),
    Case("chat", "reset_mid_stream", errors.IncompleteAnswer, BROKE_OFF),
    Case("chat", "cut_mid_stream", errors.IncompleteAnswer, BROKE_OFF),
    Case("chat", "half_utf8", errors.IncompleteAnswer, BROKE_OFF),
    Case("chat", "error_line", errors.IncompleteAnswer, "an error was encountered"),
    Case("chat", "oom_line", errors.IncompleteAnswer, "does not have enough memory"),
    Case("chat", "no_done", errors.IncompleteAnswer, "the stream ended early"),
    Case("chat", "no_line", errors.IncompleteAnswer, "after 0 characters"),
    Case("chat", "empty", errors.EmptyAnswer, "Empty response from model"),
    Case("chat", "empty_length", errors.EmptyAnswer, "num_predict was used up"),
    Case("chat", "thinking_only", errors.EmptyAnswer, "used up num_predict for thinking"),
    Case("chat", "cut_short"),
    Case("chat", "no_counts"),
    Case("chat", "no_done_reason"),
    Case("chat", "one_byte"),
    Case("chat", "gzip"),
    Case("chat", "big_line", errors.WrongForm, "more than 16 MB"),
    Case("chat", "endless_line", errors.WrongForm, "more than 16 MB"),
    Case("chat", "line_separators", answer="three\u2028four\u2029"),
    Case("chat", "not_json", errors.WrongForm, FORMS),
    Case("chat", "duplicate_keys", answer="second"),
    Case("chat", "half_characters", answer="A \U0001f600 and"),
    Case("chat", "wrong_types", errors.WrongForm, FORMS),
    Case("chat", "wrong_body", errors.IncompleteAnswer, "the stream ended early"),
    Case("chat", "wrong_list", errors.WrongForm, FORMS),
    Case("chat", "bad_request", errors.UnexpectedResponse, "400 Bad Request"),
    Case("chat", "context_length", errors.ContextTooLong, "Raise num_ctx"),
    Case("chat", "context_length_old", errors.ContextTooLong, "Raise num_ctx"),
    Case("chat", "signin", errors.AccessDenied, "ollama signin"),
    Case("chat", "forbidden", errors.AccessDenied, "OLLAMA_ORIGINS"),
    Case("chat", "cloud_disabled", errors.AccessDenied, "cloud is disabled"),
    Case("chat", "not_found", errors.ModelNotFound, "ollama pull"),
    Case("chat", "not_found_old", errors.ModelNotFound, "ollama pull"),
    Case("chat", "too_many_requests", errors.ServerBusy, "too busy"),
    Case("chat", "client_gone", errors.UnexpectedResponse, "context canceled"),
    Case("chat", "oom_old", errors.OutOfMemory, "does not have enough memory"),
    Case("chat", "oom", errors.OutOfMemory, "does not have enough memory"),
    Case("chat", "oom_runtime", errors.OutOfMemory, "does not have enough memory"),
    Case("chat", "load_failure", errors.UnexpectedResponse, "error loading model"),
    Case("chat", "load_timeout", errors.UnexpectedResponse, "timed out waiting"),
    Case("chat", "wrong_option", errors.UnexpectedResponse, "must be of type integer"),
    Case("chat", "bad_gateway", errors.UnexpectedResponse, "502 Bad Gateway"),
    Case("chat", "busy", errors.ServerBusy, "too busy"),
    Case("chat", "proxy_page", errors.UnexpectedResponse, "502 Bad Gateway"),
    Case("chat", "html", errors.WrongForm, FORMS),
]
LOAD = [
    Case("load", "hang", errors.ServerTimeout, "while loading"),
    Case("load", "drop", errors.ConnectionBroke, BROKE),
    Case("load", "reset", errors.ConnectionBroke, BROKE),
    Case("load", "busy", errors.ServerBusy, "too busy"),
    Case("load", "oom_old", errors.OutOfMemory, "does not have enough memory"),
    Case("load", "oom", errors.OutOfMemory, "does not have enough memory"),
    Case("load", "load_failure", errors.UnexpectedResponse, "error loading model"),
    Case("load", "load_timeout", errors.UnexpectedResponse, "timed out waiting"),
    Case("load", "not_found", errors.ModelNotFound, "ollama pull"),
    Case("load", "signin", errors.AccessDenied, "ollama signin"),
    Case("load", "wrong_list", errors.WrongForm, FORMS),
    Case("load", "html", errors.WrongForm, FORMS),
    Case("load", "proxy_page", errors.UnexpectedResponse, "502 Bad Gateway"),
    Case("load", "one_byte"),
    Case("load", "gzip"),
]
TAGS = [
    Case("tags", "hang", errors.ServerTimeout, "while answering /api/tags"),
    Case("tags", "hang_mid_line", errors.ServerTimeout, "while answering /api/tags"),
    Case("tags", "cut_mid_stream", errors.ConnectionBroke, BROKE),
    Case("tags", "drop", errors.ConnectionBroke, BROKE),
    Case("tags", "reset", errors.ConnectionBroke, BROKE),
    Case("tags", "busy", errors.ServerBusy, "too busy"),
    Case("tags", "not_json", errors.WrongForm, FORMS),
    Case("tags", "wrong_list", errors.WrongForm, FORMS),
    Case("tags", "wrong_body", errors.ModelNotFound, "ollama pull"),
    Case("tags", "html", errors.WrongForm, FORMS),
    Case("tags", "proxy_page", errors.UnexpectedResponse, "502 Bad Gateway"),
    Case("tags", "bad_gateway", errors.UnexpectedResponse, "502 Bad Gateway"),
    Case("tags", "forbidden", errors.AccessDenied, "OLLAMA_ORIGINS"),
    Case("tags", "signin", errors.AccessDenied, "ollama signin"),
    Case("tags", "endless_line", errors.WrongForm, "more than 16 MB"),
    Case("tags", "one_byte"),
    Case("tags", "gzip"),
]
SHOW = [
    Case("show", "hang", errors.ServerTimeout, "while answering /api/show"),
    Case("show", "drop", errors.ConnectionBroke, BROKE),
    Case("show", "not_found", errors.ModelNotFound, "ollama pull"),
    Case("show", "html", errors.WrongForm, FORMS),
    Case("show", "wrong_list", errors.WrongForm, FORMS),
]
"""Servers before 0.30 are asked one model at a time what it can do."""
AFTER = [
    Case(kind, fault)
    for kind in ("ps", "unload")
    for fault in ("hang", "drop", "reset", "busy", "wrong_list", "html", "forbidden", "not_found")
]
"""The answers are there: what goes wrong now is a line in the log."""
SPECIAL = [
    Case("server", "refused", errors.ServerUnreachable, "ollama serve"),
    Case("server", "model_vanished", errors.ModelNotFound, "ollama pull"),
    Case("server", "never_unloads"),
    Case("server", "restarts_once"),
]
CASES = [*CHAT, *LOAD, *TAGS, *SHOW, *AFTER, *SPECIAL]
ON_ERROR = ("output error text", "stop the workflow")
NODES = ("LLM Image Refine", "LLM Describe", "Ollama Process")


def _combinations() -> Iterator[Any]:
    for number, case in enumerate(CASES):
        for place, node in enumerate(NODES):
            for which, on_error in enumerate(ON_ERROR):
                if FULL or (number + place) % 2 == which:
                    name = f"{case.id}-{node}-{('give', 'stop')[which]}"
                    yield pytest.param(case, node, on_error, id=name)


def _timeouts(**fields: float) -> Timeouts:
    usual = {"first_byte_s": LONG_S, "silence_s": LONG_S, "quick_s": LONG_S}
    return Timeouts(connect_s=0.5, **(usual | fields))


class _Hurried(OllamaClient):
    """Waits for `SHORT_S` where the case hangs and for `LONG_S` everywhere else.

    Where one limit held for all requests, a machine that paused in the work before the one that
    hangs got another error.
    """

    def __init__(self, *args: Any, hangs: Case | None, **fields: Any) -> None:
        super().__init__(*args, **fields)
        if hangs is not None:
            self._http = _HurriedHttp(self.server, self.timeouts, hangs)


class _HurriedHttp(Http):
    def __init__(self, server: Server, timeouts: Timeouts, case: Case) -> None:
        from faulty_ollama import FAULTS

        super().__init__(server, timeouts)
        self._kind = case.kind
        short = {"silence_s": SHORT_S, "quick_s": SHORT_S}
        if FAULTS[case.fault].hang:  # the others send a part first, and must get to it
            short["first_byte_s"] = SHORT_S
        self._short, self._long = _timeouts(**short), timeouts

    def get(self, path: str, *rest: Any) -> Any:
        self._choose(path, None)
        return super().get(path, *rest)

    def post(self, path: str, body: Any, *rest: Any) -> Any:
        self._choose(path, body)
        return super().post(path, body, *rest)

    def stream(self, path: str, body: Any, **rest: Any) -> Any:
        self._choose(path, body)
        return super().stream(path, body, **rest)

    def _choose(self, path: str, body: Any) -> None:
        from faulty_ollama import kind_of

        hangs = kind_of("", path, body) == self._kind
        self.timeouts = self._short if hangs else self._long


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a node by its display name with an image; short waits; temporary files in tmp_path."""
    from image_refinery.nodes.llm_describe import LLMDescribe
    from image_refinery.nodes.llm_image_refine import LLMImageRefine
    from image_refinery.nodes.ollama_process import OllamaProcess

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # 15 s are right for a driver; here they would be waited for in vain.
    monkeypatch.setitem(OllamaClient.unload.__kwdefaults__, "limit_s", 0.3)
    texts = {"user_instructions": ["Shorten it."], "instructions": ["Shorten it."], "text": ["A."]}
    models = {"vision_model": ["llava"], "text_model": ["llama3.2"]}
    nodes: dict[str, tuple[Any, tuple[str, ...]]] = {
        "LLM Image Refine": (
            LLMImageRefine,
            ("vision_model", "text_model", "user_instructions"),
        ),
        "LLM Describe": (LLMDescribe, ("vision_model",)),
        "Ollama Process": (OllamaProcess, ("text_model", "instructions", "text")),
    }

    def run(name: str, on_error: str, picture: Any, *, hangs: Case | None = None) -> list[str]:
        retries = Retries(first_pause_s=0.01, start_s=0.1, limit_s=30.0)
        client = partial(_Hurried, hangs=hangs, timeouts=_timeouts(), retries=retries)
        monkeypatch.setattr("image_refinery.ollama_client.OllamaClient", client)
        node, wanted = nodes[name]
        inputs = {key: value for key, value in (texts | models).items() if key in wanted}
        if name == "Ollama Process":
            return list(node.execute(on_error=[on_error], **inputs).result[0])
        images, *results = node.execute(image=[picture], on_error=[on_error], **inputs).result
        assert images[0] is picture
        return [result[0] for result in results]

    return run


@pytest.fixture(autouse=True)
def nothing_is_left(ollama: FaultyOllama, tmp_path: Path) -> Iterator[None]:
    """No thread, socket, file descriptor or temporary file survives a run."""
    threads = set(threading.enumerate())
    descriptors = len(os.listdir(FDS)) if FDS.is_dir() else 0
    yield
    ours = [t.name for t in _settled(lambda: _threads_but(threads, "faulty-ollama"))]
    assert ours == []
    assert not _settled(lambda: set(ollama._sockets)), "a connection is still open"
    if FDS.is_dir():
        assert _settled(lambda: range(len(os.listdir(FDS)) - descriptors)) == range(0)
    assert list(tmp_path.iterdir()) == []


def _threads_but(known: set[threading.Thread], name: str) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t not in known and t.name != name]


def _settled(look: Callable[[], Any], limit_s: float = 20.0) -> Any:
    """What `look` gives once it is empty, or when the time is up."""
    deadline = time.monotonic() + limit_s
    while (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def _prepare(ollama: FaultyOllama, case: Case) -> None:
    from dataclasses import replace

    if case.kind == "show":
        ollama.version = "0.20.0"
    if case.kind != "server":
        ollama.always(case.kind, case.fault)  # type: ignore[arg-type]
    elif case.fault == "refused":
        ollama.stop_listening()
    elif case.fault == "restarts_once":
        ollama.script("chat", "reset")
    else:
        change = {"model_vanished": {"vanished": True}, "never_unloads": {"never_unloads": True}}
        for key, model in list(ollama.models.items()):
            ollama.models[key] = replace(model, **change[case.fault])


@pytest.mark.usefixtures("nothing_is_kept")  # the next run asks again
@pytest.mark.parametrize(("case", "node", "on_error"), list(_combinations()))
def test_fault(
    ollama: FaultyOllama,
    ask: Callable[..., list[str]],
    case: Case,
    node: str,
    on_error: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    from image_refinery.ollama_client import client as client_module

    monkeypatch.setattr(client_module, "_known_by_digest", {})  # what /api/show once said
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    picture = torch.rand(1, 48, 64, 3)
    before = picture.clone()
    models = dict(ollama.models)
    _prepare(ollama, case)
    stops = on_error == ON_ERROR[1]
    hangs = case if "hang" in case.fault else None
    begun = time.monotonic()
    if case.error is not None and stops:
        with pytest.raises(case.error) as caught:
            ask(node, on_error, picture, hangs=hangs)
        assert type(caught.value) is case.error
        said = [str(caught.value)]
    else:
        said = ask(node, on_error, picture, hangs=hangs)
    assert time.monotonic() - begun < BOUND_S
    assert torch.equal(picture, before)
    if case.error is not None:
        for text in said:
            assert text.startswith("Error: ") is not stops
            assert case.words in text and "\n" not in text and "Traceback" not in text
        record_property("said", said[0].replace(ollama.url, "http://127.0.0.1:11434"))
    else:
        good = {"LLM Image Refine": [SEEN, WRITTEN], "LLM Describe": [SEEN]}.get(node, [WRITTEN])
        assert all(case.answer in text for text in said) if case.answer else said == good
    _check_models_are_gone(ollama, case)
    ollama.forget_script()
    ollama.models = models
    if case.fault == "refused":
        ollama.listen_again()
    if case.fault == "never_unloads":
        ollama._residents.clear()
    assert ask(node, "stop the workflow", picture)[-1] in (SEEN, WRITTEN), "the next run works"


def _check_models_are_gone(ollama: FaultyOllama, case: Case) -> None:
    if case.kind == "unload" or case.fault == "never_unloads":
        # It cannot be unloaded, so it must not stay for longer than a run needs between requests.
        lives = {r.body.get("keep_alive") for r in ollama.of("load", "chat")}
        assert lives == {300}
    else:
        assert ollama.wait_until(lambda: ollama.loaded == [])


def test_the_matrix_holds_every_fault_there_is() -> None:
    from faulty_ollama import FAULTS

    assert {case.fault for case in CHAT} == set(FAULTS)
