"""Every fault of servers with OpenAI's API, with every node that asks a server, and `batch`.

Where the six kinds behave alike they take turns, so that each fault meets all of them. Where they
differ, each kind meets each fault that it can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fault_cases import KINDS, OPENAI, OPENAI_BY_KIND, OPENAI_CHAT, Case, combinations
from fault_harness import Harness, Stage, check, nothing_left

if TYPE_CHECKING:
    from scripted_servers import ScriptedServer

SEEN, WRITTEN = "A red circle on a white background.", "A red disc floats on snow."
SINGLE = ("llama-server", "vllm")
"""The kinds with one model."""
KEPT_LOADED = ("llama-server", "openai")
"""The kinds that cannot unload."""


def _models(kind: str) -> list[dict[str, Any]]:
    """Return the models of a server of that kind."""
    if kind in SINGLE:
        return [{"name": "both", "vision": True, "answer": _answer}]
    seeing = {"name": "seeing", "vision": True, "answer": SEEN}
    return [seeing, {"name": "writing", "answer": WRITTEN}]


def _answer(request: Any) -> str:
    """Return what a model answers that describes and rewrites."""
    return SEEN if request.images else WRITTEN


class OpenAIStage(Stage):
    """A scripted server (tests/scripted_servers.py), as image-refinery.toml names it."""

    seen, written = SEEN, WRITTEN

    def __init__(self, kind: str, server: ScriptedServer) -> None:
        self.kind = kind
        self.server = server
        self.shown = (server.url, f"http://127.0.0.1:{server.default_port}")
        self.vision, self.text = next(iter(server.models)), list(server.models)[-1]

    @property
    def config(self) -> str:
        """image-refinery.toml with this server as the default."""
        kind = "llama-server" if self.kind == "router" else self.kind
        unload = "unload = true\n" if self.kind == "vllm" else ""  # else it is never put to sleep
        table = f'[servers.box]\nurl = "{self.server.url}"\nkind = "{kind}"\n{unload}'
        return f'default = "box"\n{table}'

    def kind_of(self, method: str, path: str, body: Any) -> str:
        from scripted_servers import kind_of

        return kind_of(method, path.partition("?")[0])

    def prepare(self, case: Case, good: int) -> None:
        from scripted_servers import Reply

        if self.kind == "vllm" and case.kind == "load":
            self._unload_all()
        if case.kind != "server":
            self.server.script(case.kind, *[Reply()] * good)  # type: ignore[arg-type]
            self.server.always(case.kind, case.fault)  # type: ignore[arg-type]
        elif case.fault == "refused":
            self.server.close()
        elif case.fault == "restarts_once":
            self.server.script("chat", "drop")
        elif case.fault == "wrong_key":
            self.server.api_key = "another"
        elif case.fault == "model_missing":
            self.vision = self.text = "missing"
        elif case.fault == "load_fails":
            self._change_models(exit_code=1)
        elif case.fault == "no_vision":
            self._change_models(vision=False)

    def repair(self, case: Case) -> None:
        self.server.forget_script()
        self.server.api_key = None
        self.vision, self.text = next(iter(self.server.models)), list(self.server.models)[-1]
        if case.fault == "refused":
            self.server.start()
        self._change_models(exit_code=0)
        if case.fault == "no_vision":
            self._change_models(vision=True)

    def _change_models(self, **fields: Any) -> None:
        changed = {name: replace(model, **fields) for name, model in self.server.models.items()}
        self.server.models = changed
        for instance in self.server._instances.values():
            instance.model = changed[instance.model.name]
        if self.kind in SINGLE:
            (self.server.model,) = changed.values()  # type: ignore[attr-defined]

    def _unload_all(self) -> None:
        with self.server._changed:
            for instance in list(self.server._instances.values()):
                self.server._begin_unload(instance)
            self.server._settle()

    def chats(self) -> int:
        return len(self.server.of("chat"))

    def connections(self) -> Sequence[Any]:
        return list(self.server._http.sockets) if self.server._http else []

    def check_models(self, case: Case) -> None:
        if case.kind != "unload" and self.kind not in KEPT_LOADED and self._was_used(case):
            assert self.server.wait_until(lambda: not self.loaded(), 5)

    def _was_used(self, case: Case) -> bool:
        """Whether the run came to its model: vLLM has loaded its own before the run."""
        return self.kind != "vllm" or self.chats() > 0

    def load(self) -> None:
        with self.server._changed:
            if self.vision not in self.server._instances:
                self.server._begin_load(self.server.models[self.vision], self.vision, load_s=0.0)

    def loaded(self) -> Sequence[str]:
        return self.server.loaded if self.kind not in KEPT_LOADED else ()


@pytest.mark.usefixtures("nothing_is_kept")  # the next run asks again
@pytest.mark.parametrize(
    ("case", "user", "on_error", "kind"),
    [
        *combinations(OPENAI, KINDS, thin=6),
        *combinations(OPENAI_BY_KIND, KINDS, thin=6),
    ],
)
def test_fault(
    make_server: Callable[..., ScriptedServer],
    case: Case,
    user: str,
    on_error: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.delenv("OLLAMA_BASE_URL", raising=False)
    settings = {"sleep_mode": True} if kind == "vllm" else {}
    stage = OpenAIStage(kind, make_server(kind, _models(kind), **settings))
    harness = Harness(stage, monkeypatch, tmp_path, record_property)
    harness.config.write_text(stage.config)
    with nothing_left(stage, harness.temporary, ["scripted-server"]):
        check(harness, case, user, on_error, kind)


def test_the_matrix_holds_every_fault_there_is() -> None:
    from scripted_servers import FAULTS

    assert set(OPENAI_CHAT) == set(FAULTS)
