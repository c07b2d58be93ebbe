"""Refine the images of a job, one at a time.

Importing this imports torch, so `jobs` does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._version import __version__
from ..files import NotWritten, with_8_bits
from ..files.whole import draft_path
from ..llm.errors import UnusableImage
from ..refine import (
    DeviceMemoryError,
    ImageError,
    ImageRefiner,
    NotFiniteError,
    RefineCancelled,
    RefineSettings,
)
from ..refine.saving import save_refined
from .captions import Progress, seed_of, to_do
from .directory import JobError, check_manifest
from .items import Item, is_inside
from .report import write_report
from .rows import DONE, Row, RowLog, Rows, failure_of

if TYPE_CHECKING:
    from PIL import Image

    from ..refine.progress import ProgressCallback

CAPTION = "{caption}"
"""In a prompt: the caption of each image."""

LOG = "refiner"


@dataclass(frozen=True, kw_only=True)
class RefinedFiles:
    """Where refined images go, by the ids of their images.

    Attributes:
        format, quality: see `save_refined`.
    """

    folder: Path
    format: str = "png"
    quality: int = 95

    def file(self, item: Item) -> Path:
        """Return where a refined image goes."""
        return (self.folder / item.id).with_suffix(f".{self.format}")

    def check(self, items: Sequence[Item]) -> None:
        """Raise JobError if two images would have one file, or one would replace an input."""
        folder = os.path.realpath(self.folder)
        roots = {root: os.path.realpath(root) for root in {item.root for item in items}}

        def key(folder: str, id: str) -> str:
            return os.path.normpath(os.path.join(folder, id)).casefold()

        inputs = {key(roots[item.root], item.id) for item in items if item.source is None}
        files: dict[str, Item] = {}
        for item in items:
            if not is_inside(item.id):
                raise JobError(
                    f"{item.id} would not be below the folder of the results. Name its folder as "
                    "the input."
                )
            file = self.file(item)
            name = key(folder, os.path.relpath(file, self.folder))
            if name in inputs:
                raise JobError(f"{file} is an input. Name another folder after --output.")
            other = files.setdefault(name, item)
            if other is not item:
                raise JobError(
                    f"{other.name} and {item.name} would have the same result {file}. Rename one "
                    "of the two, or begin a job for each."
                )


class Work(NamedTuple):
    """An image to refine, with its own seed and prompt: all that another process needs."""

    item: Item
    settings: RefineSettings
    files: RefinedFiles
    has_caption: bool


@dataclass(frozen=True, kw_only=True)
class Refining:
    """A job of which a run can start.

    Attributes:
        settings: the prompt may have `CAPTION` in it; each image has its own seed, from this seed
            and its id.
        items: the job's images by their ids, without those whose result another program wrote.
        todo: the images to refine.
        captions: rows with the captions for `CAPTION`.
        waiting: how many images have no caption yet.
        notes: sentences for the user.
    """

    folder: Path
    files: RefinedFiles
    settings: RefineSettings
    items: Mapping[str, Item]
    todo: Sequence[Item]
    captions: Rows | None
    waiting: int
    notes: Sequence[str]

    def work(self, item: Item) -> Work:
        """Return what to do for an image."""
        settings = replace(self.settings, seed=seed_of(item, self.settings.seed))
        if self.captions:
            caption = self.captions.get(item.id)["text"].strip()
            settings = replace(settings, prompt=settings.prompt.replace(CAPTION, caption))
        return Work(item, settings, self.files, bool(self.captions))


def begin_refining(
    items: Sequence[Item],
    settings: RefineSettings,
    checkpoint: Mapping[str, Any],
    folder: Path,
    files: RefinedFiles,
    *,
    captions: Rows | None = None,
    retry_failed: bool = False,
    overwrite: bool = False,
) -> Refining:
    """Begin a job in its directory, or continue it.

    Args:
        checkpoint: what `refine.identity.identify` says about it.
        folder: the job's directory, which the caller has locked.
        captions: rows of a job of captions, if the prompt has `CAPTION` in it.
        retry_failed: also refine images whose last row is a failure.
        overwrite: replace results that another program wrote; else their images are left out.

    Raises:
        JobError: the job was begun with other settings, or results would not have a file of their
            own.
        OSError: the directory cannot be written.
    """
    files.check(items)
    about: dict[str, Any] = {"task": "refine", **checkpoint, **settings.describe()}
    about |= {"format": files.format, "quality": None if files.format == "png" else files.quality}
    warning = check_manifest(folder, about)
    notes = [warning] if warning else []
    rows = Rows(folder)
    todo, _ = to_do(items, rows, failed=retry_failed)
    missing = {
        item.id for item in items if rows.status(item.id) == DONE and _lost(item, rows, files)
    }
    wanted = missing.union(item.id for item in todo)
    left_out: set[str] = set()
    if not overwrite:
        left_out = {item.id for item in todo if files.file(item).exists()}
        if left_out:
            notes.append(
                f"Left out, as there is a file of another program: {len(left_out)} images."
            )
    by_id = {item.id: item for item in items if item.id not in left_out}
    waiting = 0
    if captions:
        without = {
            id
            for id in by_id
            if captions.status(id) != DONE and (rows.status(id) != DONE or id in missing)
        }
        waiting = len(without)
        wanted -= without
    return Refining(
        folder=folder,
        files=files,
        settings=settings,
        items=by_id,
        todo=[item for item in by_id.values() if item.id in wanted],
        captions=captions,
        waiting=waiting,
        notes=notes,
    )


def run_refining(
    job: Refining,
    todo: Sequence[Item],
    refiner: ImageRefiner,
    *,
    should_stop: Callable[[], bool],
    on_step: ProgressCallback | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Refine images, one after another; return what became of them.

    An image that cannot be refined is a row. If memory runs out for an image, it is a row too, and
    the run ends unless an image before it has succeeded.

    Args:
        todo: of `job.todo`.
        on_step: called with the progress of each image.
        progress: called after each row.

    Raises:
        RefineCancelled: `should_stop` returned True. All rows that were finished are there.
        DeviceMemoryError: memory ran out for two images in a row, or for the first.
        CheckpointError: the weights cannot be loaded.
        OSError: a file cannot be written.
    """
    with closing(RowLog(job.folder, LOG)) as log:
        commits = Commits(job, log, progress)
        for item in todo:
            if should_stop():
                raise RefineCancelled("The job was cancelled.")
            row = refined_row(job.work(item), refiner, should_stop=should_stop, on_step=on_step)
            commits.write(item, row)
    return commits.state


def refined_row(
    work: Work,
    refiner: ImageRefiner,
    *,
    by: str = "",
    should_stop: Callable[[], bool],
    on_step: ProgressCallback | None = None,
) -> Row:
    """Refine an image into a draft beside its place; return its row.

    Args:
        by: who the row says it is by; "": the refiner's device.

    Raises:
        RefineCancelled, CheckpointError, OSError: as `run_refining`.
    """
    row: Row = {"id": work.item.id, "at": 0.0, "by": by or str(refiner.device)}
    row["version"] = __version__
    began = time.monotonic()
    try:
        row |= _refine(work, refiner, on_step, should_stop)
    except (UnusableImage, ImageError, NotFiniteError, NotWritten, DeviceMemoryError) as error:
        row |= failure_of(error)
    return row | {"at": round(time.time(), 3), "seconds": round(time.monotonic() - began, 2)}


class Commits:
    """Makes results of what the workers of a run have refined, and counts them."""

    def __init__(self, job: Refining, log: RowLog, progress: Callable[[Progress], None]) -> None:
        self.state = Progress()
        self._files = job.files
        self._log = log
        self._progress = progress
        self._fits: set[str] = set()

    def write(self, item: Item, row: Row) -> None:
        """Write a row, then put its draft into its place.

        Raises:
            DeviceMemoryError: memory ran out for the worker's second image in a row, or its first.
            JobError: the draft was written elsewhere.
            OSError: a file cannot be written.
        """
        file = self._files.file(item)
        draft = draft_path(file)
        is_done, by = row["status"] == DONE, row["by"]
        if is_done and not (draft.exists() and draft.stat().st_size == row["bytes"]):
            raise JobError(
                f"{draft} was written by {by}, but is not on this machine. Name a folder after "
                "--output that all machines have under the same path."
            )
        # The row is on the disk before the file has its place: a file without a row is that of
        # another program.
        self._log.write(row, sync=True)
        if is_done:
            os.replace(draft, file)
        with self.state.lock:
            self.state.counts[row["status"]] += 1
            self.state.by_worker[by] += 1
            self._progress(self.state)
        if is_done:
            self._fits.add(by)
        elif row["error"]["kind"] == DeviceMemoryError.__name__:
            if by not in self._fits:
                raise DeviceMemoryError(row["error"]["message"])
            self._fits.remove(by)


def end_refining(job: Refining) -> dict[str, Any]:
    """Write the reports; return the counts of `report.json`.

    Raises:
        OSError: a file cannot be written.
    """
    rows = Rows(job.folder)
    root = str(job.files.folder.absolute())
    shown = dict(job.items)
    for id, item in job.items.items():
        if rows.status(id) == DONE:  # the page shows the result
            shown[id] = Item(job.files.file(item).relative_to(job.files.folder).as_posix(), root)
    return write_report(job.folder, rows, shown)


def _lost(item: Item, rows: Rows, files: RefinedFiles) -> bool:
    """Return whether the file of an image that has a row is not there.

    A run that was killed after the row has left its draft, which gets its place here.
    """
    file = files.file(item)
    draft = draft_path(file)
    # A draft of another size was cut off: its image was refined again, as its file was gone.
    if draft.exists() and draft.stat().st_size == rows.get(item.id)["bytes"]:
        os.replace(draft, file)
    return not file.exists()


def _refine(
    work: Work,
    refiner: ImageRefiner,
    on_step: ProgressCallback | None,
    should_stop: Callable[[], bool],
) -> Row:
    """Refine an image into a draft; return the rest of its row."""
    settings, files = work.settings, work.files
    before = with_8_bits(work.item.open())
    after: Image.Image
    (after,) = refiner.refine_batch(
        [before], settings, on_progress=on_step, should_stop=should_stop
    )
    file = files.file(work.item)
    size = _write(after, draft_path(file), settings, str(refiner.model), files)
    row: Row = {"status": DONE, "seed": settings.seed, "before": before.size, "after": after.size}
    row |= {"file": file.relative_to(files.folder).as_posix(), "bytes": size}
    return row | ({"prompt": settings.prompt} if work.has_caption else {})


def _write(
    image: Image.Image, draft: Path, settings: RefineSettings, model: str, files: RefinedFiles
) -> int:
    """Write a draft to the disk; return its bytes."""
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        with draft.open("wb") as file:
            save_refined(image, file, settings, model, format=files.format, quality=files.quality)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except (OSError, ValueError) as error:
        draft.unlink(missing_ok=True)
        if getattr(error, "errno", None) is not None:
            raise  # of the disk, and so of the images that follow
        raise NotWritten(
            f"The refined image cannot be written as {files.format} ({error})."
        ) from error
