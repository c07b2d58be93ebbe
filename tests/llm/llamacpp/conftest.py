"""Real llama.cpp with tiny models of our own, and a plain client to speak to the engine."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from image_refinery.llm.llamacpp import EmbeddedServer, Library
from PIL import Image

HERE = Path(__file__).resolve().parent

if "tiny_gguf" not in sys.modules:  # tests/ is not on sys.path, and must not be
    spec = importlib.util.spec_from_file_location("tiny_gguf", HERE / "tiny_gguf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_gguf"] = module
    spec.loader.exec_module(module)

WAIT_S = 20.0
"""Room for a machine that is busy with something else; a test that passes takes a small part."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `embedded` where llama.cpp's binding is not installed."""
    if importlib.util.find_spec("xllamacpp"):
        return
    skip = pytest.mark.skip(reason="xllamacpp is not installed (extra `embedded`)")
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("embedded"):
            item.add_marker(skip)


def until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """Wait for `condition` to hold and return what it returned."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    if sys.platform == "win32":
        listing = subprocess.run(
            ["tasklist", "/FI", f"PID eq {pid}", "/NH"], capture_output=True, text=True, check=True
        )
        return str(pid) in listing.stdout
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no /proc here, or the process has ended since
        return not Path("/proc/self").exists()


class Api:
    """What a client sends, with one thread, so that time to load does not depend on the machine."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.url = server.url
        self._session = requests.Session()
        self._session.trust_env = False
        self._connections: list[socket.socket] = []

    def close(self) -> None:
        self._session.close()
        for connection in self._connections:
            connection.close()

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return self._session.get(self.url + path, timeout=60, **kwargs)

    def post(self, path: str, body: dict[str, Any], **kwargs: Any) -> requests.Response:
        return self._session.post(self.url + path, json=body, timeout=60, **kwargs)

    def chat(self, model: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
        """One whole answer; keyword `options` and others as in Ollama's request."""
        response = self.post("/api/chat", self.body(model, text, **fields, stream=False))
        assert response.status_code == 200, response.text
        return response.json()

    def say(self, model: str, text: str = "hello", **fields: Any) -> str:
        return self.chat(model, text, **fields)["message"]["content"]

    def load(self, model: str, **fields: Any) -> dict[str, Any]:
        return self.chat(model, messages=[], **fields)

    def ps(self) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in self.get("/api/ps").json()["models"]}

    @staticmethod
    def body(model: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
        options = {"num_thread": 1, "num_predict": 8, "seed": 1, **fields.pop("options", {})}
        images = fields.pop("images", None)
        message = {"role": "user", "content": text, **({"images": images} if images else {})}
        return {"model": model, "messages": [message], "options": options, **fields}

    def connect(self) -> socket.socket:
        address = urlsplit(self.url)
        connection = socket.create_connection((address.hostname, address.port), timeout=WAIT_S)
        self._connections.append(connection)
        return connection

    def raw(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request by hand and return the socket, so that a test can close it any time."""
        connection = self.connect()
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n\r\n"
        connection.sendall(head.encode() + payload)
        return connection


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny`, `tiny-vision`, `thinker`, `slow` and the damaged `cut` and `noise`."""
    import tiny_gguf

    folder = tmp_path_factory.mktemp("models")
    tiny_gguf.write_text_model(folder / "tiny.gguf", seed=3)
    tiny_gguf.write_text_model(folder / "tiny-vision.gguf", seed=1)
    tiny_gguf.write_projector(folder / "mmproj-tiny-vision.gguf")
    tiny_gguf.write_text_model(folder / "thinker.gguf", template=tiny_gguf.THINKING_TEMPLATE)
    tiny_gguf.write_text_model(folder / "slow.gguf", width=384, layers=8, heads=6, context=16384)
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:300_000])
    (folder / "noise.gguf").write_bytes(b"this is no model")
    return folder


@pytest.fixture(scope="module")
def shared_api(models: Path) -> Iterator[Api]:
    """One server for the tests of a module that leave it as they find it."""
    with EmbeddedServer(Library([models])) as server:
        api = Api(server)
        yield api
        api.close()


@pytest.fixture
def api(models: Path) -> Iterator[Api]:
    """A server of the test's own, with nothing loaded."""
    with EmbeddedServer(Library([models])) as server:
        api = Api(server)
        yield api
        api.close()


@pytest.fixture
def make_api() -> Iterator[Callable[[EmbeddedServer], Api]]:
    """make_api(server): one more client, or that of a test's own server."""
    made: list[Api] = []

    def make(server: EmbeddedServer) -> Api:
        made.append(Api(server))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    """until(condition, what, seconds): wait for a condition or fail."""
    return until


@pytest.fixture(name="runs")
def runs_fixture() -> Callable[[int], bool]:
    """runs(pid): whether a process is there."""
    return runs


@pytest.fixture(scope="session")
def picture() -> Callable[..., str]:
    """picture("red", size=(64, 64), kind="PNG") -> base64."""

    def make(colour: str, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> str:
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, kind)
        return base64.b64encode(file.getvalue()).decode()

    return make
