"""The list of models never makes the page wait."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.ollama_client import OllamaClient, Server
from image_refinery.ollama_client import client as client_module

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama
    from image_refinery.nodes.host.model_lists import ModelListCache, Source


@pytest.fixture(scope="module", autouse=True)
def imported(comfy_for_all: None) -> None:
    """Import what is tested while ComfyUI, or the stub, can be found."""
    global ModelListCache, Source, WAIT_S, lists_module
    from image_refinery.nodes.host import model_lists as lists_module
    from image_refinery.nodes.host.model_lists import WAIT_S, ModelListCache, Source


LONG_S = 30.0
"""A WAIT_S that no pause of the machine is as long as."""


def begun(url: str) -> ModelListCache:
    """A lists whose first look is under way."""
    gate = threading.Event()

    def opened() -> OllamaClient:
        gate.wait(10)
        return OllamaClient(Server(url=url))

    lists = ModelListCache(lambda: [Source("", opened)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists_module, "WAIT_S", LONG_S)
        started = time.monotonic()
        assert lists.names("vision") == []
        assert time.monotonic() - started < 5, "the first look is not waited for"
    gate.set()
    return lists


def looked(url: str) -> ModelListCache:
    """A lists that has had its first look."""
    lists = begun(url)
    end_of_look(lists)
    return lists


def end_of_look(lists: ModelListCache) -> None:
    assert lists._look is not None
    lists._look.join(timeout=20)
    assert not lists._look.is_alive()


def test_models_that_can_come_first(make_ollama: Any) -> None:
    from faulty_ollama import FakeModel, text_model, vision_model

    ollama = make_ollama([text_model("a"), vision_model("b"), FakeModel("c", ("embedding",))])
    lists = looked(ollama.url)
    assert lists.names("vision") == ["b:latest", "a:latest", "c:latest"]
    assert lists.names("completion") == ["a:latest", "b:latest", "c:latest"]


def test_two_hundred_models_of_an_old_server_are_listed_at_once(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import text_model

    monkeypatch.setattr(client_module, "_known_by_digest", {})
    names = [f"model{index:03}" for index in range(200)]
    ollama = make_ollama([text_model(name) for name in names], version="0.12.0")
    asked_for_all = threading.Event()

    def held(_: Any) -> None:
        asked_for_all.wait(10)

    ollama.always("show", held)
    lists = begun(ollama.url)
    ollama.wait_for("show", timeout_s=20)  # what each of them can do is being asked
    started = time.monotonic()
    assert len(lists.names("vision")) == 200
    assert time.monotonic() - started < 5
    assert len(ollama.of("show")) == 1, "none of the 200 has been told yet"
    asked_for_all.set()
    end_of_look(lists)
    assert len(ollama.of("show")) == 200
    # A later look is waited for, but again only for the list.
    asked_for_all.clear()
    client_module._known_by_digest.clear()
    monkeypatch.setattr(lists_module, "FRESH_S", 0.0)
    monkeypatch.setattr(lists_module, "WAIT_S", LONG_S)
    started = time.monotonic()
    assert len(lists.names("vision")) == 200
    assert time.monotonic() - started < 5
    asked_for_all.set()
    end_of_look(lists)


def test_a_model_pulled_a_second_ago_shows(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model("old")])
    lists = looked(ollama.url)
    monkeypatch.setattr(lists_module, "WAIT_S", LONG_S)
    assert lists.names("completion") == ["old:latest"]
    ollama.models["new:latest"] = text_model("new")
    time.sleep(1.05)
    assert lists.names("completion") == ["new:latest", "old:latest"]


def test_a_server_that_hangs_is_waited_for_once(ollama: FaultyOllama) -> None:
    lists = looked(ollama.url)
    ollama.always("tags", "hang")
    time.sleep(1.05)
    started = time.monotonic()
    for _ in range(20):
        assert lists.names("vision") == ["llava:latest", "llama3.2:latest"]
    assert time.monotonic() - started < 10 * WAIT_S, "20 waits would take twice as long"


def test_after_a_wait_in_vain_nobody_waits_until_the_server_has_answered(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import Reply, text_model

    asked_often = threading.Event()

    def held(_: Any) -> None:
        asked_often.wait(10)

    monkeypatch.setattr(lists_module, "REST_S", 0.0)
    monkeypatch.setattr(lists_module, "FRESH_S", 0.0)
    lists = looked(ollama.url)
    ollama.always("tags", held)
    started = time.monotonic()
    for _ in range(40):
        lists.names("vision")
    assert WAIT_S <= time.monotonic() - started < 20 * WAIT_S, "40 waits take longer"
    asked_often.set()
    end_of_look(lists)
    monkeypatch.setattr(lists_module, "WAIT_S", LONG_S)
    ollama.always("tags", Reply(prompt_s=0.05))
    ollama.models["new:latest"] = text_model("new")
    assert "new:latest" in lists.names("completion")


def test_a_server_that_is_off_costs_next_to_nothing() -> None:
    lists = ModelListCache(
        lambda: [Source("", lambda: OllamaClient(Server(url="http://127.0.0.1:9")))]
    )
    started = time.monotonic()
    for _ in range(20):
        assert lists.names("vision") == []
    assert time.monotonic() - started < 10 * WAIT_S, "20 waits would take twice as long"


def test_models_of_other_servers_name_their_server(make_ollama: Any) -> None:
    from faulty_ollama import text_model, vision_model

    default, other = make_ollama([text_model("a")]), make_ollama([text_model("b")])
    twice = make_ollama([vision_model("c")])

    def sources() -> list[Source]:
        def opened(url: str) -> OllamaClient:
            return OllamaClient(Server(url=url))

        return [
            Source("", lambda: opened(default.url)),
            Source("off", lambda: opened("http://127.0.0.1:9")),
            Source("box", lambda: opened(other.url)),
            Source("seeing", lambda: opened(twice.url)),
            Source("the same", lambda: opened(twice.url)),
        ]

    lists = ModelListCache(sources)
    assert lists.names("vision") == []
    end_of_look(lists)
    assert lists.names("vision") == ["a:latest", "b:latest @ box", "c:latest @ seeing"]
    assert lists.server_names() == ["box", "seeing"]


def test_an_entry_that_cannot_be_used_hides_no_other_server(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from image_refinery.nodes.host import servers

    config = tmp_path / "image-refinery.toml"
    config.write_text(
        f'[servers.broken]\nshares_gpu = false\n[servers.good]\nurl = "{ollama.url}"\n', "utf-8"
    )
    monkeypatch.setattr(servers, "config_file", lambda: config)
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    lists = ModelListCache(servers.all_servers)
    lists.names("vision")
    end_of_look(lists)
    assert "llava:latest @ good" in lists.names("vision")
