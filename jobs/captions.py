"""Describe the images of a job, and rewrite the descriptions, chunk by chunk."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

from .._version import __version__
from ..captioning.events import Watcher
from ..captioning.job import Caption, Job, Result
from ..captioning.kept import FILE_NAME, KeptAnswers
from ..captioning.options import fold_seed
from ..captioning.placeholders import used_in
from ..captioning.run import FATAL_ERRORS, RUN_KEEP_ALIVE_S, Memory, rewrite, run
from ..files import UnreadableImage
from ..llm.backend import Answer, Backend, Model
from ..llm.errors import (
    AccessDenied,
    BadRequest,
    LLMError,
    NoPrompt,
    OutOfMemory,
    ServerTimeout,
    UnusableImage,
)
from .flags import flags_of
from .items import Item
from .outputs import Outputs
from .rows import DONE, FAILED, Row, RowLog, Rows, failure_of
from .schedule import ChunkSizes, Supply

T = TypeVar("T")
_Ask = Callable[["Worker", RowLog, Sequence[T]], Sequence[int]]
"""Works on a chunk; returns the indexes of what its server did not get to."""

_DIGEST_CHARS = 12
"""As Ollama shows it; a row of a million has no room for 64."""
_MAY_BE_THE_IMAGE = (AccessDenied, OutOfMemory, ServerTimeout)
"""Errors of a server that an image may have caused: it has a row, so that no run begins with it."""


class Remote(Protocol):
    """`captioning.run.run` and `rewrite` in a process elsewhere.

    An image of which `finished` hears nothing is asked again.
    """

    def describe(self, items: Sequence[Item], job: Job, **more: Any) -> None:
        """Run a job on images, which are opened there."""
        ...

    def rewrite(self, descriptions: Sequence[Result], job: Job, **more: Any) -> None:
        """Rewrite descriptions."""
        ...


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A server that works on a job.

    Attributes:
        name: of the server.
        vision: for descriptions; None: other workers describe.
        text: for rewrites; None: other workers rewrite.
        models: its models by their stage, "vision" and "text".
        remote: asks the server from another machine; None: this process does.
    """

    name: str
    vision: Backend | None
    text: Backend | None
    memory: Memory
    models: Mapping[str, Model] = field(default_factory=dict[str, Model])
    remote: Remote | None = None

    @property
    def swaps(self) -> bool:
        """Whether it needs two models in turns."""
        vision, text = self.models.get("vision"), self.models.get("text")
        return vision is not None and text is not None and vision.name != text.name


@dataclass
class Progress:
    """How far a run is. `lock` guards it: each worker counts.

    Attributes:
        counts: rows by their status.
        by_worker: rows by the worker that wrote them.
        errors: what ended a worker, by its name.
        unwritten: caption files that could not be written, and why.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    by_worker: Counter[str] = field(default_factory=Counter[str])
    errors: dict[str, Exception] = field(default_factory=dict[str, Exception])
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
    attempts: Mapping[str, int] | None = None,
    tags: Mapping[str, str] | None = None,
    chunk: int | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Work through the items; return what became of them.

    Each result is a row before anything else sees it. A server that fails for every image ends its
    worker; its images go back, for the others or for the next run. If no worker has both models,
    the descriptions of one are rewritten by another, and no models are swapped. If no worker has a
    vision model, the captions beside the images are rewritten.

    Args:
        job: without images: their prompts are those of every image.
        folder: the job's directory, which the caller has locked.
        watcher: returns what follows and cancels a worker's run.
        seed: of the job; each image has its own, from this and its id.
        attempts: by id, how often an image was asked before and is to be answered in another way.
        tags: by id, the caption that an image had before the job, if an earlier run found it.
        chunk: images that a worker takes at a time; None: chosen by `ChunkSizes`.
        progress: called after each row.

    Raises:
        Cancelled: a watcher cancelled. All rows that were finished are there.
    """
    with closing(answers_of(folder)) as kept:
        work = _Work(
            job=job,
            folder=folder,
            outputs=outputs,
            kept=kept,
            watcher=watcher,
            seed=seed,
            attempts=attempts or {},
            tags={**(tags or {})},
            state=Progress(),
            progress=progress,
        )
        tasks = work.tasks(items, workers, chunk)
        if len(tasks) == 1:
            # In the caller's thread: ComfyUI's models, which make room, belong to it.
            tasks[0]()
            return work.state
        with ThreadPoolExecutor(len(tasks), "image-refinery-job") as threads:
            for ended in [threads.submit(task) for task in tasks]:
                ended.result()
    return work.state


