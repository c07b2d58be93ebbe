"""How each kind of server lists, loads and unloads its models."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from image_refinery.llm.errors import (
    BadRequest,
    EndpointMissing,
    LLMError,
    LoadFailed,
    ModelNotFound,
    ServerTimeout,
)
from image_refinery.llm.http import Timeouts
from image_refinery.llm.openai import client as client_module
from scripted_servers import GB, Reply

KINDS = ["router", "llama-server", "lmstudio", "llama-swap", "vllm", "openai"]
LMSTUDIO_VISION, LMSTUDIO_TEXT = "qwen/qwen2.5-vl-7b", "llama-3.2-3b-instruct"
SEER, WRITER = "qwen2.5-vl", "llama-3.2"
VLLM_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def loaded(client: Any) -> list[str]:
    return [model.name for model in client.ps()]


# list


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_costs_no_load(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    assert [model.name for model in client.list()] == [
        model.name for model in server.models.values() if not model.embedding
    ]
    client.ps()
    assert not server.loads and not server.of("load", "chat")
    assert {record.method for record in server.requests} == {"GET"}


@pytest.mark.parametrize("kind", ["router", "llama-server", "lmstudio"])
def test_vision_is_told_and_thinking_is_not(open_kind: Any, kind: str) -> None:
    models = [{"name": "seer", "vision": True}]
    if kind != "llama-server":
        models += [{"name": "writer", "vision": False}]
    client, _ = open_kind(kind, models)
    for model in client.list():
        assert model.lacks("vision") is (model.name == "writer")
        assert not model.lacks("completion") and not model.lacks("thinking")


@pytest.mark.parametrize("kind", ["llama-swap", "vllm", "openai"])
def test_what_a_model_can_is_not_told(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind)
    for model in client.list():
        assert model.capabilities is None and not model.lacks("vision")


def test_sizes_and_contexts_where_they_are_told(open_kind: Any) -> None:
    client, _ = open_kind("lmstudio")
    seer, writer = client.list()
    assert (seer.size_bytes, seer.context_length) == (4 * GB, 32768)
    assert (writer.size_bytes, writer.context_length) == (2 * GB, 131072)
    client, _ = open_kind("llama-server", context=2048)
    assert [(m.size_bytes, m.context_length) for m in client.list()] == [(4 * GB, 2048)]
    client, _ = open_kind("vllm", context=4096)
    assert [(m.size_bytes, m.context_length) for m in client.list()] == [(None, 4096)]
    client, _ = open_kind("router", context=1024, loaded=[SEER])
    assert [(m.name, m.context_length) for m in client.list()] == [(SEER, 8192), (WRITER, None)]


def test_a_model_that_is_loaded_in_lm_studio_has_the_context_of_its_instance(
    open_kind: Any,
) -> None:
    client, server = open_kind("lmstudio", default_context=2048)
    client.load(LMSTUDIO_VISION)
    assert client.find(LMSTUDIO_VISION).context_length == 2048
    assert server.loads == [LMSTUDIO_VISION]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_fetched(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    with pytest.raises(BadRequest, match="cannot download models by its API"):
        client.pull("llava")
    assert not server.requests


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_closed_apart(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind)
    copy = client.copy()
    copy.close()
    assert type(copy) is type(client) and copy.server == client.server
    assert client.list()


# llama-server, one model


def test_one_llama_server_is_loaded_and_stays(open_kind: Any) -> None:
    client, server = open_kind("llama-server")
    client.load(SEER)
    assert loaded(client) == [SEER]
    unloaded = client.unload(SEER)
    assert not unloaded.possible and not unloaded.confirmed and not unloaded.vram_bytes
    assert server.loaded == [SEER] and not server.of("load", "unload")


def test_one_llama_server_that_sleeps_has_nothing_loaded(open_kind: Any) -> None:
    client, server = open_kind("llama-server")
    server.sleeping = True
    assert loaded(client) == []
    assert server.sleeping, "nothing of that wakes it"


def test_the_load_of_one_llama_server_waits_for_its_start(open_kind: Any) -> None:
    client, server = open_kind("llama-server", load_s=0.4)
    started = time.monotonic()
    client.load(SEER)
    assert time.monotonic() - started >= 0.3 and server.loaded == [SEER]


def test_a_start_that_takes_too_long_is_a_sentence(open_kind: Any) -> None:
    client, _ = open_kind("llama-server", load_s=60.0)
    with pytest.raises(ServerTimeout, match=rf'nothing for 0\.3 s while loading "{SEER}"\.'):
        client.load(SEER, timeout_s=0.3)


# A router


def test_a_router_loads_and_unloads(open_kind: Any) -> None:
    client, server = open_kind("router", load_s=0.2, unload_s=0.2)
    client.load(SEER)
    assert server.loads == [SEER] and loaded(client) == [SEER]
    client.load(SEER)
    assert server.loads == [SEER], "it is loaded already"
    unloaded = client.unload(SEER)
    assert unloaded.confirmed and server.loaded == [] and server.unloads == [SEER]
    assert client.unload(SEER).confirmed and len(server.of("unload")) == 1


def test_a_router_is_known_as_one_by_a_new_client(open_kind: Any) -> None:
    """An unload after a cancel is made by a copy, which has listed nothing yet."""
    client, server = open_kind("router", loaded=[SEER])
    with client.copy() as copy:
        unloaded = copy.unload(SEER)
    assert unloaded.possible and unloaded.confirmed and server.unloads == [SEER]


def test_what_a_router_is_loading_can_be_unloaded(open_kind: Any) -> None:
    client, server = open_kind("router", load_s=60.0)
    stop: list[bool] = []
    thread = threading.Thread(target=load_until, args=(client, SEER, stop))
    thread.start()
    server.wait_for("load")
    assert server.wait_until(lambda: loaded(client) == [SEER])
    stop.append(True)
    thread.join(10)
    assert client.unload(SEER).confirmed and loaded(client) == []


def load_until(client: Any, model: str, stop: list[bool]) -> None:
    from image_refinery.llm.errors import Cancelled

    with pytest.raises(Cancelled):
        client.load(model, cancelled=lambda: bool(stop))


def test_a_routers_load_that_fails_is_a_sentence(open_kind: Any) -> None:
    models = [{"name": "broken", "exit_code": 137, "load_s": 0.2}, {"name": "good"}]
    client, server = open_kind("router", models)
    for _ in range(2):
        with pytest.raises(LoadFailed) as raised:
            client.load("broken")
        assert str(raised.value) == (
            f'llama-server at {server.url} could not load "broken" '
            "(its process ended with exit code 137)."
        )
    client.load("good")
    assert server.loaded == ["good"]


def test_a_router_waits_for_a_load_that_another_began(open_kind: Any) -> None:
    client, server = open_kind("router", load_s=0.5)
    with client.copy() as other:
        thread = threading.Thread(target=other.load, args=(SEER,))
        thread.start()
        server.wait_for("load")
        client.load(SEER)
        thread.join(10)
    assert server.loads == [SEER]


def test_a_router_that_began_a_load_after_it_was_listed(open_kind: Any) -> None:
    client, server = open_kind("router", load_s=0.3)
    unloaded = {"id": SEER, "status": {"value": "unloaded"}}
    with client.copy() as other:
        thread = threading.Thread(target=other.load, args=(SEER,))
        thread.start()
        server.wait_for("load")
        server.script("list", Reply(body={"data": [unloaded], "object": "list"}))
        client.load(SEER)  # answered 400 "model is already running"
        thread.join(10)
    assert server.loads == [SEER] and loaded(client) == [SEER]


def test_a_routers_sleeping_model_is_not_loaded_and_needs_no_load(open_kind: Any) -> None:
    client, server = open_kind("router", loaded=[SEER])
    entry = {"id": SEER, "status": {"value": "sleeping"}}
    server.always("list", Reply(body={"data": [entry], "object": "list"}))
    client.load(SEER)
    assert loaded(client) == [] and not server.of("load")


def test_a_router_lists_without_loading(open_kind: Any) -> None:
    """GET /props?model= would load the model."""
    client, server = open_kind("router")
    client.list()
    assert not [record for record in server.requests if record.path == "/props"]
    client.load(SEER)
    props = [record.query for record in server.requests if record.path == "/props"]
    assert props == [{"model": SEER, "autoload": "false"}]
    assert server.loads == [SEER]


@pytest.mark.parametrize("kind", ["router", "lmstudio"])
def test_the_load_of_a_model_that_is_not_there(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind)
    with pytest.raises(ModelNotFound, match='The model "gone" is not installed'):
        client.load("gone")


# LM Studio


def test_lm_studio_never_gets_a_second_instance(open_kind: Any) -> None:
    client, server = open_kind("lmstudio")
    for num_ctx in (4096, 8192):
        client.load(LMSTUDIO_VISION, options={"num_ctx": num_ctx})
    assert server.loaded == [LMSTUDIO_VISION] and len(server.of("load")) == 1
    assert server.of("load")[0].fields["context_length"] == 4096
    assert client.ps()[0].context_length == 4096


def test_lm_studio_loads_beside_a_model_of_somebody_else(open_kind: Any) -> None:
    client, server = open_kind("lmstudio", loaded=[LMSTUDIO_TEXT])
    client.load(LMSTUDIO_VISION)
    assert set(loaded(client)) == {LMSTUDIO_TEXT, LMSTUDIO_VISION}
    unloaded = client.unload(LMSTUDIO_VISION)
    assert unloaded.confirmed and unloaded.vram_bytes == 4 * GB
    assert server.loaded == [LMSTUDIO_TEXT]


def test_lm_studios_unload_ends_every_instance_of_the_model(open_kind: Any) -> None:
    import requests

    client, server = open_kind("lmstudio")
    for _ in range(2):
        body = {"model": LMSTUDIO_VISION}
        requests.post(f"{server.url}/api/v1/models/load", json=body, timeout=10)
    assert server.loaded == [LMSTUDIO_VISION, f"{LMSTUDIO_VISION}:2"]
    assert client.unload(LMSTUDIO_VISION).confirmed and server.loaded == []


def test_lm_studios_load_may_take_longer_than_a_quick_call(open_kind: Any) -> None:
    client, server = open_kind("lmstudio", load_s=1.0, timeouts=Timeouts(quick_s=0.3))
    client.load(LMSTUDIO_VISION)
    assert server.loaded == [LMSTUDIO_VISION]


def test_lm_studios_load_that_fails_is_a_sentence(open_kind: Any) -> None:
    client, _ = open_kind("lmstudio", [{"name": "broken", "exit_code": 1}])
    with pytest.raises(LoadFailed, match=r'^LM Studio at http.* could not load "broken" \(Failed'):
        client.load("broken")


def test_an_lm_studio_without_the_new_api_is_a_sentence(open_kind: Any) -> None:
    """Before 0.4 it answers 200 to the unknown path."""
    client, server = open_kind("lmstudio")
    said = {"error": "Unexpected endpoint or method. (GET /api/v1/models)"}
    server.always("list", Reply(body=said))
    with pytest.raises(EndpointMissing, match="lacks a part of the API of LM Studio"):
        client.list()


# llama-swap


def test_llama_swap_loads_by_the_first_request(open_kind: Any) -> None:
    client, server = open_kind("llama-swap")
    client.load(SEER)
    assert not server.loads and not server.requests


@pytest.mark.parametrize("old", [False, True])
def test_llama_swap_unloads_the_model(open_kind: Any, old: bool) -> None:
    client, server = open_kind("llama-swap", old=old, loaded=[SEER], unload_s=0.2)
    assert loaded(client) == [SEER]
    assert client.unload(SEER).confirmed and server.unloads == [SEER]
    paths = [record.path for record in server.of("unload")]
    assert paths[-1] == ("/unload" if old else f"/api/models/unload/{SEER}")


def test_llama_swap_leaves_the_models_of_others(open_kind: Any) -> None:
    client, server = open_kind("llama-swap", loaded=[SEER, WRITER])
    assert client.unload(SEER).confirmed and server.loaded == [WRITER]


def test_an_old_llama_swap_unloads_nothing_where_others_have_models(
    open_kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "UNLOAD_TIMEOUT_S", 0.2)
    client, server = open_kind("llama-swap", old=True, loaded=[SEER, WRITER])
    assert not client.unload(SEER).confirmed
    assert sorted(server.loaded) == sorted([SEER, WRITER])


def test_a_name_with_a_slash_is_unloaded(open_kind: Any) -> None:
    client, server = open_kind("llama-swap", [{"name": "qwen/vl 7b"}], loaded=["qwen/vl 7b"])
    assert client.unload("qwen/vl 7b").confirmed and server.loaded == []


# vLLM


def test_vllm_sleeps_only_where_its_entry_says_so(open_kind: Any) -> None:
    for unload in (None, False):
        client, server = open_kind("vllm", sleep_mode=True, entry={"unload": unload})
        assert not client.unload(VLLM_MODEL).possible
        assert server.loaded == [VLLM_MODEL] and not server.of("unload")
    client, server = open_kind("vllm", sleep_mode=True, entry={"unload": True})
    assert client.unload(VLLM_MODEL).confirmed
    assert server.sleeping and loaded(client) == []
    (request,) = server.of("unload")
    assert request.query == {"level": "1"}


def test_vllm_is_woken_up(open_kind: Any) -> None:
    client, server = open_kind("vllm", sleep_mode=True, entry={"unload": True})
    client.load(VLLM_MODEL)
    assert not server.of("load"), "it is awake"
    client.unload(VLLM_MODEL)
    client.load(VLLM_MODEL)
    assert loaded(client) == [VLLM_MODEL] and len(server.of("load")) == 1


def test_a_vllm_that_cannot_sleep_says_how_it_could(open_kind: Any) -> None:
    client, _ = open_kind("vllm", entry={"unload": True})
    with pytest.raises(LLMError, match="without --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"):
        client.unload(VLLM_MODEL)
    assert loaded(client) == [VLLM_MODEL]


# Any other


def test_a_plain_server_cannot_say_and_cannot_unload(open_kind: Any) -> None:
    client, server = open_kind("openai", entry={"unload": True})
    client.load(SEER)
    assert loaded(client) == [] and not client.unload(SEER).possible
    assert not server.requests


@pytest.mark.parametrize("kind", ["router", "lmstudio", "llama-swap"])
def test_an_unload_without_an_end_is_not_confirmed(
    open_kind: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "UNLOAD_TIMEOUT_S", 0.2)
    client, server = open_kind(kind)
    name = next(iter(server.models))
    server.always("unload", Reply(body={"success": True}))
    with client.copy() as other:
        if kind == "llama-swap":
            from image_refinery.llm.backend import collect

            collect(other.chat(name, [{"role": "user", "content": "x"}]))
        else:
            other.load(name)
    unloaded = client.unload(name)
    assert not unloaded.confirmed and unloaded.possible and unloaded.vram_bytes == 0
