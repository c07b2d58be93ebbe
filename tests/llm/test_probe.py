"""Which kind of server answers at an address, and which one a search finds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from image_refinery._advice import Edge, with_advice
from image_refinery._backends import open_backend, open_backends
from image_refinery.llm import probe
from image_refinery.llm.errors import (
    AccessDenied,
    Cancelled,
    LLMError,
    NoServer,
    Redirected,
    ServerTimeout,
    ServerUnreachable,
    UnknownServer,
)
from image_refinery.llm.probe import find_servers, identify
from image_refinery.llm.servers import Server, find_server
from scripted_servers import Reply

EDGE = Edge(again="queue again", options="the options")
KINDS = {
    "router": "llama-server",
    "llama-server": "llama-server",
    "lmstudio": "lmstudio",
    "llama-swap": "llama-swap",
    "vllm": "vllm",
    "openai": "openai",
}
MARGIN_S = 1.0
"""Beside the two seconds of a probe, for a machine that is busy."""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may be that of another test's server."""
    monkeypatch.setattr(probe, "_known", {})


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """ports(server, 1234, ...): where a search looks."""

    def set_ports(*places: Any) -> None:
        numbers = [
            place if isinstance(place, int) else int(place.url.rpartition(":")[2])
            for place in places
        ]
        monkeypatch.setattr(probe, "PORTS", tuple(numbers))

    return set_ports


def unknown(url: str, **fields: Any) -> Server:
    return Server(url=url, kind="", **fields)


def searched(**fields: Any) -> Server:
    return Server(**{"kind": "", "search": True, **fields})


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A server that sends the same bytes to everybody, or nothing at all."""
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = sock.accept()
                held.append(connection)
                if answer is not None:
                    connection.recv(65536)
                    connection.sendall(answer)
                    connection.close()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        sock.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for connection in held:
        connection.close()


def http(body: str, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + body).encode()


# One address


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recognized_by_reading_only(make_server: Any, kind: str) -> None:
    server = make_server(kind)
    started = time.monotonic()
    found = identify(unknown(server.url, name="box", unload=True))
    assert time.monotonic() - started < probe.PROBE_TIMEOUT_S
    assert (found.kind, found.url, found.name) == (KINDS[kind], server.url, "box")
    assert found.unload is True, "the rest of the entry stays"
    assert {record.method for record in server.requests} == {"GET"}
    assert not server.loads and not server.of("chat", "load", "unload")
    assert not [record for record in server.requests if record.query], "no /props?model="


def test_ollama_is_recognized(ollama: Any) -> None:
    assert identify(unknown(ollama.url)).kind == "ollama"
    assert not ollama.loads and {request.method for request in ollama.requests} == {"GET"}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama-server", {"load_s": 60.0}),
        ("llama-swap", {"old": True}),
        ("router", {"models": []}),
        ("lmstudio", {"models": []}),
        ("vllm", {"sleep_mode": True}),
    ],
)
def test_a_kind_is_recognized_in_any_state(make_server: Any, kind: str, settings: Any) -> None:
    wanted = "openai" if settings.get("models") == [] and kind == "router" else KINDS[kind]
    assert identify(unknown(make_server(kind, **settings).url)).kind == wanted


def test_a_known_kind_is_not_asked_for(make_server: Any) -> None:
    server = make_server("openai")
    assert identify(Server(url=server.url, kind="vllm")).kind == "vllm"
    assert not server.requests


def test_a_kind_is_asked_for_once_in_a_while(
    make_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server("openai")
    identify(unknown(server.url))
    count = len(server.requests)
    identify(unknown(server.url))
    assert len(server.requests) == count
    monkeypatch.setattr(probe, "_KNOWN_S", 0.0)
    identify(unknown(server.url))
    assert len(server.requests) == 2 * count


HALF_OLLAMA = {
    "a version like Ollama's": {"/api/version": {"version": "0.12.0"}},
    "a version and an error": {
        "/api/version": {"version": "0.12.0"},
        "/api/tags": {"error": "no", "models": []},
    },
}
LIES = {
    "a version with more in it": {
        "/api/version": {"version": "0.12.0", "commit": "abc"},
        "/api/tags": {"models": []},
    },
    "it says that it runs": {"/running": {"running": True}},
    "models without a key": {"/api/v1/models": {"models": [{"name": "x"}]}},
    "an error beside models": {"/api/v1/models": {"error": "no", "models": []}},
    "a status of its own": {"/models": {"data": [{"id": "x", "status": "active"}]}},
    "vllm in a name": {"/version": {"version": "vllm"}},
}


def lying(make_server: Any, bodies: dict[str, Any]) -> Any:
    """A plain server with some answers of another kind."""
    server = make_server("openai")

    def answer(record: Any) -> Reply | None:
        return Reply(body=bodies[record.path]) if record.path in bodies else None

    server.always("*", answer)
    return server


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_looks_like_another_kind_is_not_taken_for_it(
    make_server: Any, lie: str
) -> None:
    assert identify(unknown(lying(make_server, LIES[lie]).url)).kind == "openai"


@pytest.mark.parametrize("lie", HALF_OLLAMA)
def test_a_search_takes_no_half_of_ollama_for_ollama(
    make_server: Any, ports: Any, lie: str
) -> None:
    """Open WebUI may be on a port that is searched; oai2ollama has Ollama's lists and no chat."""
    server = lying(make_server, HALF_OLLAMA[lie])
    ports(server)
    assert identify(searched()).kind == "openai"
    assert identify(unknown(server.url)).kind == "openai"


