"""The part of `image-refinery prove` that describes and rewrites."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from .._setup import scrub
from ..captioning.job import Result
from ..llm.errors import Cancelled, LLMError
from ..memory import StageMemory, shares_gpu
from .describe import make_job, run_on_files
from .progress import TerminalWatcher
from .proof import INSTRUCTIONS, Proof
from .prove_page import texts_of
from .terminal import DESCRIBE, message

if TYPE_CHECKING:
    import threading

    from ..captioning.events import Sent
    from ..captioning.job import Caption
    from ..captioning.options import StageOptions
    from ..llm.backend import Backend, Model
    from ..llm.http import CancelCheck

NUM_PREDICT = 256


class _NotedMemory(StageMemory):
    """Frees memory as always, and notes each load and unload."""

    def __init__(self, proof: Proof) -> None:
        super().__init__()
        self.models: dict[str, dict[str, Any]] = {}
        self._proof = proof

    def before(
        self,
        backend: Backend,
        model: Model,
        settings: StageOptions,
        *,
        cancelled: CancelCheck | None = None,
    ) -> None:
        super().before(backend, model, settings, cancelled=cancelled)
        about = self.models[model.name] = {
            "name": scrub(model.name),
            "size_bytes": model.size_bytes,
            # What rewrites an invented description is no more real than that.
            "stand_in": bool(model.note) or self._proof.is_stand_in("vision"),
            "server": backend.server.product,
            "shares_gpu": shares_gpu(backend.server, model),
        }
        self._proof.timeline.begin(about["name"], "load", stand_in=about["stand_in"])

    def after(self, backend: Backend, model: Model, *, cancelled: CancelCheck) -> None:
        about, timeline = self.models[model.name], self._proof.timeline
        timeline.begin(about["name"], "unload", stand_in=about["stand_in"])
        super().after(backend, model, cancelled=cancelled)
        gone = None
        if not cancelled():
            with suppress(LLMError):
                gone = not any(backend.same_model(one.name, model.name) for one in backend.ps())
        timeline.end(gone=gone)


class _NotingWatcher(TerminalWatcher):
    """Shows the progress as always, and notes when each request was sent and answered."""

    def __init__(
        self,
        proof: Proof,
        memory: _NotedMemory,
        stop: threading.Event,
        described: Callable[[int, Result], None] | None,
    ) -> None:
        super().__init__(stop, described)
        self._proof = proof
        self._memory = memory
        self._photos: list[int] = []
        self._sent: dict[int, float] = {}

    def stage(self, title: str, model: str, count: int) -> None:
        super().stage(title, model, count)
        self._sent.clear()
        # Only what was described is rewritten.
        rows = enumerate(self._proof.rows)
        self._photos = [index for index, row in rows if title == "describe" or texts_of(row)]

    def sent(self, index: int, request: Sent) -> None:
        about = self._memory.models.get(request.model) or {
            "name": scrub(request.model),  # a cloud model: nothing was loaded
            "size_bytes": None,
            "stand_in": False,
            "shares_gpu": False,
        }
        self._proof.models["vision" if self._stage == "describe" else "text"] = about
        self._proof.timeline.begin(about["name"], self._stage, stand_in=about["stand_in"])
        self._sent.setdefault(index, time.monotonic())

    def finished(self, index: int, result: Result) -> None:
        super().finished(index, result)
        if index in self._sent:
            row = self._proof.rows[self._photos[index]]
            row["seconds"][self._stage] = round(time.monotonic() - self._sent[index], 2)


def describe_photos(proof: Proof, server: str, options: argparse.Namespace) -> None:
    """Describe and rewrite; a photograph's error is noted with it.

    Raises:
        Cancelled: Ctrl-C.
    """

    def described(index: int, result: Result) -> None:
        _note_text(proof, index, "description", result)

    def finished(index: int, caption: Caption) -> None:
        if caption.refined is not None and not caption.description.error:
            _note_text(proof, index, "rewrite", caption.refined)

    memory = _NotedMemory(proof)
    job = make_job(
        vision_model=options.vision_model,
        text_model=options.text_model,
        instructions=INSTRUCTIONS,
        num_predict=NUM_PREDICT,
    )
    try:
        run_on_files(
            [photo.path for photo in proof.photos],
            job,
            server=server,
            described=described,
            finished=finished,
            stage_memory=memory,
            make_watcher=partial(_NotingWatcher, proof, memory),
        )
    except Cancelled:
        raise
    except LLMError as error:
        proof.miss(f"No description: {message(error, DESCRIBE)}")
    for text in set.intersection(*(set(row["errors"]) for row in proof.rows)):
        proof.miss(text)  # such as a missing model
        for row in proof.rows:
            row["errors"].remove(text)


def _note_text(proof: Proof, index: int, name: str, result: Result) -> None:
    row = proof.rows[index]
    if result.error is not None:
        row["errors"].append(scrub(f"{name}: {message(result.error, DESCRIBE)}"))
        return
    key = "texts_by_stand_in" if proof.is_stand_in("vision") else "texts"
    row.setdefault(key, {})[name] = result.text
