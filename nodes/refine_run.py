"""Refine the images of a folder from a node. Imported when a node runs."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import comfy.model_management
from comfy_api.latest import io

from .. import jobs
from ..files import NotWritten, UnreadableImage, open_image
from ..jobs.refining import RefinedFiles, Refining, begin_refining, end_refining, run_refining
from ..refine import CheckpointError, RefineCancelled, RefineError, RefineSettings
from ..refine.identity import identify
from . import host
from .host import job_folders, kept
from .host.checkpoints import find_checkpoint
from .host.waiting import wait_for_checkpoint
from .job_run import finish, items_of, job_directory, summary

if TYPE_CHECKING:
    from ..refine.progress import Progress
    from ..refine.settings import MemoryMode

_PARTS = 1000
"""Of the bar, for each image: images have different numbers of tiles."""
_SHOWN_IMAGES = 4
"""So many results are in the history of the queue."""


def refine_folder(
    node: type[io.ComfyNode],
    *,
    folder: Path,
    recursive: bool,
    pattern: str,
    settings: RefineSettings,
    checkpoint: str,
    memory_mode: MemoryMode,
    format: str,
    retry_failed: bool,
) -> io.NodeOutput:
    """Refine the images of a folder; return (names, folder, report).

    Args:
        checkpoint, memory_mode: as the widgets name them.

    Raises:
        NoFolder, NoImages: there is nothing to refine.
        BadInput: the results would be images of the folder.
        JobError: another process works on the job, or two images would have one file.
        NotWritten: a file cannot be written.
        RefineError: it ended the run; what is finished is kept.
    """
    items = items_of(folder, recursive, pattern)
    shows = host.RefineProgress(host.node_id(node), len(items))
    try:
        about = wait_for_checkpoint(
            checkpoint, lambda: identify(find_checkpoint(checkpoint)), shows.say
        )
        # Other settings write into another folder, so no job takes files of another for its own.
        key = {"task": "refine", "format": format, **about, **settings.describe()}
        directory = job_directory(folder, key)
        files = RefinedFiles(folder=job_folders.refined(directory.name), format=format)
        _check_apart(folder, files.folder, recursive)
        with jobs.locked(directory):
            job = begin_refining(
                items,
                settings,
                about,
                directory,
                files,
                retry_failed=retry_failed,
                overwrite=True,  # the directory of the job was deleted, to begin again
            )
            return _run(node, job, checkpoint, memory_mode, shows)
    except RefineCancelled:
        host.stop()
    except OSError as error:
        raise NotWritten(
            f"A file of the job cannot be read or written ({error}). What is finished is kept: "
            "queue again to continue."
        ) from error


def _run(
    node: type[io.ComfyNode],
    job: Refining,
    checkpoint: str,
    memory_mode: MemoryMode,
    shows: host.RefineProgress,
) -> io.NodeOutput:
    state = jobs.Progress()
    cancelled: BaseException | None = None
    ended: RefineError | None = None

    def show_step(event: Progress) -> None:
        before, count = sum(state.counts.values()), len(job.todo)
        done = round(_PARTS * (before + event.done / max(1, event.total)))
        shows(replace(event, image=before + 1, images=count, done=done, total=_PARTS * count))

    def keep(progress: jobs.Progress) -> None:
        nonlocal state
        state = progress

    began = time.monotonic()
    try:
        if job.todo:
            refiner = wait_for_checkpoint(
                checkpoint, lambda: kept.loaded_refiner(checkpoint, memory_mode), shows.say
            )
            began = time.monotonic()
            try:
                run_refining(
                    job,
                    job.todo,
                    refiner,
                    should_stop=host.interrupted,
                    on_step=show_step,
                    progress=keep,
                )
            finally:
                kept.unload_refiner(refiner)
    except (RefineCancelled, comfy.model_management.InterruptProcessingException) as error:
        cancelled = error  # ComfyUI's layers raise its own, if they look first
    except CheckpointError:
        raise  # queued again, it would not load either
    except RefineError as error:
        ended = error
    counts = end_refining(job)
    report = finish(
        node,
        job.folder,
        [*summary("refined", counts, state, time.monotonic() - began), *job.notes],
        failed=bool(counts["failed"]),
        cancelled=cancelled,
        error=ended,
    )
    rows = jobs.Rows(job.folder)
    if state.counts[jobs.DONE]:
        last = next(one for one in reversed(job.todo) if rows.status(one.id) == jobs.DONE)
        with suppress(UnreadableImage):
            shows.show_result(open_image(job.files.file(last)))
    names = [
        job_folders.name_of(job.files.file(item))
        for id, item in job.items.items()
        if rows.status(id) == jobs.DONE
    ]
    ui = {"text": [report], "images": [_saved(name) for name in names[-_SHOWN_IMAGES:]]}
    return io.NodeOutput(names, job_folders.choice_of(job.files.folder), report, ui=ui)


def _saved(name: str) -> dict[str, str]:
    """Return how the page names an image of the output folder."""
    path = PurePosixPath(name)
    return {"filename": path.name, "subfolder": path.parent.as_posix(), "type": "output"}


def _check_apart(folder: Path, results: Path, recursive: bool) -> None:
    """Raise BadInput if the next run would refine the results."""
    if recursive and folder.resolve() in results.resolve().parents:
        raise host.BadInput(
            f"The refined images would be in {folder} too, and the next run would refine them "
            "again. Choose another folder, or turn include subfolders off."
        )
