"""One real ComfyUI for all tests of this folder, and a scripted Ollama that it talks to."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


def _load(name: str, file: Path) -> ModuleType:
    """Import a helper that is no test module, once, under a name that tests can import."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


faulty_ollama = _load("faulty_ollama", HERE.parent / "faulty_ollama.py")
host = _load("host", HERE / "host.py")
_load("core_checkpoint", HERE / "core_checkpoint.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.comfyui)


@pytest.fixture(scope="session")
def found_comfyui():
    """The ComfyUI on this machine, or a skip that says where it was looked for."""
    found = host.find_host()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def ollama_port() -> int:
    """ComfyUI learns the server's address when it starts; each test listens there anew."""
    return host.free_port()


@pytest.fixture(scope="session")
def comfyui(found_comfyui, ollama_port, tmp_path_factory) -> Iterator["host.ComfyHost"]:
    """A running ComfyUI with the pack and the probe pack."""
    # One thread: the tiny models gain nothing by more, and where other programs want the cores
    # too, torch's threads wait for one another at each of ten thousand small steps.
    env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{ollama_port}", "OMP_NUM_THREADS": "1"}
    with host.ComfyHost(found_comfyui, tmp_path_factory.mktemp("comfyui"), env=env) as running:
        yield running


@pytest.fixture
def ollama(ollama_port) -> Iterator["faulty_ollama.FaultyOllama"]:
    """A scripted Ollama where ComfyUI expects one: llava sees, llama3.2 writes."""
    with faulty_ollama.FaultyOllama(port=ollama_port) as server:
        yield server


@pytest.fixture(autouse=True)
def no_answer_is_kept_from_another_test(request: pytest.FixtureRequest) -> None:
    """Each test begins without kept answers, in the ComfyUI that they share."""
    if "comfyui" in request.fixturenames:
        base = request.getfixturevalue("comfyui").base
        for file in (base / "user" / "image-refinery").glob("answers.db*"):
            file.unlink()