def test_a_server_that_loads_its_model_is_llama_server(ports: Any) -> None:
    body = '{"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}'
    with listener(http(body, status="503 Service Unavailable")) as url:
        assert identify(unknown(url)).kind == "llama-server"


def test_a_server_that_answers_200_to_everything_is_unknown() -> None:
    for body in ("", "<html>hello</html>", "[]", '{"error": "Unexpected endpoint"}', "[" * 99999):
        with listener(http(body)) as url, pytest.raises(UnknownServer) as raised:
            identify(unknown(url))
        assert str(raised.value) == (
            f"The server at {url} is not a language-model server that this pack supports."
        )
        assert with_advice(raised.value, EDGE).endswith(
            "Check the address, and the kind in image-refinery.toml. (R103)"
        )


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"],
    ids=["ssh", "closes", "is cut"],
)
def test_what_speaks_no_http_is_unknown(answer: bytes) -> None:
    with listener(answer) as url, pytest.raises(UnknownServer):
        identify(unknown(url))


def test_a_server_that_hangs_takes_two_seconds() -> None:
    started = time.monotonic()
    with listener(None) as url, pytest.raises(ServerTimeout) as raised:
        identify(unknown(url))
    assert time.monotonic() - started < probe.PROBE_TIMEOUT_S + MARGIN_S
    assert str(raised.value) == (
        f"The server at {url} sent nothing for 2 s while telling what kind of server it is."
    )


def test_a_server_that_hangs_at_its_lists_takes_two_seconds(make_server: Any) -> None:
    server = make_server("vllm")
    server.always("list", "hang")
    started = time.monotonic()
    with pytest.raises(ServerTimeout):
        identify(unknown(server.url))
    assert time.monotonic() - started < probe.PROBE_TIMEOUT_S + MARGIN_S


def test_a_probe_is_cancelled() -> None:
    began = time.monotonic()
    with listener(None) as url, pytest.raises(Cancelled):
        identify(unknown(url), lambda: time.monotonic() - began > 0.2)
    assert time.monotonic() - began < 1.2


def test_nobody_at_the_address(free_port: int) -> None:
    with pytest.raises(ServerUnreachable, match="Connection refused") as raised:
        identify(unknown(f"http://127.0.0.1:{free_port}"))
    assert raised.value.refused


