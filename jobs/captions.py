"""Describe the images of a job, and rewrite the descriptions, chunk by chunk."""

from __future__ import annotations

import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from .._version import __version__
from ..captioning.events import Watcher
from ..captioning.images import file_source
from ..captioning.job import Caption, Job
from ..captioning.kept import FILE_NAME, KeptAnswers
from ..captioning.options import fold_seed
from ..captioning.placeholders import used_in
from ..captioning.run import FATAL_ERRORS, Memory, run
from ..files import UnreadableImage, about_file
from ..llm.backend import Backend
from ..llm.errors import AccessDenied, LLMError, OutOfMemory, ServerTimeout
from .flags import flags_of
from .items import Item
from .outputs import Outputs
from .rows import DONE, FAILED, Row, RowLog

CHUNK = 250
"""Images between two swaps of models: at 20 s for a swap and 4 s an image, 2 % of the time."""

_UNBOUNDED = 2**62
_MAY_BE_THE_IMAGE = (AccessDenied, OutOfMemory, ServerTimeout)
"""Errors of a server that an image may have caused: it has a row, so that no run begins with it."""


class Worker(NamedTuple):
    """A server, or a pair of them, that takes chunks."""

    name: str
    vision: Backend
    text: Backend | None
    memory: Memory


@dataclass
class Progress:
    """How far a run is. `lock` guards it: each worker counts.

    Attributes:
        counts: rows by their status.
        by_worker: rows by the worker that wrote them.
        errors: what ended a worker, by its name.
        unwritten: caption files that could not be written, and why.
    """

    total: int
    counts: Counter[str] = field(default_factory=Counter[str])
    by_worker: Counter[str] = field(default_factory=Counter[str])
    errors: dict[str, LLMError] = field(default_factory=dict[str, LLMError])
    unwritten: list[str] = field(default_factory=list[str])
    lock: Lock = field(default_factory=Lock)


def run_captions(
    items: Sequence[Item],
    job: Job,
    workers: Sequence[Worker],
    folder: Path,
    outputs: Outputs,
    *,
    watcher: Callable[[Worker], Watcher],
    seed: int = 0,
    chunk: int = CHUNK,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Work through the items; return what became of them.

    Each result is a row before anything else sees it. A server that fails for every image ends its
    worker; its chunk goes back, for the others or for the next run.

    Args:
        job: without images: their prompts are those of every image.
        folder: the job's directory, which the caller has locked.
        watcher: returns what follows and cancels a worker's run.
        seed: of the job; each image has its own, from this and its id.
        progress: called after each row.

    Raises:
        Cancelled: a watcher cancelled. All rows that were finished are there.
    """
    chunks = deque([items[at : at + chunk] for at in range(0, len(items), chunk)])
    state = Progress(total=len(items))

    def work(worker: Worker) -> None:
        with closing(RowLog(folder, worker.name)) as log:
            while worker.name not in state.errors:
                try:
                    taken = chunks.popleft()
                except IndexError:
                    return
                rest = _work_on(
                    taken, job, worker, log, kept, outputs, watcher(worker), seed, state, progress
                )
                if rest:
                    chunks.append(rest)

    with (
        closing(KeptAnswers(folder / FILE_NAME, max_bytes=_UNBOUNDED)) as kept,
        ThreadPoolExecutor(len(workers), "image-refinery-job") as threads,
    ):
        for _ in threads.map(work, workers):
            pass
    return state


def _work_on(
    items: Sequence[Item],
    job: Job,
    worker: Worker,
    log: RowLog,
    kept: KeptAnswers,
    outputs: Outputs,
    watcher: Watcher,
    seed: int,
    state: Progress,
    progress: Callable[[Progress], None],
) -> list[Item]:
    """Work on a chunk; return the items that were not asked, as their server failed before."""
    rest: list[Item] = []
    ended: LLMError | None = None
    done = 0

    def finished(index: int, caption: Caption) -> None:
        nonlocal ended, done
        item, error = items[index], caption.final.error
        if isinstance(error, FATAL_ERRORS):
            with state.lock:
                # What follows an error that ends a stage has the same error, and was not sent.
                first = error is not ended
                ended = error
            if not (first and isinstance(error, _MAY_BE_THE_IMAGE)):
                rest.append(item)
                return
        row = row_of(item, caption, worker.name)
        log.write(row)
        problem = ""
        if row["status"] == DONE and "txt" in outputs.kinds:
            try:
                outputs.write_txt(item, row)
            except OSError as failure:
                problem = f"{outputs.txt(item)} cannot be written ({failure.strerror or failure})."
        with state.lock:
            done += row["status"] == DONE
            state.counts[row["status"]] += 1
            state.by_worker[worker.name] += 1
            if problem:
                state.unwritten.append(problem)
            progress(state)

    about: list[dict[str, str]] = []
    if used_in([*job.instructions, *job.custom_prompts]):
        about = [_about(item) for item in items]
    run(
        worker.vision,
        [file_source(item.path) for item in items],
        replace(job, seeds=[seed_of(item, seed) for item in items], about=about),
        text_backend=worker.text,
        memory=worker.memory,
        watcher=watcher,
        kept=kept,
        finished=finished,
    )
    if ended and not (done and isinstance(ended, _MAY_BE_THE_IMAGE)):
        state.errors[worker.name] = ended
    return rest


def _about(item: Item) -> dict[str, str]:
    try:
        return about_file(item.path)
    except UnreadableImage:
        return {}  # which is what its row will say


def seed_of(item: Item, seed: int) -> int:
    """Return an image's seed: from its id, as its place in the list may change between runs."""
    return fold_seed(seed ^ (zlib.crc32(item.id.encode("utf-8", "surrogatepass")) << 32))


def row_of(item: Item, caption: Caption, worker: str) -> Row:
    """Return the row for a caption or its error."""
    row: Row = {"id": item.id, "at": round(time.time(), 3), "by": worker, "version": __version__}
    if caption.final.error is not None:
        error = caption.final.error
        kind = {"kind": type(error).__name__, "code": error.code, "message": str(error)}
        return row | {"status": FAILED, "error": kind}
    described, last = caption.description.answer, caption.final.answer
    assert described is not None and last is not None
    row |= {"status": DONE, "text": last.text, "flags": flags_of(last)}
    row |= {"description": described.text, "vision_model": described.model}
    return row if last is described else row | {"text_model": last.model}


def to_do(items: Iterable[Item], statuses: Callable[[str], str], *, retry: bool) -> list[Item]:
    """Return the items that have no row, or with `retry` a failed one."""
    wanted = ("", FAILED) if retry else ("",)
    return [item for item in items if statuses(item.id) in wanted]
