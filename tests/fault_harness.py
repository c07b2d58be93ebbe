"""Runs a case of the fault matrix: what talks to a server, and what must hold after a fault."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from fault_cases import CHECK_SETUP, FREE_MEMORY, ON_ERROR, Case
from image_refinery.llm import errors
from PIL import Image

BOUND_S = 30.0
"""No run may take longer; those that time out wait for less than 1 s in each place."""
SHORT_S, LONG_S = 0.4, 60.0
"""How long to wait for what hangs, and for all else, which a slow machine must not run into."""
ERROR = "Error: "
JOBS = {"Caption Folder": 1, "batch": 2}
"""What works on a folder of two images, and how many answers each image needs."""
FDS = Path("/proc/self/fd")


class Stage(ABC):
    """A family of servers: it fails as a case says, and works again.

    Attributes:
        vision, text: the names of its models.
        seen, written: what they answer.
        options: for each request, by Ollama's names.
        shown: replaces its address in messages, so that each run of the matrix has the same.
    """

    vision: str
    text: str
    seen: str = ""
    written: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    shown: tuple[str, str] = ("", "")

    @abstractmethod
    def kind_of(self, method: str, path: str, body: Any) -> str:
        """Return the kind of a request."""

    @abstractmethod
    def prepare(self, case: Case, good: int) -> None:
        """Fail from now on; where a chat fails, after so many good ones."""

    @abstractmethod
    def repair(self, case: Case) -> None:
        """Work again."""

    @abstractmethod
    def chats(self) -> int:
        """Return how many chats it was asked."""

    @abstractmethod
    def connections(self) -> Sequence[Any]:
        """Return its open connections."""

    @abstractmethod
    def check_models(self, case: Case) -> None:
        """Assert that no model that the run has loaded is loaded."""

    def load(self) -> None:
        """Load the vision model, as another program does."""
        raise NotImplementedError

    def loaded(self) -> Sequence[str]:
        """Return the names of the models that are loaded."""
        return ()

    def is_good(self, user: str, texts: list[str], count: int | None = None) -> bool:
        """Return whether these are the texts of a good run, or its first `count`."""
        good = {
            "LLM Image Refine": [self.seen, self.written],
            "Ollama Process": [self.written],
            "Caption Folder": [self.seen] * 2,
            "batch": [self.written] * 2,
        }.get(user, [self.seen])
        return texts == good[:count]


@dataclass
class Harness:
    """What talks to a server, over the stub of ComfyUI and in folders of the test's own."""

    stage: Stage
    patch: pytest.MonkeyPatch
    folder: Path
    record: Callable[[str, object], None]

    def __post_init__(self) -> None:
        import folder_paths
        import torch
        import tqdm
        from image_refinery.llm import probe, servers
        from image_refinery.llm.openai import client
        from image_refinery.llm.retry import Retries
        from image_refinery.ollama_client import OllamaClient

        self.image = torch.linspace(0, 1, 48 * 64 * 3).reshape(1, 48, 64, 3)
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()
        for kind in ("input", "output", "user"):
            place = self.folder / kind
            place.mkdir()
            self.patch.setattr(folder_paths, f"get_{kind}_directory", lambda it=str(place): it)
        self.config = self.folder / "user" / servers.CONFIG_NAME
        self.patch.setattr(servers, "config_path", lambda: self.config)
        self.patch.setattr(tempfile, "tempdir", str(self.temporary))
        # Each would be waited for in vain, or look beyond the test.
        waits = {"first_pause_s": 0.01, "start_s": 0.1, "limit_s": 30.0}
        for name, seconds in waits.items():
            self.patch.setitem(Retries.__init__.__kwdefaults__, name, seconds)
        self.patch.setitem(OllamaClient.unload.__kwdefaults__, "limit_s", 0.3)
        self.patch.setattr(client, "UNLOAD_TIMEOUT_S", 0.3)
        self.patch.setattr(probe, "PORTS", ())
        self.patch.setattr(tqdm.tqdm, "monitor_interval", 0)  # else its thread stays

    def ask(self, user: str, on_error: str) -> list[str]:
        """Run a node or `batch`; return its texts, errors included, or raise what stops it."""
        if user in JOBS:
            return self._job(user)
        if user == FREE_MEMORY:
            return self._free_memory()
        if user == CHECK_SETUP:
            return self._check_setup()
        return self._node(user, on_error)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of the job, by the names of the images."""
        from image_refinery import jobs

        found = [*self.folder.glob("user/image-refinery/jobs/*"), self.folder / "job"]
        rows = [row for job in found for row in jobs.Rows(job)]
        return sorted(rows, key=lambda row: row["id"])

    def _node(self, user: str, on_error: str) -> list[str]:
        from image_refinery.captioning.options import StageOptions
        from image_refinery.nodes.describe_tiles import DescribeTiles
        from image_refinery.nodes.llm_describe import LLMDescribe
        from image_refinery.nodes.llm_image_refine import LLMImageRefine
        from image_refinery.nodes.ollama_process import OllamaProcess

        options = StageOptions(model_options=self.stage.options)
        seeing = {"image": self.image, "vision_model": self.stage.vision}
        writing = {"text_model": self.stage.text}
        nodes: dict[str, tuple[Any, dict[str, Any]]] = {
            "LLM Image Refine": (
                LLMImageRefine,
                {**seeing, **writing, "user_instructions": "Shorten it."}
                | {"vision_options": options, "text_options": options},
            ),
            "LLM Describe": (LLMDescribe, seeing | {"options": options}),
            "Ollama Process": (
                OllamaProcess,
                writing | {"instructions": "Shorten it.", "text": "A.", "options": options},
            ),
            "Describe Tiles": (DescribeTiles, seeing | {"vision_options": options}),
        }
        node, inputs = nodes[user]
        given = {name: [value] for name, value in inputs.items()}
        result = node.execute(on_error=[on_error], **given).result
        if user in ("Ollama Process", "Describe Tiles"):
            return [str(text) for text in result[0]]
        images, *texts = result
        assert images[0] is self.image
        return [str(text[0]) for text in texts]

    def _job(self, user: str) -> list[str]:
        images = self.folder / "input" / "set"
        if not images.exists():
            images.mkdir()
            for name, color in (("a", "red"), ("b", "blue")):
                Image.new("RGB", (64, 48), color).save(images / f"{name}.png")
        before = {file.name: file.read_bytes() for file in images.glob("*.png")}
        try:
            return self._caption_folder() if user == "Caption Folder" else self._batch(images)
        finally:
            assert before == {file.name: file.read_bytes() for file in images.glob("*.png")}

    def _caption_folder(self) -> list[str]:
        from image_refinery.captioning.options import StageOptions
        from image_refinery.nodes.caption_folder import CaptionFolder

        inputs = {"folder": "set", "vision_model": self.stage.vision, "retry_failed": True}
        inputs["vision_options"] = StageOptions(model_options=self.stage.options)
        result = CaptionFolder.execute(**{name: [value] for name, value in inputs.items()}).result
        return [str(text) for text in result[1]]

    def _batch(self, images: Path) -> list[str]:
        from image_refinery.cli.main import main

        command = ["batch", str(images), "--job", str(self.folder / "job"), "--task", "caption"]
        command += ["--instructions", "Shorten it.", "--vision-model", self.stage.vision]
        command += ["--text-model", self.stage.text, "--chunk", "1", "--retry-failed"]
        if limit := self.stage.options.get("num_predict"):
            command += ["--num-predict", str(limit)]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = main(command)
        texts = [_text(row) for row in self.rows()]
        texts += [line for line in said.getvalue().splitlines() if line.startswith(ERROR)]
        assert code == int(any(text.startswith(ERROR) for text in texts)), said.getvalue()
        return texts

    def _free_memory(self) -> list[str]:
        from image_refinery.nodes.free_memory import FreeMemory

        turned_on = {"comfyui_models": False, "cuda_cache": False, "ollama_models": True}
        output = FreeMemory.execute(value=self.image, **turned_on)
        assert output.result[0] is self.image
        return output.ui["text"]

    def _check_setup(self) -> list[str]:
        from image_refinery.nodes.check_setup import CheckSetup

        (report,) = CheckSetup.execute().result
        return report.partition("Problems:")[2].partition("\nLast")[0].strip().splitlines()


def _text(row: dict[str, Any]) -> str:
    if row["status"] == "done":
        return row["text"]
    return f"{ERROR}{row['error']['message']} ({row['error']['code']})"


def check(harness: Harness, case: Case, user: str, on_error: str, kind: str) -> None:
    """Assert what must hold of a run with a fault, and of the next one."""
    stage = harness.stage
    facts = {"at": case.kind, "fault": case.fault, "user": user, "mode": on_error, "kind": kind}
    for name, value in facts.items():
        harness.record(name, value)
    if user == FREE_MEMORY:
        stage.load()
    before = harness.image.clone()
    # The first image of a folder gets its answers, so that some of them could be lost.
    stage.prepare(case, JOBS.get(user, 0) if case.kind == "chat" else 0)
    raised: errors.LLMError | None = None
    began = time.monotonic()
    with harness.patch.context() as patch:
        _hurry(patch, case, stage)
        try:
            said = harness.ask(user, on_error)
        except errors.LLMError as error:
            raised, said = error, [str(error)]
        if user != FREE_MEMORY:  # its model was loaded before
            stage.check_models(case)
    assert time.monotonic() - began < BOUND_S
    assert (harness.image == before).all()
    if user in (FREE_MEMORY, CHECK_SETUP):
        _check_report(harness, case, said)
    elif case.error is None:
        assert raised is None
        _check_good(harness, case, user, said)
    else:
        _check_error(harness, case, user, on_error, said, raised)
    _check_next(harness, case, user, said)


def _check_good(harness: Harness, case: Case, user: str, said: list[str]) -> None:
    if case.answer:
        answered = said[1:] if user in JOBS else said
        assert answered and all(case.answer in text for text in answered), said
    else:
        assert harness.stage.is_good(user, said), said


def _check_error(
    harness: Harness,
    case: Case,
    user: str,
    on_error: str,
    said: list[str],
    raised: errors.LLMError | None,
) -> None:
    assert case.error is not None
    rows = harness.rows() if user in JOBS else []
    if raised:
        assert type(raised) is case.error
        assert user == "Caption Folder" or on_error == ON_ERROR[1]
    else:
        assert user in JOBS or on_error == ON_ERROR[0]
    done = [_text(row) for row in rows if row["status"] == "done"]
    if user in JOBS:
        assert harness.stage.is_good(user, done, 1 if case.kind == "chat" else 0), rows
    failed = [row["error"] for row in rows if row["status"] != "done"]
    assert all(error["kind"] == case.error.__name__ for error in failed)
    in_rows = [f"{ERROR}{error['message']} ({error['code']})" for error in failed]
    told = said if raised else [text for text in said if text not in done]
    assert told
    for text in told:
        assert raised or text.startswith(ERROR)
        assert "\n" not in text and "Traceback" not in text
        assert raised or f"({case.error.code})" in text
        assert case.words in text or text in in_rows  # a row has the sentence without the advice
    harness.record("said", _shown(harness, told[0] if raised is None else f"{ERROR}{told[0]}"))


def _check_report(harness: Harness, case: Case, said: list[str]) -> None:
    assert said
    if case.error is not None:
        assert all(case.error.code in text and "Traceback" not in text for text in said)
        harness.record("said", _shown(harness, said[0].strip()))


def _check_next(harness: Harness, case: Case, user: str, said: list[str]) -> None:
    stage = harness.stage
    stage.repair(case)
    asked = stage.chats()
    done = sum(row["status"] == "done" for row in harness.rows())
    if user == FREE_MEMORY:
        stage.load()
    again = harness.ask(user, ON_ERROR[1])
    if user == FREE_MEMORY:
        assert len(again) == 1 and not again[0].endswith(")"), again
        assert not _settled(stage.loaded)
    elif user == CHECK_SETUP:
        assert [line.strip() for line in again] == ["none"]
    elif user in JOBS:
        assert again == said if case.error is None else stage.is_good(user, again), again
        assert stage.chats() - asked == (2 - done) * JOBS[user], "what was done is not asked again"
    else:
        assert stage.is_good(user, again), again


def _shown(harness: Harness, text: str) -> str:
    return text.replace(*harness.stage.shown)


def _hurry(patch: pytest.MonkeyPatch, case: Case, stage: Stage) -> None:
    """Wait for `SHORT_S` where the case hangs, and for `LONG_S` everywhere else.

    Where one limit held for all requests, a machine that paused in the work before the one that
    hangs got another error.
    """
    from image_refinery.llm import probe
    from image_refinery.llm.http import Http, Timeouts

    usual = {"connect_s": 0.5, "first_byte_s": LONG_S, "silence_s": LONG_S, "quick_s": LONG_S}
    for name, seconds in usual.items():
        patch.setitem(Timeouts.__init__.__kwdefaults__, name, seconds)
    if case.error is errors.ServerTimeout and case.kind in ("load", "status"):
        patch.setitem(Timeouts.__init__.__kwdefaults__, "first_byte_s", SHORT_S)
    if case.kind == "version":
        patch.setattr(probe, "PROBE_TIMEOUT_S", SHORT_S)
    if "hang" not in case.fault:
        return
    send = Http._lines

    def lines(
        http: Http, method: str, path: str, body: Any, first_s: float, silence_s: float, *rest: Any
    ) -> Iterator[Any]:
        if stage.kind_of(method, path, body) == case.kind:
            # The others send a part first, and must get to it.
            first_s = first_s if case.kind == "chat" and case.fault != "hang" else SHORT_S
            silence_s = SHORT_S
        return send(http, method, path, body, first_s, silence_s, *rest)

    patch.setattr(Http, "_lines", lines)


@contextmanager
def nothing_left(stage: Stage, temporary: Path, ignored: Sequence[str]) -> Iterator[None]:
    """Assert that no thread, connection, descriptor or temporary file of the block stays.

    Args:
        ignored: the names of a scripted server's own threads.
    """
    threads = set(threading.enumerate())
    descriptors = len(os.listdir(FDS)) if FDS.is_dir() else 0
    yield
    assert _settled(lambda: [t.name for t in _new(threads) if t.name not in ignored]) == []
    assert not _settled(stage.connections), "a connection is still open"
    if FDS.is_dir():
        assert _settled(lambda: range(len(os.listdir(FDS)) - descriptors)) == range(0)
    assert list(temporary.iterdir()) == []


def _new(known: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in known]


def _settled(look: Callable[[], Any], limit_s: float = 20.0) -> Any:
    """Return what `look` returns once it is empty, or when the time is up."""
    deadline = time.monotonic() + limit_s
    while (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen
