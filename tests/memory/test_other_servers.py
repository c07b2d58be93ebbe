"""What the memory policy does on servers that others use as well."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.captioning.job import Job, Stage
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import run
from image_refinery.llm.backend import collect
from image_refinery.llm.errors import Cancelled
from image_refinery.llm.openai.client import OpenAIClient
from image_refinery.llm.openai.kinds import VLLM, LlamaServer, LlamaSwap, LMStudio
from image_refinery.llm.servers import Server
from image_refinery.memory import StageMemory, finish_pending_unloads
from PIL import Image

if TYPE_CHECKING:
    from scripted_servers import ScriptedServer

GB = 10**9
CLIENTS: dict[str, type[OpenAIClient]] = {
    "router": LlamaServer,
    "llama-server": LlamaServer,
    "lmstudio": LMStudio,
    "llama-swap": LlamaSwap,
    "vllm": VLLM,
    "openai": OpenAIClient,
}
UNLOADING = ["router", "lmstudio", "llama-swap"]
SETTINGS = StageOptions()
Opened = tuple[OpenAIClient, "ScriptedServer"]


class FakeManager(SimpleNamespace):
    """comfy.model_management with one model of 3 GB."""

    def __init__(self) -> None:
        super().__init__()
        self.models = [SimpleNamespace(loaded_size=lambda: 3 * GB)]
        self.unloads = 0

    def loaded_models(self) -> list[Any]:
        return self.models

    def unload_all_models(self) -> None:
        self.unloads += 1
        self.models = []

    def soft_empty_cache(self) -> None:
        pass

    def get_torch_device(self) -> str:
        return "cuda:0"

    def get_free_memory(self, device: str) -> int:
        return 6 * GB

    def get_total_memory(self, device: str) -> int:
        return 24 * GB


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    fake = FakeManager()
    monkeypatch.setitem(sys.modules, "comfy.model_management", fake)
    return fake


@pytest.fixture
def open_kind(make_server: Callable[..., ScriptedServer]) -> Iterator[Callable[..., Opened]]:
    """open_kind("lmstudio", entry={"unload": True}, loaded=[...]): a client and its server."""
    with ExitStack() as clients:

        def open_one(kind: str, entry: dict[str, Any] | None = None, **settings: Any) -> Opened:
            double = make_server(kind, **settings)
            name = "llama-server" if kind == "router" else kind
            server = Server(url=double.url, kind=name, **(entry or {}))
            return clients.enter_context(CLIENTS[kind](server)), double

        yield open_one


def first(server: Any) -> str:
    return next(iter(server.models))


def describe(client: Any, server: Any, **more: Any) -> None:
    job = Job(vision=Stage(model=first(server)))
    image = Image.new("RGB", (32, 32), "red")
    (caption,) = run(client, [lambda: image], job, **({"memory": StageMemory()} | more))
    assert caption.description.text == "A red image.", caption.description.error


@pytest.mark.parametrize("kind", UNLOADING)
def test_what_the_run_loaded_is_unloaded(open_kind: Any, kind: str, manager: FakeManager) -> None:
    client, server = open_kind(kind)
    describe(client, server)
    assert server.loads == server.unloads == [first(server)]
    assert manager.unloads == 1, "ComfyUI's models made room"


@pytest.mark.parametrize("kind", UNLOADING)
def test_a_model_that_was_loaded_stays(open_kind: Any, kind: str, manager: FakeManager) -> None:
    client, server = open_kind(kind)
    describe(client, server, memory=None)
    assert server.loaded == [first(server)]
    describe(client, server)
    assert server.loaded == [first(server)] and not server.unloads and not server.of("unload")
    assert manager.unloads == 0, "it needs no room"


@pytest.mark.parametrize("kind", ["router", "lmstudio"])
def test_a_run_unloads_its_own_and_leaves_the_others(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    other = list(server.models)[1]
    client.load(other)
    describe(client, server)
    assert server.loaded == [other] and server.unloads == [first(server)]


@pytest.mark.parametrize("kind", UNLOADING)
@pytest.mark.parametrize("unload", [True, False])
def test_the_entry_of_the_server_decides(open_kind: Any, kind: str, unload: bool) -> None:
    client, server = open_kind(kind, entry={"unload": unload})
    name = first(server)
    describe(client, server)
    assert server.loaded == ([] if unload else [name])
    describe(client, server, memory=None)
    describe(client, server)
    assert server.loaded == ([] if unload else [name]), "also where it was loaded before"


@pytest.mark.parametrize("kind", UNLOADING)
def test_on_a_server_with_a_gpu_of_its_own_models_stay(
    open_kind: Any, kind: str, manager: FakeManager
) -> None:
    client, server = open_kind(kind, entry={"shares_gpu": False})
    describe(client, server)
    assert server.loaded == [first(server)] and not server.of("unload")
    assert manager.unloads == 0
    client, server = open_kind(kind, entry={"shares_gpu": False, "unload": True})
    describe(client, server)
    assert server.loaded == []


def test_another_machine_has_a_gpu_of_its_own() -> None:
    memory = StageMemory()
    for kind, client_class in CLIENTS.items():
        name = "llama-server" if kind == "router" else kind
        with client_class(Server(url="http://192.0.2.7:1", kind=name)) as client:
            assert memory.room_bytes(client) is None


@pytest.mark.parametrize("kind", ["llama-server", "vllm", "openai"])
def test_a_server_that_cannot_unload_is_left_alone(
    open_kind: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = open_kind(kind)
    describe(client, server)
    assert server.loaded and not server.of("load", "unload")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_vllm_sleeps_after_the_run_where_its_entry_says_so(
    open_kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = open_kind("vllm", sleep_mode=True)
    describe(client, server)
    assert not server.sleeping
    client, server = open_kind("vllm", entry={"unload": True}, sleep_mode=True)
    for _ in range(2):
        describe(client, server)
        assert server.sleeping
    client, server = open_kind("vllm", entry={"unload": True})
    describe(client, server)
    assert "vLLM cannot sleep: it was started without --enable-sleep-mode" in caplog.text


@pytest.mark.parametrize("kind", UNLOADING)
def test_a_model_that_is_kept_loaded_is_not_unloaded(open_kind: Any, kind: str) -> None:
    client, server = open_kind(kind)
    image = Image.new("RGB", (32, 32), "red")
    job = Job(vision=Stage(model=first(server)), keep_loaded_s=60.0)
    run(client, [lambda: image], job, memory=StageMemory())
    assert server.loaded == [first(server)] and not server.of("unload")


@pytest.mark.parametrize("kind", UNLOADING)
def test_a_cancelled_run_unloads_in_the_background(open_kind: Any, kind: str) -> None:
    from image_refinery.captioning.events import Watcher

    class Impatient(Watcher):
        def cancelled(self) -> bool:
            return any(record.tokens_sent > 2 for record in server.of("chat"))

    client, server = open_kind(kind, token_s=0.02)
    server.script("chat", "endless")
    with pytest.raises(Cancelled):
        describe(client, server, watcher=Impatient())
    finish_pending_unloads()
    assert server.loaded == [] and server.unloads == [first(server)]


def test_a_cancelled_load_of_a_router_is_undone(
    open_kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load goes on when its client has left."""
    from image_refinery.captioning.events import Watcher

    class Impatient(Watcher):
        def cancelled(self) -> bool:
            return bool(server.of("load"))

    client, server = open_kind("router", load_s=60.0)
    route = server.route

    def late(record: Any) -> Any:
        if record.kind == "load":
            time.sleep(0.5)  # the cancel comes before the server lists the model
        return route(record)

    monkeypatch.setattr(server, "route", late)
    with pytest.raises(Cancelled):
        describe(client, server, watcher=Impatient())
    finish_pending_unloads()
    assert len(server.of("unload")) == 1 and not client.ps()


