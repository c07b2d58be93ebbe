"""Which server is meant: environment, file, this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from image_refinery.llm.errors import ServerConfigError
from image_refinery.llm.servers import Server, find_server, server_names

CONFIG = """
default = "studio"

[servers.studio]
url = "http://192.0.2.7:11434"
key_env = "STUDIO_KEY"

[servers.cloud]
url = "https://ollama.com"
key = "written-down"
shares_gpu = false

[servers.broken]
shares_gpu = "maybe"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "image-refinery.toml"
    path.write_text(CONFIG, "utf-8")
    return path


def test_without_anything_it_is_this_machine(tmp_path: Path) -> None:
    server = find_server(config=tmp_path / "none.toml", environ={})
    assert (server.url, server.api_key) == ("http://127.0.0.1:11434", None)
    assert server.is_this_machine and server.search and not server.kind


def test_names_of_kinds_need_no_entry(tmp_path: Path) -> None:
    none = tmp_path / "none.toml"
    found = find_server("lmstudio", config=none, environ={"OLLAMA_BASE_URL": "http://a:1"})
    assert (found.kind, found.search, found.api_key) == ("lmstudio", True, None)
    engine = find_server("embedded", config=none, environ={})
    assert engine.is_embedded and engine.title == "the embedded engine"


def test_an_entry_has_a_kind_and_what_it_overrules(tmp_path: Path) -> None:
    path = tmp_path / "image-refinery.toml"
    entry = '[servers.a]\nurl = "http://b:1"\nkind = "vllm"\nunload = true\nassume = ["vision"]\n'
    path.write_text(entry, "utf-8")
    server = find_server("a", config=path, environ={})
    assert (server.kind, server.unload, server.assume) == ("vllm", True, {"vision"})
    for wrong in ('kind = "wllm"', 'unload = "no"', 'assume = "vision"'):
        path.write_text(f'[servers.a]\nurl = "http://b:1"\n{wrong}\n', "utf-8")
        with pytest.raises(ServerConfigError, match=r'"a" in image-refinery\.toml'):
            find_server("a", config=path, environ={})


def test_the_environment_wins_over_the_file(config: Path) -> None:
    environ = {"OLLAMA_BASE_URL": "http://a:1", "OLLAMA_HOST": "b:2", "OLLAMA_API_KEY": "k"}
    assert find_server(config=config, environ=environ).url == "http://a:1"
    assert find_server(config=config, environ=environ).api_key == "k"


def test_the_files_default_wins_over_ollamas_own_variable(config: Path, tmp_path: Path) -> None:
    environ = {"OLLAMA_HOST": "0.0.0.0:7"}
    assert find_server(config=config, environ=environ).url == "http://192.0.2.7:11434"
    elsewhere = find_server(config=tmp_path / "none.toml", environ=environ)
    assert (elsewhere.url, elsewhere.search) == ("http://127.0.0.1:7", False)


def test_names_come_from_the_file(config: Path) -> None:
    assert server_names(config) == ["default", "broken", "cloud", "studio"]
    studio = find_server(config=config, environ={"STUDIO_KEY": "from-env"})
    assert (studio.url, studio.api_key) == ("http://192.0.2.7:11434", "from-env")
    cloud = find_server("cloud", config=config, environ={"OLLAMA_API_KEY": "another"})
    assert (cloud.url, cloud.api_key) == ("https://ollama.com:443", "written-down")
    assert cloud.shares_gpu is False
    assert "written-down" not in repr(cloud)


def test_the_environments_key_does_not_go_to_named_servers(config: Path) -> None:
    named = find_server("studio", config=config, environ={"OLLAMA_API_KEY": "k"})
    assert named.api_key is None


@pytest.mark.parametrize("name", ["nowhere", "broken", "http://evil.example:80"])
def test_a_name_that_cannot_be_used_is_one_sentence(config: Path, name: str) -> None:
    with pytest.raises(ServerConfigError, match=r"image-refinery\.toml"):
        find_server(name, config=config, environ={})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image-refinery.toml"
    path.write_bytes(b"[servers\xff")
    with pytest.raises(ServerConfigError, match="Correct or remove"):
        find_server("x", config=path, environ={})
    assert server_names(path) == ["default"]


def test_a_password_in_a_bad_address_is_not_repeated() -> None:
    with pytest.raises(ServerConfigError) as caught:
        find_server(environ={"OLLAMA_BASE_URL": "ftp://me:hidden@box"})
    assert "hidden" not in str(caught.value)


def test_which_machines_are_this_one() -> None:
    assert Server(url="http://127.0.0.5:1").is_this_machine
    assert Server(url="http://host.docker.internal:1").is_this_machine
    assert not Server(url="http://192.0.2.7:1").is_this_machine
    assert not Server(url="http://name.invalid:1").is_this_machine
    own = socket.gethostname()
    try:
        socket.getaddrinfo(own, None)
    except OSError:
        pytest.skip(f"the host's own name {own} does not resolve here")
    assert Server(url=f"http://{own}:11434").is_this_machine


def test_a_name_that_moves_to_another_machine_is_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from image_refinery.llm import servers

    now = [1000.0]
    addresses = ["127.0.0.1"]
    asked: list[str] = []

    def look_up(host: str, port: None) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(None, None, None, "", (addresses[0], 0))]

    monkeypatch.setattr(servers.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(servers.time, "monotonic", lambda: now[0])
    server = Server(url="http://moving.example:11434")
    assert server.is_this_machine and server.is_this_machine
    assert asked == ["moving.example"], "kept for a minute"
    addresses[0], now[0] = "192.0.2.7", 1100.0
    assert not server.is_this_machine
