"""Every fault of a scripted Ollama, with every node that asks a server, and with `batch`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_cases import OLLAMA, OLLAMA_CHAT, Case, combinations
from fault_harness import Harness, Stage, check, nothing_left

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama


class OllamaStage(Stage):
    """A scripted Ollama (tests/faulty_ollama.py)."""

    vision, text = "llava", "llama3.2"
    seen, written = "A red circle on a white background.", "A crimson disc floats on snow."

    def __init__(self, server: FaultyOllama) -> None:
        self.server = server
        self.shown = (server.url, "http://127.0.0.1:11434")
        self._models = dict(server.models)

    def kind_of(self, method: str, path: str, body: Any) -> str:
        from faulty_ollama import kind_of

        return kind_of("", path, body)

    def prepare(self, case: Case, good: int) -> None:
        from faulty_ollama import Reply

        if case.kind == "show":
            self.server.version = "0.20.0"
        if case.kind != "server":
            self.server.script(case.kind, *[Reply()] * good)  # type: ignore[arg-type]
            self.server.always(case.kind, case.fault)  # type: ignore[arg-type]
        elif case.fault == "refused":
            self.server.stop_listening()
        elif case.fault == "restarts_once":
            self.server.script("chat", "reset")
        else:
            field = {"model_vanished": "vanished"}.get(case.fault, case.fault)
            for key, model in list(self.server.models.items()):
                self.server.models[key] = replace(model, **{field: True})

    def repair(self, case: Case) -> None:
        self.server.forget_script()
        self.server.models = dict(self._models)
        if case.fault == "refused":
            self.server.listen_again()
        if case.fault == "never_unloads":
            self.server._residents.clear()

    def chats(self) -> int:
        return len(self.server.of("chat"))

    def connections(self) -> Sequence[Any]:
        return list(self.server._sockets)

    def check_models(self, case: Case) -> None:
        if case.kind == "unload" or case.fault == "never_unloads":
            # It cannot be unloaded, so it must not stay for longer than a run needs between two
            # requests.
            lives = {request.body.get("keep_alive") for request in self.server.of("load", "chat")}
            assert lives == {300}
        else:
            assert self.server.wait_until(lambda: not self.loaded(), 5)

    def load(self) -> None:
        from image_refinery.ollama_client import OllamaClient, Server

        with OllamaClient(Server(url=self.server.url)) as client:
            client.load(self.vision, keep_alive=300)

    def loaded(self) -> Sequence[str]:
        return self.server.loaded


@pytest.mark.usefixtures("nothing_is_kept")  # the next run asks again
@pytest.mark.parametrize(
    ("case", "user", "on_error", "kind"), combinations(OLLAMA, ("Ollama",), thin=3)
)
def test_fault(
    ollama: FaultyOllama,
    case: Case,
    user: str,
    on_error: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    from image_refinery.llm import probe
    from image_refinery.ollama_client import client

    monkeypatch.setattr(client, "_known_by_digest", {})  # what /api/show once said
    monkeypatch.setattr(probe, "_known", {})
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    stage = OllamaStage(ollama)
    harness = Harness(stage, monkeypatch, tmp_path, record_property)
    with nothing_left(stage, harness.temporary, ["faulty-ollama"]):
        check(harness, case, user, on_error, kind)


def test_the_matrix_holds_every_fault_there_is() -> None:
    from faulty_ollama import FAULTS

    assert set(OLLAMA_CHAT) == set(FAULTS)
