"""Who leaves the GPU, and when; each action is safe where there is nothing to free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import memory
from image_refinery.captioning.options import StageOptions
from image_refinery.ollama_client import Model, OllamaClient, Server

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

GB = 10**9
ROOT = Path(__file__).resolve().parents[2]


class FakeManager(SimpleNamespace):
    """comfy.model_management with one model of 3 GB, and 6 GB of VRAM free beside it."""

    def __init__(self, free: int = 6 * GB) -> None:
        super().__init__()
        self.free = free
        self.models = [SimpleNamespace(loaded_size=lambda: 3 * GB)]
        self.calls: list[str] = []

    def loaded_models(self) -> list[Any]:
        return self.models

    def unload_all_models(self) -> None:
        self.calls.append("unload")
        self.models = []

    def soft_empty_cache(self) -> None:
        self.calls.append("empty")

    def get_torch_device(self) -> str:
        return "cuda:0"

    def get_free_memory(self, device: str) -> int:
        return self.free


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    fake = FakeManager()
    monkeypatch.setitem(sys.modules, "comfy.model_management", fake)
    return fake


def test_nothing_to_free_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "comfy.model_management", raising=False)
    assert memory.free_comfyui().bytes == 0
    assert memory.free_cuda_cache().bytes == 0
    with OllamaClient(Server(url="http://127.0.0.1:9")) as client:
        assert memory.unload_model(client, "llava").bytes == 0


def test_freeing_imports_neither_torch_nor_comfy() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('image_refinery', r'{ROOT}/__init__.py', "
        f"submodule_search_locations=[r'{ROOT}'])\n"
        "package = sys.modules['image_refinery'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(package)\n"
        "from image_refinery import memory\n"
        "memory.free_comfyui(), memory.free_cuda_cache()\n"
        "print([name for name in ('torch', 'comfy') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_comfyuis_models_are_freed_once_and_counted(manager: FakeManager) -> None:
    assert memory.free_comfyui().bytes == 3 * GB
    assert memory.free_comfyui().bytes == 0
    assert manager.calls == ["unload", "empty"] * 2


def test_ollamas_model_is_freed_once_and_counted(ollama: FaultyOllama) -> None:
    with OllamaClient(Server(url=ollama.url)) as client:
        client.load("llava")
        loaded = client.ps()[0].vram_bytes
        freed = memory.unload_model(client, "llava")
        assert freed.bytes == loaded > 0
        assert memory.unload_model(client, "llava").bytes == 0
    assert ollama.unloads == {"llava:latest": 1}


LOCAL = Server(url="http://127.0.0.1:11434")
REMOTE = Server(url="http://192.0.2.7:11434")
CLOUD = Model(name="gpt-oss:120b-cloud", remote_host="https://ollama.com:443")
PLAIN = Model(name="llava:latest", size_bytes=4 * GB)


@pytest.mark.parametrize(
    ("server", "model", "shares"),
    [
        (LOCAL, PLAIN, True),
        (REMOTE, PLAIN, False),
        (LOCAL, CLOUD, False),
        (Server(url=LOCAL.url, shares_gpu=False), PLAIN, False),
        (Server(url=REMOTE.url, shares_gpu=True), PLAIN, True),
        (Server(url=REMOTE.url, shares_gpu=True), CLOUD, False),
        (Server(url="http://host.docker.internal:11434"), PLAIN, True),
    ],
)
def test_which_servers_share_the_gpu(
    manager: FakeManager, server: Server, model: Model, shares: bool
) -> None:
    assert memory.shares_gpu(server, model) is shares
    with OllamaClient(server) as client:
        memory.StageMemory().before(client, model, StageOptions())
    assert ("unload" in manager.calls) is shares


@pytest.mark.parametrize(
    ("free_memory", "free", "frees"),
    [
        ("always", 100 * GB, True),
        ("never", 0, False),
        ("when needed", 6 * GB, False),
        ("when needed", 4 * GB, True),
    ],
)
def test_free_memory_does_what_it_says(
    manager: FakeManager, free_memory: str, free: int, frees: bool
) -> None:
    manager.free = free
    with OllamaClient(LOCAL) as client:
        memory.StageMemory().before(client, PLAIN, StageOptions(free_memory=free_memory))
    assert ("unload" in manager.calls) is frees


def test_an_unload_that_failed_is_not_logged_as_one(
    ollama: FaultyOllama, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ollama.always("unload", "bad_gateway")
    with OllamaClient(Server(url=ollama.url)) as client:
        client.load("llava")
        memory.StageMemory().after(client, client.list()[0], cancelled=lambda: False)
    assert 'Could not unload Ollama\'s model "llava:latest": ' in caplog.text
    assert "freed" not in caplog.text and "0 B" not in caplog.text


def test_the_log_names_the_kind_of_server(
    ollama: FaultyOllama, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with OllamaClient(Server(url=ollama.url, kind="vllm")) as client:
        client.load("llava")
        memory.StageMemory().after(client, client.list()[0], cancelled=lambda: False)
        ollama.always("unload", "bad_gateway")
        client.load("llava")
        memory.StageMemory().after(client, client.list()[0], cancelled=lambda: False)
    what = 'vLLM\'s model "llava:latest": '
    assert f"Image Refinery freed {what}" in caplog.text
    assert f"Could not unload {what}" in caplog.text
