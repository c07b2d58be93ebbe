"""The list of models never makes the page wait."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.ollama_client import Server
from image_refinery.ollama_client import client as client_module

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama
    from image_refinery.nodes.host.model_lists import Catalogue


@pytest.fixture(scope="module", autouse=True)
def imported(comfy_for_all: None) -> None:
    """Import what is tested while ComfyUI, or the stub, can be found."""
    global Catalogue, WAIT_S, catalogue_module
    from image_refinery.nodes.host import model_lists as catalogue_module
    from image_refinery.nodes.host.model_lists import WAIT_S, Catalogue


LONG_S = 30.0
"""A WAIT_S that no pause of the machine is as long as."""


def begun(url: str) -> Catalogue:
    """A catalogue whose first look is under way."""
    gate = threading.Event()

    def find() -> Server:
        gate.wait(10)
        return Server(url=url)

    catalogue = Catalogue(find)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue_module, "WAIT_S", LONG_S)
        started = time.monotonic()
        assert catalogue.names("vision") == []
        assert time.monotonic() - started < 5, "the first look is not waited for"
    gate.set()
    return catalogue


def looked(url: str) -> Catalogue:
    """A catalogue that has had its first look."""
    catalogue = begun(url)
    end_of_look(catalogue)
    return catalogue


def end_of_look(catalogue: Catalogue) -> None:
    assert catalogue._look is not None
    catalogue._look.join(timeout=20)
    assert not catalogue._look.is_alive()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """How long each wait of a catalogue was to last: a slow machine does not change that."""
    noted: list[float | None] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            noted.append(timeout)
            return super().wait(timeout)

    parts = SimpleNamespace(Event=Event, Lock=threading.Lock, Thread=threading.Thread)
    monkeypatch.setattr(catalogue_module, "threading", parts)
    return noted


def test_models_that_can_come_first(make_ollama: Any) -> None:
    from faulty_ollama import FakeModel, text_model, vision_model

    ollama = make_ollama([text_model("a"), vision_model("b"), FakeModel("c", ("embedding",))])
    catalogue = looked(ollama.url)
    assert catalogue.names("vision") == ["b:latest", "a:latest", "c:latest"]
    assert catalogue.names("completion") == ["a:latest", "b:latest", "c:latest"]


def test_two_hundred_models_of_an_old_server_are_listed_at_once(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import text_model

    monkeypatch.setattr(client_module, "_shown_by_digest", {})
    names = [f"model{index:03}" for index in range(200)]
    ollama = make_ollama([text_model(name) for name in names], version="0.12.0")
    asked_for_all = threading.Event()

    def held(_: Any) -> None:
        asked_for_all.wait(10)

    ollama.always("show", held)
    catalogue = begun(ollama.url)
    ollama.wait_for("show", timeout_s=20)  # what each of them can do is being asked
    started = time.monotonic()
    assert len(catalogue.names("vision")) == 200
    assert time.monotonic() - started < 5
    assert len(ollama.of("show")) == 1, "none of the 200 has been told yet"
    asked_for_all.set()
    end_of_look(catalogue)
    assert len(ollama.of("show")) == 200
    # A later look is waited for, but again only for the list.
    asked_for_all.clear()
    client_module._shown_by_digest.clear()
    monkeypatch.setattr(catalogue_module, "FRESH_S", 0.0)
    monkeypatch.setattr(catalogue_module, "WAIT_S", LONG_S)
    started = time.monotonic()
    assert len(catalogue.names("vision")) == 200
    assert time.monotonic() - started < 5
    asked_for_all.set()
    end_of_look(catalogue)


def test_a_model_pulled_a_second_ago_shows(
    make_ollama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model("old")])
    catalogue = looked(ollama.url)
    monkeypatch.setattr(catalogue_module, "WAIT_S", LONG_S)
    assert catalogue.names("completion") == ["old:latest"]
    ollama.models["new:latest"] = text_model("new")
    time.sleep(1.05)
    assert catalogue.names("completion") == ["new:latest", "old:latest"]


def test_a_server_that_hangs_is_waited_for_once(
    ollama: FaultyOllama, waits: list[float | None]
) -> None:
    catalogue = looked(ollama.url)
    ollama.always("tags", "hang")
    time.sleep(1.05)
    started = time.monotonic()
    for _ in range(20):
        assert catalogue.names("vision") == ["llava:latest", "llama3.2:latest"]
    assert waits == [WAIT_S]
    assert time.monotonic() - started < 10 * WAIT_S


def test_after_a_wait_in_vain_nobody_waits_until_the_server_has_answered(
    ollama: FaultyOllama, waits: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import Reply, text_model

    asked_often = threading.Event()

    def held(_: Any) -> None:
        asked_often.wait(10)

    monkeypatch.setattr(catalogue_module, "REST_S", 0.0)
    monkeypatch.setattr(catalogue_module, "FRESH_S", 0.0)
    catalogue = looked(ollama.url)
    ollama.always("tags", held)
    started = time.monotonic()
    for _ in range(40):
        catalogue.names("vision")
    assert waits == [WAIT_S]
    assert WAIT_S <= time.monotonic() - started < 20 * WAIT_S
    asked_often.set()
    end_of_look(catalogue)
    monkeypatch.setattr(catalogue_module, "WAIT_S", LONG_S)
    ollama.always("tags", Reply(prompt_s=0.05))
    ollama.models["new:latest"] = text_model("new")
    assert "new:latest" in catalogue.names("completion")


def test_a_server_that_is_off_costs_next_to_nothing(waits: list[float | None]) -> None:
    catalogue = Catalogue(lambda: Server(url="http://127.0.0.1:9"))
    started = time.monotonic()
    for _ in range(20):
        assert catalogue.names("vision") == []
    assert len(waits) <= 1
    assert time.monotonic() - started < 10 * WAIT_S
