"""Real llama.cpp with tiny models of our own, and short ways to use the engine."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from image_refinery.llm.backend import Answer, LoadedModel, collect
from image_refinery.llm.llamacpp.backend import EmbeddedEngine
from image_refinery.llm.llamacpp.library import Library
from image_refinery.llm.llamacpp.registry import Registry
from PIL import Image

HERE = Path(__file__).resolve().parent
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


class User:
    """Who uses an engine, with one CPU thread, so that time to load does not depend on the machine.

    Each of its keyword arguments is one of `EmbeddedEngine.chat`, but `images`, which go with the
    text, and `options`, which are added to the usual ones.
    """

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(16, "user")
        self._leaving = threading.Event()

    def close(self) -> None:
        """End what still runs, also where the test failed."""
        self._leaving.set()
        self.engine.registry.close()
        self._threads.shutdown()

    def start(self, model: str, text: str = "hello", **how: Any) -> Generator[str, None, Answer]:
        """Return the pieces of an answer, of which none is asked for yet."""
        message: dict[str, Any] = {"role": "user", "content": text}
        if images := how.pop("images", None):
            message["images"] = images
        how["options"] = self.options(**how.get("options", {}))
        return self.engine.chat(model, how.pop("messages", [message]), **how)

    def chat(self, model: str, text: str = "hello", **how: Any) -> Answer:
        return collect(self.start(model, text, **how))

    def say(self, model: str, text: str = "hello", **how: Any) -> str:
        return self.chat(model, text, **how).text

    def behind(self, model: str, text: str = "hello", **how: Any) -> Future[Answer]:
        """Chat in another thread, as another node does."""
        left = how.pop("cancelled", lambda: False)
        either = lambda: left() or self._leaving.is_set()  # noqa: E731
        return self._threads.submit(self.chat, model, text, cancelled=either, **how)

    def load(self, model: str, **how: Any) -> None:
        how["options"] = self.options(**how.get("options", {}))
        self.engine.load(model, **how)

    def ps(self) -> dict[str, LoadedModel]:
        return {loaded.name.partition(":")[0]: loaded for loaded in self.engine.ps()}

    def pids(self) -> list[int]:
        return [worker.pid for _, _, worker in self.engine.registry.loaded()]

    def pid(self) -> int:
        """The process of the only loaded model."""
        (pid,) = self.pids()
        return pid

    @staticmethod
    def options(**options: Any) -> dict[str, Any]:
        return {"num_thread": 1, "num_predict": 8, "seed": 1, **options}


@pytest.fixture
def make_user(models: Path) -> Iterator[Callable[..., User]]:
    """make_user(library): an engine of the test's own, with nothing loaded."""
    made: list[User] = []

    def make(library: Library | None = None) -> User:
        engine = EmbeddedEngine(library=library or Library([models]), registry=Registry())
        made.append(User(engine))
        return made[-1]

    yield make
    for user in made:
        user.close()


@pytest.fixture
def user(make_user: Callable[..., User]) -> User:
    """An engine of the test's own, with nothing loaded."""
    return make_user()


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[User]:
    """One engine for the tests of a module that do not mind what is loaded."""
    user = User(EmbeddedEngine(library=Library([models]), registry=Registry()))
    yield user
    user.close()


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., Any]:
    """until(condition, what, seconds): wait for a condition or fail."""
    return until


@pytest.fixture(name="runs")
def runs_fixture() -> Callable[[int], bool]:
    """runs(pid): whether a process is there."""
    return runs


@pytest.fixture(scope="session")
def image() -> Callable[..., str]:
    """image("red", size=(64, 64), kind="PNG") -> base64."""

    def make(color: str, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> str:
        file = io.BytesIO()
        Image.new("RGB", size, color).save(file, kind)
        return base64.b64encode(file.getvalue()).decode()

    return make