@pytest.mark.parametrize("kind", ["lmstudio", "vllm"])
def test_a_cancelled_load_that_goes_on_is_undone(open_kind: Any, kind: str) -> None:
    """Neither lists a model that it is loading."""
    from image_refinery.captioning.events import Watcher

    class Impatient(Watcher):
        def cancelled(self) -> bool:
            return bool(server.of("load"))

    more = {"sleep_mode": True, "entry": {"unload": True}} if kind == "vllm" else {}
    client, server = open_kind(kind, **more)
    client.list()
    client.unload(first(server))
    before = list(server.unloads)
    server.load_s = 60.0
    with pytest.raises(Cancelled):
        describe(client, server, watcher=Impatient())
    looked = len(server.requests)
    assert server.wait_until(lambda: len(server.requests) > looked + 2), "it waits for the load"
    server.finish_loads()
    finish_pending_unloads()
    assert server.loaded == [] and server.unloads == [*before, first(server)]


def test_where_nobody_can_say_what_is_loaded_nothing_is_unloaded(
    open_kind: Any, manager: FakeManager
) -> None:
    client, server = open_kind("llama-swap")
    model = client.list()[0]
    server.always("list", "html_502")
    memory = StageMemory()
    memory.before(client, model, SETTINGS)
    server.forget_script()
    collect(client.chat(model.name, [{"role": "user", "content": "x"}]))
    memory.after(client, model, cancelled=lambda: False)
    assert server.loaded == [model.name] and manager.unloads == 0


def test_the_look_at_what_is_loaded_can_be_cancelled(open_kind: Any) -> None:
    client, server = open_kind("lmstudio")
    model = client.list()[0]
    server.always("list", "hang")
    with pytest.raises(Cancelled):
        StageMemory().before(client, model, SETTINGS, cancelled=lambda: True)


def test_room_is_that_of_comfyuis_device(open_kind: Any, manager: FakeManager) -> None:
    client, _ = open_kind("lmstudio")
    assert StageMemory().room_bytes(client) == 24 * GB
    client, _ = open_kind("lmstudio", entry={"shares_gpu": False})
    assert StageMemory().room_bytes(client) is None