def test_a_key_that_is_missing_or_wrong(make_server: Any) -> None:
    for kind in ("lmstudio", "openai", "vllm"):
        server = make_server(kind, api_key="secret")
        for key in (None, "wrong"):
            with pytest.raises(AccessDenied, match="401 Unauthorized"):
                identify(unknown(server.url, api_key=key))
        assert identify(unknown(server.url, api_key="secret")).kind == kind


def test_a_redirect_is_named_and_not_followed(make_server: Any) -> None:
    server, other = make_server("openai"), make_server("openai")
    server.always("*", Reply(status=301, body=b"", headers={"Location": other.url}))
    with pytest.raises(Redirected, match=other.url):
        identify(unknown(server.url, api_key="secret"))
    assert not other.requests


# A search


def test_the_first_port_with_a_server_wins(make_server: Any, ports: Any, free_port: int) -> None:
    studio, swap = make_server("lmstudio"), make_server("llama-swap")
    ports(free_port, studio, swap)
    assert [server.kind for server in find_servers()] == ["lmstudio", "llama-swap"]
    assert identify(searched()).url == studio.url
    ports(swap, studio, free_port)
    found = identify(searched(name="default", unload=False))
    assert (found.url, found.kind, found.name) == (swap.url, "llama-swap", "default")
    assert found.search is False and found.unload is False


def test_a_search_for_a_kind_passes_the_others(make_server: Any, ports: Any) -> None:
    swap, studio = make_server("llama-swap"), make_server("lmstudio")
    ports(swap, studio)
    assert identify(searched(kind="lmstudio")).url == studio.url


def test_a_server_that_hangs_does_not_hide_the_others(make_server: Any, ports: Any) -> None:
    studio = make_server("lmstudio")
    with listener(None) as url, listener(http("<html>")) as other:
        ports(int(url.rpartition(":")[2]), int(other.rpartition(":")[2]), studio)
        started = time.monotonic()
        assert identify(searched()).url == studio.url
        assert time.monotonic() - started < probe.PROBE_TIMEOUT_S + MARGIN_S


def test_a_search_is_cancelled(ports: Any) -> None:
    began = time.monotonic()
    with listener(None) as url:
        ports(int(url.rpartition(":")[2]))
        with pytest.raises(Cancelled):
            identify(searched(), lambda: time.monotonic() - began > 0.2)
    assert time.monotonic() - began < 1.2


def test_a_search_sends_no_key_and_only_reads(make_server: Any, ports: Any) -> None:
    servers = [make_server(kind) for kind in KINDS]
    ports(*servers)
    identify(searched(api_key="secret", login=("me", "secret")))
    assert len(list(find_servers())) == len(servers)
    records = [record for server in servers for record in server.requests]
    assert {record.method for record in records} == {"GET"}
    assert not [record for record in records if "authorization" in record.headers]
    assert not any(server.loads for server in servers)


def test_ollamas_key_goes_to_ollama_only(make_server: Any, ollama: Any, ports: Any) -> None:
    """The key of a search is OLLAMA_API_KEY."""
    studio = make_server("lmstudio")
    ports(studio, ollama)
    assert identify(searched(api_key="secret")).api_key is None
    with closing(open_backend(searched(api_key="secret"))) as backend:
        assert backend.list()
    assert not [record for record in studio.requests if "authorization" in record.headers]
    ports(ollama, studio)
    assert identify(searched(api_key="secret")).api_key == "secret"


def test_nobody_on_this_machine(ports: Any, free_port: int) -> None:
    ports(free_port, free_port)
    with pytest.raises(NoServer) as raised:
        identify(searched())
    assert str(raised.value) == (
        "No language-model server answers on this machine "
        f"(127.0.0.1, ports {free_port} and {free_port})."
    )
    assert with_advice(raised.value, EDGE).endswith(
        "Start Ollama or LM Studio (or install one), name a server on another machine in "
        "image-refinery.toml, or choose the server embedded: the engine inside this package. (R102)"
    )
    assert not raised.value.refused, "no address to ask again"