def answers_of(folder: Path) -> KeptAnswers:
    """Return the kept answers in a job's directory: all of them, as a kill costs what is lost."""
    return KeptAnswers(folder / FILE_NAME, max_bytes=2**62)


class _Described(NamedTuple):
    """An image, and its description by another worker, or the caption that it had (`by` None)."""

    item: Item
    description: Result
    by: Worker | None


@dataclass(kw_only=True)
class _Work:
    """What the workers of a run share."""

    job: Job
    folder: Path
    outputs: Outputs
    kept: KeptAnswers
    watcher: Callable[[Worker], Watcher]
    seed: int
    attempts: Mapping[str, int]
    tags: dict[str, str]
    state: Progress
    progress: Callable[[Progress], None]

    def tasks(
        self, items: Sequence[Item], workers: Sequence[Worker], chunk: int | None
    ) -> list[Callable[[], None]]:
        """Return what is to run at the same time: one task for each worker."""

        def task(worker: Worker, supply: Supply[T], ask: _Ask[T], count: int) -> None:
            sizes = ChunkSizes(chunk, swaps=worker.swaps, workers=count)
            self._share(worker, supply, ask, sizes)

        images = Supply(items)
        if self.job.text is None or all(worker.vision and worker.text for worker in workers):
            return [partial(task, worker, images, self._whole, len(workers)) for worker in workers]
        describers = [worker for worker in workers if worker.vision]
        if not describers:
            return [
                partial(task, worker, images, self._rewrite_captions, len(workers))
                for worker in workers
            ]
        writers = [worker for worker in workers if worker.text]
        described = Supply[_Described](feeders=len(describers))

        def describe(worker: Worker) -> None:
            try:
                task(worker, images, partial(self._describe, described), len(describers))
            finally:
                described.end_feeding()

        return [
            *(partial(describe, worker) for worker in describers),
            *(partial(task, worker, described, self._rewrite, len(writers)) for worker in writers),
        ]

    def _share(self, worker: Worker, supply: Supply[T], ask: _Ask[T], sizes: ChunkSizes) -> None:
        """Work on what one worker takes, until there is no more, or its server fails."""
        with closing(RowLog(self.folder, worker.name)) as log:
            while worker.name not in self.state.errors and (taken := supply.take(sizes)):
                began = time.monotonic()
                rest = range(len(taken))
                try:
                    rest = ask(worker, log, taken)
                finally:
                    supply.put_back([taken[index] for index in rest])
                sizes.learn(len(taken), time.monotonic() - began)
        if not worker.swaps and not self.job.keep_loaded_s:
            cancelled = self.watcher(worker).cancelled
            for name, backend in (("vision", worker.vision), ("text", worker.text)):
                if backend and name in worker.models:
                    worker.memory.after(backend, worker.models[name], cancelled=cancelled)

    def _whole(self, worker: Worker, log: RowLog, items: Sequence[Item]) -> Sequence[int]:
        return self._ask(
            _describing(worker, items),
            self._job_for(items, worker),
            worker,
            len(items),
            lambda index, caption: self._write(items[index], caption, worker, log),
            text_backend=worker.text,
        )

    def _describe(
        self, described: Supply[_Described], worker: Worker, log: RowLog, items: Sequence[Item]
    ) -> Sequence[int]:
        answered: list[_Described] = []

        def done(index: int, caption: Caption) -> None:
            if caption.final.error:
                self._write(items[index], caption, worker, log)
            else:
                answered.append(_Described(items[index], caption.description, worker))

        job = replace(self._job_for(items, worker), text=None)
        rest = self._ask(_describing(worker, items), job, worker, len(items), done)
        described.add(answered)
        return rest

    def _rewrite(
        self, worker: Worker, log: RowLog, described: Sequence[_Described]
    ) -> Sequence[int]:
        descriptions = [one.description for one in described]
        assert worker.text is not None
        return self._ask(
            partial(worker.remote.rewrite, descriptions)
            if worker.remote
            else partial(rewrite, worker.text, descriptions),
            self._job_for([one.item for one in described], worker),
            worker,
            len(described),
            lambda index, caption: self._write(
                described[index].item, caption, worker, log, described[index].by
            ),
        )

    def _rewrite_captions(
        self, worker: Worker, log: RowLog, items: Sequence[Item]
    ) -> Sequence[int]:
        """Rewrite the captions that the images had before the job."""
        found: list[tuple[int, _Described]] = []
        for index, item in enumerate(items):
            try:
                caption = self._caption_before(item)
            except BadRequest as error:
                self._write(item, Caption(description=Result(error=error)), worker, log)
            else:
                found.append((index, _Described(item, Result(answer=Answer(text=caption)), None)))
        rest = self._rewrite(worker, log, [one for _, one in found]) if found else ()
        return [found[index][0] for index in rest]

    def _caption_before(self, item: Item) -> str:
        """Return the caption that an image had before the job.

        Raises:
            NoPrompt: there was none.
            UnusableImage: the image is needed, too, and cannot be read.
        """
        try:
            caption = self.tags.get(item.id) or item.caption()
            if caption and used_in(self.job.instructions):
                item.about()
        except UnreadableImage as error:
            raise UnusableImage(str(error)) from error
        if not caption:
            raise NoPrompt(
                f"{item.name} has no caption to rewrite. Write one into a .txt file beside it, or "
                "describe the image first with --task caption."
            )
        self.tags[item.id] = caption  # later its file may hold the job's own
        return caption

    def _job_for(self, items: Sequence[Item], worker: Worker) -> Job:
        """Return the job of some images, with their own seeds and placeholders."""
        about: list[dict[str, str]] = []
        if used := used_in([*self.job.instructions, *self.job.custom_prompts]):
            about = [self._about(item, keep_tags="tags" in used) for item in items]
        seeds = [seed_of(item, self.seed, self.attempts.get(item.id, 0)) for item in items]
        job = replace(self.job, seeds=seeds, about=about)
        # One model stays until the worker has ended: the next chunk needs it again.
        keeps = not worker.swaps and not job.keep_loaded_s
        return replace(job, keep_loaded_s=RUN_KEEP_ALIVE_S) if keeps else job

    def _about(self, item: Item, *, keep_tags: bool) -> dict[str, str]:
        try:
            about = item.about()
        except UnreadableImage:
            return {}  # which is what its row will say
        if keep_tags:  # later its caption file may hold the job's own caption
            about["tags"] = self.tags.setdefault(item.id, about["tags"])
        return about

    def _ask(
        self,
        call: Callable[..., object],
        job: Job,
        worker: Worker,
        count: int,
        done: Callable[[int, Caption], None],
        **backends: Backend | None,
    ) -> Sequence[int]:
        """Run a chunk; return the indexes that were not asked, as their server failed before.

        Args:
            call: `run` or `rewrite`, with the server and the images or descriptions.
            count: of these.
            done: called with the index and the result of each image that has one.
        """
        rest = set(range(count))
        ended: LLMError | None = None
        answered = 0

        def finished(index: int, caption: Caption) -> None:
            nonlocal ended, answered
            error = caption.final.error
            if isinstance(error, FATAL_ERRORS):
                with self.state.lock:
                    # What follows an error that ends a stage has the same one, and was not sent.
                    first = str(error) != str(ended)
                    ended = error
                if not (first and isinstance(error, _MAY_BE_THE_IMAGE)):
                    return
            done(index, caption)
            with self.state.lock:
                rest.discard(index)
                answered += error is None

        try:
            call(
                job,
                memory=worker.memory,
                watcher=self.watcher(worker),
                kept=self.kept,
                finished=finished,
                **backends,
            )
        except LLMError as error:  # a remote worker that is not to be replaced again
            self.state.errors[worker.name] = error
        if ended and not (answered and isinstance(ended, _MAY_BE_THE_IMAGE)):
            self.state.errors[worker.name] = ended
        return sorted(rest)

    def _write(
        self,
        item: Item,
        caption: Caption,
        worker: Worker,
        log: RowLog,
        describer: Worker | None = None,
    ) -> None:
        row = row_of(item, caption, worker, describer)
        if attempt := self.attempts.get(item.id):
            row["attempt"] = attempt
        if (tags := self.tags.pop(item.id, None)) is not None:
            row["tags"] = tags
        log.write(row, sync="tags" in row)  # before its caption file may be replaced
        problem = ""
        if row["status"] == DONE and "txt" in self.outputs.kinds:
            try:
                self.outputs.write_txt(item, row)
            except OSError as error:
                problem = f"{self.outputs.txt(item)} cannot be written ({error.strerror or error})."
        with self.state.lock:
            self.state.counts[row["status"]] += 1
            self.state.by_worker[worker.name] += 1
            if problem:
                self.state.unwritten.append(problem)
            self.progress(self.state)


