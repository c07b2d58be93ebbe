"""The list of models never makes the page wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.ollama_client import Server
from image_refinery.ollama_client import catalogue as catalogue_module
from image_refinery.ollama_client.catalogue import WAIT_S, Catalogue

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


def looked(url: str) -> Catalogue:
    """A catalogue that has had its first look."""
    catalogue = Catalogue(lambda: Server(url=url))
    started = time.monotonic()
    catalogue.names("vision")
    assert time.monotonic() - started < 0.1, "the first look is not waited for"
    assert catalogue._look is not None
    catalogue._look.join(timeout=10)
    return catalogue


def test_models_that_can_come_first(make_ollama: Any) -> None:
    from faulty_ollama import FakeModel, text_model, vision_model

    ollama = make_ollama([text_model("a"), vision_model("b"), FakeModel("c", ("embedding",))])
    catalogue = looked(ollama.url)
    assert catalogue.names("vision") == ["b:latest", "a:latest", "c:latest"]
    assert catalogue.names("completion") == ["a:latest", "b:latest", "c:latest"]


def test_two_hundred_models_of_an_old_server_are_listed_at_once(make_ollama: Any) -> None:
    from faulty_ollama import text_model

    names = [f"model{index:03}" for index in range(200)]
    ollama = make_ollama([text_model(name) for name in names], version="0.12.0")
    catalogue = looked(ollama.url)
    started = time.monotonic()
    assert len(catalogue.names("vision")) == 200
    assert time.monotonic() - started < WAIT_S + 0.1


def test_a_model_pulled_a_second_ago_shows(make_ollama: Any) -> None:
    from faulty_ollama import text_model

    ollama = make_ollama([text_model("old")])
    catalogue = looked(ollama.url)
    assert catalogue.names("completion") == ["old:latest"]
    ollama.models["new:latest"] = text_model("new")
    time.sleep(1.05)
    assert catalogue.names("completion") == ["new:latest", "old:latest"]


def test_a_server_that_hangs_is_waited_for_once(ollama: FaultyOllama) -> None:
    catalogue = looked(ollama.url)
    ollama.always("tags", "hang")
    time.sleep(1.05)
    started = time.monotonic()
    for _ in range(20):
        assert catalogue.names("vision") == ["llava:latest", "llama3.2:latest"]
    assert time.monotonic() - started < WAIT_S + 0.1


def test_after_a_wait_in_vain_nobody_waits_until_the_server_has_answered(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faulty_ollama import Reply, text_model

    monkeypatch.setattr(catalogue_module, "REST_S", 0.0)
    monkeypatch.setattr(catalogue_module, "FRESH_S", 0.0)
    catalogue = looked(ollama.url)
    ollama.always("tags", Reply(prompt_s=3 * WAIT_S))
    started = time.monotonic()
    for _ in range(10):
        catalogue.names("vision")
    assert WAIT_S <= time.monotonic() - started < 2 * WAIT_S
    assert catalogue._look is not None
    catalogue._look.join(timeout=10)
    ollama.always("tags", Reply(prompt_s=0.05))
    ollama.models["new:latest"] = text_model("new")
    assert "new:latest" in catalogue.names("completion")


def test_a_server_that_is_off_costs_next_to_nothing() -> None:
    catalogue = Catalogue(lambda: Server(url="http://127.0.0.1:9"))
    started = time.monotonic()
    for _ in range(20):
        assert catalogue.names("vision") == []
    assert time.monotonic() - started < WAIT_S + 0.1