def test_nobody_of_a_kind_on_this_machine(make_server: Any, ports: Any) -> None:
    ports(make_server("llama-swap"), 9)
    with pytest.raises(NoServer, match=r"^No LM Studio server answers on this machine") as raised:
        identify(searched(kind="lmstudio"))
    message = with_advice(raised.value, EDGE)
    assert "Start LM Studio, " in message and "ollama" not in message.lower()


# From a name to a backend


def test_the_usual_ports_in_their_order() -> None:
    assert probe.PORTS == (11434, 1234, 8080, 8000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_is_opened_for_each_kind(make_server: Any, kind: str) -> None:
    server = make_server(kind)
    with closing(open_backend(unknown(server.url))) as backend:
        assert backend.server.kind == KINDS[kind]
        assert backend.list()
        assert not backend.unloads_always


def test_the_name_of_a_kind_is_a_search(make_server: Any, ports: Any, tmp_path: Path) -> None:
    ports(make_server("llama-swap"), make_server("lmstudio"))
    config = tmp_path / "none.toml"
    server = find_server("lmstudio", config=config, environ={"OLLAMA_API_KEY": "secret"})
    assert server.search and server.api_key is None
    with closing(open_backend(server)) as backend:
        assert backend.server.kind == "lmstudio"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_may_be_that_of_openais_api(make_server: Any, tmp_path: Path, end: str) -> None:
    server = make_server("lmstudio")
    config = tmp_path / "image-refinery.toml"
    config.write_text(f'[servers.studio]\nurl = "{server.url}{end}"\n', "utf-8")
    found = find_server("studio", config=config, environ={})
    assert found.url == server.url
    assert identify(found).kind == "lmstudio"


def test_models_name_their_servers(make_server: Any, tmp_path: Path) -> None:
    first, second = make_server("llama-server"), make_server("lmstudio")
    config = tmp_path / "image-refinery.toml"
    config.write_text(
        f'default = "a"\n[servers.a]\nurl = "{first.url}"\n[servers.b]\nurl = "{second.url}"\n',
        "utf-8",
    )
    with open_backends("default", "qwen2.5-vl", "llama @ b", "c", config=config) as backends:
        assert [backend.server.url for backend in backends] == [first.url, second.url, first.url]
        assert backends[0] is backends[2]


def test_auto_is_the_embedded_engine_where_nobody_answers(
    ports: Any, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    for name in ("OLLAMA_BASE_URL", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    ports(free_port, free_port)
    config = tmp_path / "none.toml"
    with open_backends("default", "auto", config=config) as (backend,):
        assert backend.server.is_embedded
    with (
        pytest.raises(NoServer),
        open_backends("default", "llava", config=config),
    ):
        pass
    with (
        pytest.raises(NoServer),
        open_backends("lmstudio", "llava", config=config),
    ):
        pass


def test_a_bad_address_in_the_file_names_its_entry(tmp_path: Path) -> None:
    config = tmp_path / "image-refinery.toml"
    config.write_text('[servers.studio]\nurl = "ftp://me:secret@box"\nkind = "lmstudio"\n', "utf-8")
    with pytest.raises(LLMError) as raised:
        find_server("studio", config=config, environ={})
    message = with_advice(raised.value, EDGE)
    assert "studio" in message and "image-refinery.toml" in message
    assert "secret" not in message and "ollama" not in message.lower()


def test_a_default_of_the_file_that_is_off_is_not_called_ollama(
    tmp_path: Path, free_port: int
) -> None:
    config = tmp_path / "image-refinery.toml"
    url = f"http://127.0.0.1:{free_port}"
    config.write_text(f'default = "studio"\n[servers.studio]\nurl = "{url}"\n', "utf-8")
    with pytest.raises(ServerUnreachable) as raised:
        open_backend(find_server("default", config=config, environ={}))
    assert with_advice(raised.value, EDGE) == (
        f"Can't reach the server at {url} (Connection refused). Start it, or correct its url in "
        "image-refinery.toml. (R101)"
    )