def _describing(worker: Worker, items: Sequence[Item]) -> Callable[..., object]:
    if worker.remote:
        return partial(worker.remote.describe, items)
    assert worker.vision is not None
    return partial(run, worker.vision, [item.open for item in items])


def seed_of(item: Item, seed: int, attempt: int = 0) -> int:
    """Return an image's seed: from its id, as its place in the list may change between runs."""
    name = f"{item.id}/{attempt}" if attempt else item.id
    return fold_seed(seed ^ (zlib.crc32(name.encode("utf-8", "surrogatepass")) << 32))


def row_of(item: Item, caption: Caption, worker: Worker, describer: Worker | None = None) -> Row:
    """Return the row for a caption or its error.

    Args:
        worker: wrote the last text.
        describer: wrote the description; None: the same.
    """
    row: Row = {"id": item.id, "at": round(time.time(), 3), "by": worker.name}
    row["version"] = __version__
    if caption.final.error is not None:
        return row | failure_of(caption.final.error)
    described, last = caption.description.answer, caption.final.answer
    assert described is not None and last is not None
    row |= {"status": DONE, "text": last.text, "flags": flags_of(last)}
    if described.model:  # else it is the caption that was there
        row |= {"description": described.text, **_model("vision", described, describer or worker)}
    return row if last is described else row | _model("text", last, worker)


def _model(stage: str, answer: Answer, worker: Worker) -> Row:
    digest = worker.models[stage].digest if stage in worker.models else ""
    return {f"{stage}_model": answer.model, f"{stage}_digest": digest[:_DIGEST_CHARS]}


def to_do(
    items: Iterable[Item], rows: Rows, *, failed: bool = False, flagged: bool = False
) -> tuple[list[Item], dict[str, int]]:
    """Return the items to ask, and by id how often those that are asked again were answered.

    Args:
        failed: also those whose last row is a failure.
        flagged: also those whose text has a flag, to be answered with another seed.
    """
    again: dict[str, int] = {}
    if flagged:
        again = {row["id"]: row.get("attempt", 0) + 1 for row in rows if row.get("flags")}
    wanted = ("", FAILED) if failed else ("",)
    return [item for item in items if rows.status(item.id) in wanted or item.id in again], again
