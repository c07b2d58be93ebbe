"""Begin or continue a job of captions, and end a run of it: the same for every caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..captioning.events import Watcher
from ..captioning.job import Job
from ..captioning.placeholders import used_in
from .captions import Worker, to_do
from .directory import JobError, check_manifest, read_fingerprint
from .flags import MAX_TOKENS
from .items import Item
from .outputs import Outputs
from .plan import fingerprint, with_models
from .report import write_report
from .rows import Rows


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A job of which a run can start.

    Attributes:
        job: with the names of its models.
        workers: with their models.
        items: the job's images by their ids, without those whose caption another program wrote.
        todo: the images that this run asks.
        attempts, tags: see `run_captions`.
        notes: sentences for the user.
    """

    job: Job
    workers: Sequence[Worker]
    items: Mapping[str, Item]
    todo: Sequence[Item]
    attempts: Mapping[str, int] = field(default_factory=dict[str, int])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: Sequence[str] = ()


def begin(
    items: Sequence[Item],
    job: Job,
    workers: Sequence[Worker],
    folder: Path,
    outputs: Outputs,
    watcher: Watcher,
    *,
    settings: Mapping[str, Any],
    retry_failed: bool = False,
    retry_flagged: bool = False,
    overwrite: bool = False,
    allow_mixed: bool = False,
) -> Begun:
    """Begin a job in its directory, or continue it.

    Args:
        folder: the job's directory, which the caller has locked.
        settings: what the answers depend on beside `job`, for the manifest.
        retry_failed, retry_flagged: see `to_do`.
        overwrite: replace captions that another program wrote; else their images are left out.
        allow_mixed: see `with_models`.

    Raises:
        JobError: the job was begun with other settings, or an output is not the job's own.
        Cancelled, LLMError: a model cannot be found.
        OSError: the directory or a caption cannot be written.
    """
    before = read_fingerprint(folder)
    job, workers = with_models(job, workers, before, watcher, allow_mixed=allow_mixed)
    outputs.check(items)
    warning = check_manifest(folder, fingerprint(job, workers, **settings))
    notes = [warning] if warning else []
    by_id = {item.id: item for item in items}
    rows = Rows(folder)
    todo, attempts = to_do(items, rows, failed=retry_failed, flagged=retry_flagged)
    if "txt" in outputs.kinds:
        outputs.restore_txt(rows, by_id, overwrite=overwrite)
        if not overwrite:
            _check_tags(job, workers, outputs)
            foreign = [one for one in todo if not rows.status(one.id) and outputs.txt(one).exists()]
            if foreign:
                notes.append(f"Left out, as they have a caption: {len(foreign)} images.")
            for item in foreign:
                del by_id[item.id]
            todo = [item for item in todo if item.id in by_id]
    again = (rows.get(item.id) for item in todo if rows.status(item.id))
    tags = {row["id"]: row["tags"] for row in again if "tags" in row}
    return Begun(
        job=job,
        workers=workers,
        items=by_id,
        todo=todo,
        attempts=attempts,
        tags=tags,
        notes=notes,
    )


def end(
    begun: Begun,
    folder: Path,
    outputs: Outputs,
    *,
    max_tokens: int = MAX_TOKENS,
    cancelled: bool = False,
) -> dict[str, Any]:
    """Write the reports and the outputs of all that is done; return the counts of the report.

    Args:
        max_tokens: see `write_report`.
        cancelled: leave out what takes long, which the next run writes.

    Raises:
        JobError: an output needs an image that cannot be read.
        OSError: a file cannot be written.
    """
    rows = Rows(folder)
    counts = write_report(folder, rows, begun.items, max_tokens=max_tokens)
    outputs.write(rows, begun.items, shards=not cancelled)
    return counts


def _check_tags(job: Job, workers: Sequence[Worker], outputs: Outputs) -> None:
    if outputs.folder is None and not any(worker.vision for worker in workers):
        raise JobError(
            "The captions beside the images are what is rewritten, so they would not be replaced. "
            "Replace them (--existing overwrite), or write to another folder (--output) or to "
            "metadata.jsonl (--out jsonl)."
        )
    if "tags" in used_in([*job.instructions, *job.custom_prompts]) and outputs.folder is None:
        raise JobError(
            "{tags} is the caption beside an image, and images that have one are left out. Replace "
            "captions (--existing overwrite), or write them to another folder (--output) or to "
            "metadata.jsonl (--out jsonl)."
        )
