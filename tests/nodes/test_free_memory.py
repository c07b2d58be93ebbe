"""Free Memory over the stub: the very same value, and only what is ticked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery.ollama_client import OllamaClient, Server

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.free_memory import FreeMemory

    return FreeMemory


@pytest.fixture
def calls() -> list[str]:
    """What ComfyUI's model manager was asked to do."""
    import comfy.model_management as management

    management.calls.clear()
    return management.calls


def free(node: Any, value: Any = "x", **ticked: Any) -> Any:
    nothing = {"comfyui_models": False, "cuda_cache": False, "ollama_models": False}
    return node.execute(value=value, **(nothing | ticked))


def test_any_value_goes_through_as_it_is(node: Any, calls: list[str]) -> None:
    value = object()
    output = free(node, value)
    assert output.result[0] is value
    assert calls == [] and output.ui == {"text": []}
    assert [one.get_io_type() for one in node.define_schema().outputs] == ["*"]


def test_comfyui_s_models_and_the_cache(node: Any, calls: list[str]) -> None:
    output = free(node, comfyui_models=True, cuda_cache=True)
    assert calls == ["unload_all_models", "soft_empty_cache"]
    assert output.ui["text"] == ["ComfyUI's models: 0 B", "CUDA cache: 0 B"]


def test_the_refiner_s_checkpoint_is_closed_and_named(node: Any, checkpoints: Path) -> None:
    from image_refinery.nodes.host.kept import loaded_refiner

    # A copy, which no other test maps.
    shutil.copytree(checkpoints / "tiny_refiner", checkpoints / "mapped")
    shutil.copy2(checkpoints / "tiny_refiner.safetensors", checkpoints / "mapped.safetensors")
    loaded_refiner("mapped.safetensors", "auto").unload()
    assert sys.platform != "linux" or "mapped.safetensors" in Path("/proc/self/maps").read_text()

    assert free(node, comfyui_models=True).ui["text"] == [
        *("ComfyUI's models: 0 B", "mapped.safetensors closed")
    ]
    assert (
        sys.platform != "linux" or "mapped.safetensors" not in Path("/proc/self/maps").read_text()
    )
    (checkpoints / "mapped.safetensors").unlink()  # on Windows only where nothing maps it
    shutil.rmtree(checkpoints / "mapped")
    assert free(node, comfyui_models=True).ui["text"] == ["ComfyUI's models: 0 B"]


def test_all_models_of_the_ollama_server(node: Any, ollama: FaultyOllama, calls: list[str]) -> None:
    with OllamaClient(Server(url=ollama.url)) as client:
        client.load("llava")
        client.load("llama3.2")
    output = free(node, ollama_models=True)
    assert ollama.loaded == [] and calls == []
    said = sorted(output.ui["text"])
    assert [text.rpartition(":")[0] for text in said] == [
        'Ollama\'s model "llama3.2:latest"',
        'Ollama\'s model "llava:latest"',
    ]
    assert free(node, ollama_models=True).ui["text"] == ["Ollama had no models loaded"]


def test_cancel_ends_it(node: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        free(node, ollama_models=True)
    assert not management.processing_interrupted()
