"""Caption the images of a folder from a node. Imported when a node runs."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import comfy.utils
from comfy_api.latest import io

from .. import jobs, memory
from .._advice import advice
from ..captioning.events import Watcher
from ..captioning.job import Job, Result
from ..llm.errors import Cancelled, LLMError
from . import host
from .host import job_folders
from .job_run import finish, items_of, job_directory, summary
from .llm_inputs import ErrorText

if TYPE_CHECKING:
    from ..llm.backend import Backend

_SHOW_EVERY_S = 0.2
_SHOWN_CHARS = 300


def caption_folder(
    node: type[io.ComfyNode],
    *,
    folder: Path,
    recursive: bool,
    pattern: str,
    job: Job,
    models: tuple[str, str],
    server: str,
    overwrite: bool,
    retry_failed: bool,
) -> io.NodeOutput:
    """Caption the images of a folder; return (names, texts, report).

    Args:
        models: of the two stages, as the widgets name them.

    Raises:
        NoFolder, NoImages: there is nothing to caption.
        JobError: the job was begun with another model under the same name, or by another process.
        LLMError: no server works on it any more; what is finished is kept.
    """
    items = items_of(folder, recursive, pattern)
    settings = {"task": "caption" if job.text else "describe", "seed": 0}
    directory = job_directory(folder, jobs.fingerprint(job, (), **settings))
    outputs = jobs.Outputs(job=directory, kinds=frozenset({"txt", "jsonl"}))
    used = models[: 2 if job.text else 1]
    try:
        memory.finish_pending_unloads(host.interrupted)
        with jobs.locked(directory), host.open_backends(server, *used) as backends:
            worker = _worker(server, backends, job)
            begun = jobs.begin(
                items,
                job,
                [worker],
                directory,
                outputs,
                JobWatcher(node, 0),
                settings=settings,
                retry_failed=retry_failed,
                overwrite=overwrite,
            )
            return _run(node, begun, directory, outputs)
    except Cancelled:
        host.stop()
    except LLMError as error:
        error.args = (f"{error} {advice(error, host.PAGE)}".strip(),)
        raise


def _run(
    node: type[io.ComfyNode], begun: jobs.Begun, directory: Path, outputs: jobs.Outputs
) -> io.NodeOutput:
    watcher = JobWatcher(node, len(begun.todo) * (2 if begun.job.text else 1))
    state: jobs.Progress | None = None
    began = time.monotonic()
    cancelled: Cancelled | None = None
    try:
        if begun.todo:
            state = jobs.run_captions(
                begun.todo,
                begun.job,
                begun.workers,
                directory,
                outputs,
                watcher=lambda worker: watcher,
                attempts=begun.attempts,
                tags=begun.tags,
            )
    except Cancelled as error:
        cancelled = error
    counts = jobs.end(begun, directory, outputs)
    report = finish(
        node,
        directory,
        [
            *summary("captioned", counts, state, time.monotonic() - began),
            *begun.notes,
            *watcher.notes,
        ],
        failed=bool(counts["failed"] or (state and state.unwritten)),
        cancelled=cancelled,
        error=next(iter(state.errors.values()), None) if state else None,
    )
    names, texts = _texts(begun, directory)
    return io.NodeOutput(names, texts, report, ui={"text": [report]})


def _worker(server: str, backends: list[Backend], job: Job) -> jobs.Worker:
    return jobs.Worker(
        name=server,
        vision=backends[0],
        text=backends[-1] if job.text else None,
        memory=memory.StageMemory(),
    )


def _texts(begun: jobs.Begun, directory: Path) -> tuple[list[str], list[str]]:
    found = {
        row["id"]: row["text"]
        if row["status"] == jobs.DONE
        else ErrorText(f"Error: {row['error']['message']} ({row['error']['code']})")
        for row in jobs.Rows(directory)
    }
    there = [item for item in begun.items.values() if item.id in found]
    names = [job_folders.name_of(item.path) for item in there]
    return names, [found[item.id] for item in there]


class JobWatcher(Watcher):
    """Shows a job on its node: a bar over all chunks, and the text as it grows."""

    def __init__(self, node: type[io.ComfyNode], total: int) -> None:
        self._node_id = host.node_id(node)
        self._total = total
        self._done = 0
        self._title = ""
        self._text: list[str] = []
        self._shown_at = 0.0
        self._lock = Lock()
        self._bar = comfy.utils.ProgressBar(max(1, total), node_id=self._node_id)
        self.notes: list[str] = []

    def cancelled(self) -> bool:
        return host.interrupted()

    def stage(self, title: str, model: str, count: int) -> None:
        self._title = f"{title} with {model}"
        self._show(self._title, always=True)

    def loading(self, model: str) -> None:
        self._show(f"loading {model}", always=True)

    def token(self, index: int, piece: str) -> None:
        with self._lock:
            self._text.append(piece)
            text = "".join(self._text)[-_SHOWN_CHARS:]
        self._show(f"{self._title}: {self._done} of {self._total} answers", text)

    def finished(self, index: int, result: Result) -> None:
        with self._lock:
            self._done += 1
            self._text.clear()
        if not host.interrupted():  # the bar would raise ComfyUI's own exception
            self._bar.update_absolute(self._done, max(1, self._total))

    def waiting(self, reason: str, seconds: float) -> None:
        self._show(f"{self._title}: {reason}, trying again in {seconds:g} s", always=True)

    def kept(self, title: str, count: int, requests: int) -> None:
        """Say nothing: each chunk that is continued would."""

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _show(self, *lines: str, always: bool = False) -> None:
        if always or time.monotonic() - self._shown_at >= _SHOW_EVERY_S:
            self._shown_at = time.monotonic()
            host.show(self._node_id, *lines)
