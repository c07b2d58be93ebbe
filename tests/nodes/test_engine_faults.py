"""Faults of the embedded engine, with every node that asks a model, and with `batch`.

llama.cpp runs tiny models in worker processes, which are stopped and killed here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from fault_cases import ENGINE, Case, combinations
from fault_harness import ERROR, Harness, Stage, check, nothing_left
from image_refinery.llm.llamacpp import backend, process
from image_refinery.llm.llamacpp.registry import Registry

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no xllamacpp"),
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP"),
]

SIGNALS = {"killed": getattr(signal, "SIGKILL", 0), "terminated": signal.SIGTERM}
WORKERS = {
    "hang": "import time\ntime.sleep(600)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "out_of_memory": "import sys\nsys.exit('0.01 E alloc: failed to allocate buffer of size 9')",
    "silent_end": "import sys\nsys.exit(3)",
}
"""What runs in place of the worker, and never loads a model."""
LATE_S = 0.1
"""How long after a request its worker is killed."""

_good: dict[str, list[str]] = {}
"""The texts of good runs, by what asked: each run with the same seed must have the same."""


class EngineStage(Stage):
    """The embedded engine with models of the test's own."""

    vision, text = "tiny-vision", "tiny"
    options = MappingProxyType({"num_predict": 8})

    def __init__(self, models: Path, folder: Path) -> None:
        self.models = models
        self.folder = folder / "models"
        self.worker = folder / "worker.py"
        self.registry = Registry()
        self.case: Case | None = None
        self.asked = self.good = 0
        self._patch = pytest.MonkeyPatch()
        self._copy_models()

    def _copy_models(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for name in ("tiny", "tiny-vision", "mmproj-tiny-vision"):
            shutil.copy(self.models / f"{name}.gguf", self.folder)

    def kind_of(self, method: str, path: str, body: Any) -> str:
        return "chat" if path.endswith("/chat/completions") else ""

    def prepare(self, case: Case, good: int) -> None:
        self.case, self.good = case, self.asked + good
        if case.kind == "load" and case.fault in WORKERS:
            self.worker.write_text(WORKERS[case.fault])
            self._patch.setattr(process, "_WORKER", self.worker)
        elif case.fault == "no_process":
            self._patch.setattr(sys, "executable", "/no/python")
        elif case.fault == "vanished":
            self.vanish()
        elif case.fault == "no_vision":
            self.vision = self.text
        elif case.kind == "file":
            for name in ("tiny", "tiny-vision"):
                file = self.folder / f"{name}.gguf"
                if case.fault == "damaged":
                    file.write_bytes(file.read_bytes()[:300_000])
                elif case.fault == "no_gguf":
                    file.write_bytes(b"this is no model")

    def repair(self, case: Case) -> None:
        self.case = None
        self._patch.undo()
        self.vision = EngineStage.vision
        self._copy_models()

    def vanish(self) -> None:
        """Remove the models' files."""
        for name in ("tiny", "tiny-vision"):
            (self.folder / f"{name}.gguf").unlink(missing_ok=True)

    def chats(self) -> int:
        return self.asked

    def connections(self) -> Sequence[Any]:
        return ()

    def check_models(self, case: Case) -> None:
        assert self.registry.loaded() == []

    def is_good(self, user: str, texts: list[str], count: int | None = None) -> bool:
        if count is None and not any(text.startswith(ERROR) for text in texts):
            _good.setdefault(user, texts)
        known = _good.get(user)
        return all(texts) if known is None else texts == known[:count]

    def close(self) -> None:
        """End what still runs, also where the test failed."""
        self._patch.undo()
        self.registry.close()


class FaultyEngine(backend.EmbeddedEngine):
    """Does to its files and workers what the stage's case says."""

    stage: EngineStage

    def load(self, model: str, **how: Any) -> None:
        fault = self._fault("file")
        if fault == "vanishes_before_load":
            self.stage.vanish()
        super().load(model, **how)
        if fault == "vanishes_after_load":
            self.stage.vanish()

    def chat(self, model: str, messages: Any, **how: Any) -> Any:
        self.stage.asked += 1
        fault = self._fault("chat") if self.stage.asked > self.stage.good else ""
        ending = SIGNALS.get(fault.partition("_")[0])
        if fault == "context_length":
            messages = [{"role": "user", "content": "long " * 4000}]
        if fault.endswith("_between_tokens"):
            how["options"] = {**how["options"], "num_predict": 15000}
            answer = super().chat(model, messages, **how)
            yield next(answer)
            os.kill(self._pid(), ending or signal.SIGSTOP)
            return (yield from answer)
        if fault in ("hang", "killed", "terminated", "killed_before"):
            super().load(model, options=how["options"])  # also where this is another try
            pid = self._pid()
            if fault == "killed_before":
                os.kill(pid, signal.SIGKILL)
                while self.registry.loaded():
                    time.sleep(0.001)
            else:
                os.kill(pid, signal.SIGSTOP)
                if ending:
                    threading.Timer(LATE_S, _end, (pid, ending)).start()
        return (yield from super().chat(model, messages, **how))

    def _fault(self, kind: str) -> str:
        case = self.stage.case
        return case.fault if case is not None and case.kind == kind else ""

    def _pid(self) -> int:
        ((_, _, worker),) = self.registry.loaded()
        return worker.pid


def _end(pid: int, ending: int) -> None:
    os.kill(pid, ending)
    os.kill(pid, signal.SIGCONT)


@pytest.fixture
def stage(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineStage]:
    staged = EngineStage(models, tmp_path)
    made = type("FaultyEngine", (FaultyEngine,), {"stage": staged})
    monkeypatch.setattr(
        backend, "EmbeddedEngine", lambda *args, **how: made(*args, registry=staged.registry, **how)
    )
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(staged.folder))
    monkeypatch.setenv("OLLAMA_BASE_URL", "embedded")
    yield staged
    staged.close()


@pytest.mark.usefixtures("nothing_is_kept")  # the next run asks again
@pytest.mark.parametrize(
    ("case", "user", "on_error", "kind"), combinations(ENGINE, ("embedded engine",), thin=6)
)
def test_fault(
    stage: EngineStage,
    case: Case,
    user: str,
    on_error: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    harness = Harness(stage, monkeypatch, tmp_path, record_property)
    with nothing_left(stage, harness.temporary, []):
        check(harness, case, user, on_error, kind)
