"""Servers that speak another API, or a part of Ollama's: what the message says."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from faulty_ollama import Reply, text_model, vision_model
from image_refinery.__main__ import main
from image_refinery.llm.errors import EndpointMissing, LLMError, ModelNotFound
from image_refinery.llm.servers import Server
from image_refinery.ollama_client import OllamaClient, collect
from image_refinery.ollama_client import client as client_module
from image_refinery.ollama_client.client import UNLOAD_TIMEOUT_S

Answer = tuple[int, Any]
MODELS = {"object": "list", "data": [{"id": "qwen", "object": "model"}]}
LLAMA_CPP = {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}
LM_STUDIO = {"error": "Unexpected endpoint or method. (POST /api/chat)"}
SERVERS: dict[str, tuple[dict[str, Answer], Answer]] = {
    "llama-server": ({"/v1/models": (200, MODELS)}, (404, LLAMA_CPP)),
    "LM Studio": ({"/v1/models": (200, MODELS)}, (200, LM_STUDIO)),
    "vLLM": ({"/v1/models": (200, MODELS)}, (404, {"detail": "Not Found"})),
    "oai2ollama": (
        {
            "/api/version": (200, {"version": "0.11.4"}),
            "/api/tags": (200, {"models": []}),
            "/v1/models": (200, MODELS),
        },
        (404, {"detail": "Not Found"}),
    ),
    "web server": ({}, (404, "<html>nothing here</html>")),
    "LM Studio without a model": ({"/v1/models": (200, {"data": []})}, (200, LM_STUDIO)),
    "FastAPI's list": ({}, (404, {"detail": [{"loc": ["path"], "msg": "No such route"}]})),
    "vLLM of 2024": ({}, (404, {"object": "error", "message": "No such route", "code": 404})),
    "no words": ({}, (404, {"error": {"code": 404, "type": "unknown_url"}})),
}


@pytest.fixture
def serve() -> Iterator[Callable[[str], str]]:
    """Start a server of `SERVERS` on loopback and return its address."""
    running: list[ThreadingHTTPServer] = []

    def start(name: str) -> str:
        routes, otherwise = SERVERS[name]

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                status, body = routes.get(self.path, otherwise)
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815 (the names that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("llama-server", "speaks OpenAI's API, not Ollama's", "File Not Found"),
        ("LM Studio", "speaks OpenAI's API, not Ollama's", "Unexpected endpoint or method."),
        ("vLLM", "speaks OpenAI's API, not Ollama's", "Not Found"),
        ("oai2ollama", "lacks a part of Ollama's API", "Not Found"),
        ("web server", "does not look like Ollama", "nothing here"),
        ("LM Studio without a model", "speaks OpenAI's API", "Unexpected endpoint or method."),
        ("FastAPI's list", "does not look like Ollama", '"No such route"'),
        ("vLLM of 2024", "does not look like Ollama", '"No such route"'),
        (
            "no words",
            "does not look like Ollama",
            '{"error": {"code": 404, "type": "unknown_url"}}',
        ),
    ],
)
def test_a_missing_path_is_named_with_the_servers_own_words(
    serve: Callable[[str], str], name: str, words: str, said: str
) -> None:
    with (
        OllamaClient(Server(name="x", url=serve(name))) as client,
        pytest.raises(EndpointMissing) as raised,
    ):
        collect(client.chat("qwen", [{"role": "user", "content": "x"}]))
    message = str(raised.value)
    assert words in message and "/api/chat" in message and said in message
    assert "{'" not in message and 'nothing"' not in message


def test_a_model_that_is_not_found_is_still_that(serve: Callable[[str], str]) -> None:
    SERVERS["ollama"] = ({}, (404, {"error": "model 'qwen' not found"}))
    with (
        OllamaClient(Server(name="x", url=serve("ollama"))) as client,
        pytest.raises(LLMError, match=r'The model "qwen" is not installed'),
    ):
        collect(client.chat("qwen", [{"role": "user", "content": "x"}]))


LEMONADE_DIGEST = "sha256:" + "0" * 64
BEFORE_CAPABILITIES_IN_TAGS = "0.12.0"


def test_two_models_with_one_digest_keep_their_own_capabilities(make_ollama: Any) -> None:
    ollama = make_ollama(
        [
            text_model("llama3.2", listed_digest=LEMONADE_DIGEST),
            vision_model("llava", listed_digest=LEMONADE_DIGEST),
        ],
        version=BEFORE_CAPABILITIES_IN_TAGS,
    )
    with OllamaClient(Server(url=ollama.url)) as client:
        for _ in range(2):
            assert client.find("llama3.2").lacks("vision")
            assert not client.find("llava").lacks("vision")
    assert [request.model for request in ollama.of("show")] == ["llama3.2:latest", "llava:latest"]


def test_one_name_and_digest_on_two_servers_keep_their_own_capabilities(make_ollama: Any) -> None:
    for make_model, sees in ((text_model, False), (vision_model, True)):
        model = make_model("llava", listed_digest=LEMONADE_DIGEST)
        ollama = make_ollama([model], version=BEFORE_CAPABILITIES_IN_TAGS)
        with OllamaClient(Server(url=ollama.url)) as client:
            assert client.find("llava").lacks("vision") is not sees


def test_a_model_without_a_digest_is_asked_for_each_time(make_ollama: Any) -> None:
    """Nothing would show that another model has taken its name."""
    ollama = make_ollama(
        [text_model("llava", listed_digest="")], version=BEFORE_CAPABILITIES_IN_TAGS
    )
    with OllamaClient(Server(url=ollama.url)) as client:
        assert client.find("llava").lacks("vision")
        ollama.models["llava:latest"] = vision_model("llava", listed_digest="")
        assert not client.find("llava").lacks("vision")


@pytest.mark.parametrize(
    "missing",
    [
        Reply(status=404),
        Reply(status=404, error="404 page not found"),
        Reply(status=404, body=b'{"detail": "Not Found"}'),
        Reply(status=200, body=json.dumps(LM_STUDIO).encode()),
    ],
    ids=["no body", "Go", "FastAPI", "LM Studio"],
)
def test_a_missing_show_means_that_capabilities_are_not_known(
    make_ollama: Any, missing: Reply
) -> None:
    ollama = make_ollama(version=BEFORE_CAPABILITIES_IN_TAGS)
    ollama.always("show", missing)
    with OllamaClient(Server(url=ollama.url)) as client:
        model = client.find("llava")
        assert model.capabilities is None and not model.lacks("vision")
        ollama.forget_script()
        assert client.find("llava").capabilities == {"completion", "vision"}


def test_a_model_that_show_does_not_find_is_still_an_error(make_ollama: Any) -> None:
    ollama = make_ollama(version=BEFORE_CAPABILITIES_IN_TAGS)
    ollama.always("show", "not_found")
    with OllamaClient(Server(url=ollama.url)) as client, pytest.raises(ModelNotFound):
        client.find("llava")


def listing(*names: str) -> Reply:
    """An /api/ps that lists these models, whatever is loaded."""
    return Reply(body=json.dumps({"models": [{"name": name} for name in names]}).encode())


def test_a_server_that_always_lists_its_model_costs_the_wait_once(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_SHORT_UNLOAD_S", 0.05)
    ollama = make_ollama([text_model("koboldcpp/tiny")])
    ollama.always("ps", listing("koboldcpp/tiny"))
    with OllamaClient(Server(url=ollama.url)) as client:
        started = time.monotonic()
        assert not client.unload("koboldcpp/tiny", limit_s=0.5).confirmed
        assert time.monotonic() - started >= 0.5, "the first unload waits for its whole limit"
    with OllamaClient(Server(url=ollama.url)) as another:
        for _ in range(3):
            started = time.monotonic()
            assert not another.unload("koboldcpp/tiny").confirmed
            assert time.monotonic() - started < UNLOAD_TIMEOUT_S / 3
    assert len(ollama.of("unload")) == 4, "the request is sent each time"


def test_other_servers_keep_the_whole_wait(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_SHORT_UNLOAD_S", 0.0)
    with OllamaClient(Server(url=make_ollama([text_model(never_unloads=True)]).url)) as client:
        client.load("llama3.2")
        assert not client.unload("llama3.2", limit_s=0.1).confirmed
    with OllamaClient(Server(url=make_ollama([text_model(unload_s=0.5)]).url)) as client:
        client.load("llama3.2")
        assert client.unload("llama3.2").confirmed


@pytest.mark.parametrize("seen", ["an unload", "another list"])
def test_the_whole_wait_returns_when_a_model_leaves_the_list(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    monkeypatch.setattr(client_module, "_SHORT_UNLOAD_S", 0.0)
    ollama = make_ollama([text_model("slow", unload_s=0.5), text_model("quick")])
    ollama.always("ps", listing("quick") if seen == "an unload" else listing("quick", "other"))
    with OllamaClient(Server(url=ollama.url)) as client:
        assert not client.unload("quick", limit_s=0.1).confirmed
        ollama.forget_script()
        client.load("quick")
        if seen == "an unload":
            assert client.unload("quick").confirmed, "the first look finds it gone"
        client.load("slow")
        assert client.unload("slow").confirmed


BROKEN = {
    "hangs": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", 0),
    "drips": (b"HTTP/1.1 200 OK\r\n\r\n", 200),
    "is cut": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", None),
    "is no gzip": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        None,
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_list_of_models_does_not_hide_the_missing_path(how: str) -> None:
    """Finding out which API a server speaks is bounded in time, and never becomes the error."""
    first, blanks = BROKEN[how]
    done = threading.Event()

    def serve_one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            if b" /v1/models " not in received:
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")
                return
            connection.sendall(first)
            for _ in range(blanks or 0):
                connection.sendall(b" \n")
                if done.wait(0.1):
                    return
            if blanks is not None:
                done.wait(20)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with (
            OllamaClient(Server(name="x", url=url)) as client,
            pytest.raises(EndpointMissing, match="/api/chat answered 404 Not Found"),
        ):
            collect(client.chat("qwen", [{"role": "user", "content": "x"}]))
        assert time.monotonic() - started < 6
        done.set()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> pytest.MonkeyPatch:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(tmp_path / "gguf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return monkeypatch


def test_a_copy_of_ollamas_lists_is_used_by_its_other_api(
    serve: Callable[[str], str], environment: pytest.MonkeyPatch, capsys: Any
) -> None:
    environment.setenv("OLLAMA_BASE_URL", serve("oai2ollama"))
    main(["doctor"])
    printed = capsys.readouterr().out
    assert 'Server "default": the server at ' in printed and "not usable" not in printed


def test_doctor_takes_a_missing_list_of_loaded_models_as_a_remark(
    ollama: Any, environment: pytest.MonkeyPatch, capsys: Any
) -> None:
    environment.setenv("OLLAMA_BASE_URL", ollama.url)
    ollama.always("ps", "not_found")
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "Which models are loaded is unknown: " in printed and "/api/ps" in printed


def test_models_fails_where_no_server_can_be_listed(
    serve: Callable[[str], str], environment: pytest.MonkeyPatch, capsys: Any
) -> None:
    environment.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    assert main(["models"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ") and "Embedded engine" in printed.out
    environment.setenv("OLLAMA_BASE_URL", serve("vLLM"))
    assert main(["models"]) == 0
    assert "The server at " in capsys.readouterr().out


def test_an_entry_overrules_what_the_server_says_of_its_models(make_ollama: Any) -> None:
    from faulty_ollama import text_model

    for version in ("0.12.0", "0.33.0"):  # capabilities by /api/show, and in the list
        url = make_ollama([text_model("understated")], version=version).url
        with OllamaClient(Server(url=url, assume=frozenset({"vision"}))) as client:
            assert not client.find("understated").lacks("vision")
        with OllamaClient(Server(url=url)) as client:
            assert client.find("understated").lacks("vision")
