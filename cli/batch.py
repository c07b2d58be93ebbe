"""`image-refinery batch`: a job over any number of images, which can be continued at any time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

from tqdm import tqdm

from .. import jobs
from .._backends import open_backends
from ..captioning.events import Watcher
from ..captioning.job import Job, Stage
from ..captioning.placeholders import used_in
from ..captioning.run import find_model
from ..jobs.items import is_inside
from ..jobs.report import count_rows, write_report
from ..llm.backend import Backend, Model
from ..llm.choice import AUTO
from ..llm.errors import Cancelled, LLMError
from ..llm.servers import split_model
from ..memory import StageMemory, finish_pending_unloads
from ..texts.instructions import PresetError
from .describe import job_of
from .progress import stop_on_ctrl_c
from .terminal import DESCRIBE, WRONG_ARGUMENTS, cancelled, failed, message

PROMPT_FORMAT = 1
"""Part of a job's fingerprint; changes when the pack words its requests in another way."""


def batch(options: argparse.Namespace) -> int:
    """Run or continue a job; 0 if every image has a result, else 1."""
    try:
        items = jobs.find_items(options.inputs, recursive=options.recursive)
        job = job_of(options)
    except jobs.BadInputList as error:
        return failed(error)
    except PresetError as error:
        failed(error)
        return WRONG_ARGUMENTS
    if (options.task == "caption") != (job.text is not None):
        needs = "needs" if options.task == "caption" else "takes no"
        options.parser.error(f"--task {options.task} {needs} --instructions or --preset")
    if options.dry_run:
        return _plan(items, options)
    outputs = jobs.Outputs(
        job=options.job,
        kinds=frozenset(options.out),
        folder=options.output,
        prefix=options.prefix,
        suffix=options.suffix,
    )
    try:
        with jobs.locked(options.job), stop_on_ctrl_c() as stop, _opened(options, job) as opened:
            return _run(items, job, opened, outputs, options, stop)
    except jobs.JobError as error:
        return failed(error)
    except OSError as error:  # the rows or an output cannot be written
        return failed(jobs.JobError(f"{error.filename or options.job}: {error.strerror or error}."))
    finally:
        finish_pending_unloads()


def _plan(items: Sequence[jobs.Item], options: argparse.Namespace) -> int:
    """Print what a run would do, without asking any server."""
    rows = jobs.Rows(options.job)
    todo = jobs.to_do(items, rows.status, retry=options.retry_failed)
    count = min(len(todo), options.limit or len(todo))
    print(f"{len(items)} images, {len(items) - len(todo)} have a result, {count} to do.")
    return 0


@contextmanager
def _opened(options: argparse.Namespace, job: Job) -> Iterator[dict[str, list[Backend]]]:
    """Yield the backends of each server: for the vision model, and for the text model."""
    models = [stage.model for stage in (job.vision, job.text) if stage]
    with ExitStack() as stack:
        yield {
            server: stack.enter_context(open_backends(server, *models))
            for server in dict.fromkeys(options.server or ["default"])
        }


def _run(
    items: Sequence[jobs.Item],
    job: Job,
    opened: Mapping[str, Sequence[Backend]],
    outputs: jobs.Outputs,
    options: argparse.Namespace,
    stop: Event,
) -> int:
    before = jobs.read_fingerprint(options.job)
    job, models = _with_models(job, opened, before, stop)
    warning = jobs.check_manifest(options.job, _fingerprint(job, models, options))
    if warning:
        print(warning, file=sys.stderr)
    rows = jobs.Rows(options.job)
    by_id = {item.id: item for item in items}
    _check_outputs(items, outputs, options, is_new=not before)
    if "txt" in outputs.kinds:
        for row in rows:  # a run that was killed between a row and its file
            item = by_id.get(row["id"])
            if item and row["status"] == jobs.DONE and not outputs.txt(item).exists():
                outputs.write_txt(item, row)
    todo = jobs.to_do(items, rows.status, retry=options.retry_failed)
    if "txt" in outputs.kinds and options.existing == "skip":
        foreign = [one for one in todo if outputs.txt(one).exists()]
        if foreign:
            print(
                f"{len(foreign)} images have a caption already and are left out "
                "(--existing overwrite replaces it).",
                file=sys.stderr,
            )
            for item in foreign:
                del by_id[item.id]
            todo = [item for item in todo if item.id in by_id]
    print(f"{len(by_id) - len(todo)} of {len(by_id)} images have a result.", file=sys.stderr)
    todo = todo[: options.limit]
    workers = [
        jobs.Worker(server, backends[0], backends[-1], StageMemory())
        for server, backends in opened.items()
    ]
    state: jobs.Progress | None = None
    was_cancelled = False
    try:
        if todo:
            state = _work(todo, job, workers, outputs, options, stop)
    except Cancelled:
        was_cancelled = True
    rows = jobs.Rows(options.job)
    if "jsonl" in outputs.kinds:
        outputs.write_jsonl(rows, by_id)
    counts = count_rows(rows, by_id)
    report = write_report(options.job, counts)
    for line in _lines(counts, state):
        print(line, file=sys.stderr)
    print(f"Report: {report}", file=sys.stderr)
    if was_cancelled:
        return cancelled(f"{counts['left']} images are left. The same command continues.")
    left = counts["left"] and not (options.limit and state and not state.errors)
    return 1 if counts["failed"] or left or (state and state.unwritten) else 0


def _check_outputs(
    items: Sequence[jobs.Item],
    outputs: jobs.Outputs,
    options: argparse.Namespace,
    *,
    is_new: bool,
) -> None:
    """Raise JobError if an output would replace what is not this job's, or lead out of its folder.

    Args:
        is_new: whether the job has only begun, so that none of the files is from it.
    """
    if "jsonl" in outputs.kinds:
        inputs = {one.absolute() for one in options.inputs}
        if outputs.jsonl.absolute() in inputs or (is_new and outputs.jsonl.exists()):
            raise jobs.JobError(
                f"{outputs.jsonl} is there already, and not from this job. Name another folder "
                "after --output."
            )
    if "txt" not in outputs.kinds:
        return
    files: dict[str, jobs.Item] = {}
    for item in items:
        if outputs.folder is not None and not is_inside(item.id):
            raise jobs.JobError(
                f"{item.id} would not be below --output. Name its folder as the input, or write "
                "each caption beside its image."
            )
        file = outputs.txt(item)
        other = files.setdefault(str(file).casefold(), item)
        if other is not item:
            raise jobs.JobError(
                f"{other.path} and {item.path} would have the same caption file {file}. Rename "
                "one of the two, or write --out jsonl."
            )
    prompts = [options.instructions, options.vision_prompt]
    if "tags" in used_in(prompts) and outputs.folder is None and options.existing == "skip":
        raise jobs.JobError(
            "{tags} is the caption beside an image, and --existing skip leaves such images out. "
            "Use --existing overwrite, --output or --out jsonl."
        )


def _work(
    todo: Sequence[jobs.Item],
    job: Job,
    workers: Sequence[jobs.Worker],
    outputs: jobs.Outputs,
    options: argparse.Namespace,
    stop: Event,
) -> jobs.Progress:
    last = 0.0
    noted: set[str] = set()
    with tqdm(total=len(todo), unit="image", file=sys.stderr) as bar:

        def show(state: jobs.Progress) -> None:
            nonlocal last
            bar.update(1)
            if time.monotonic() - last > 1.0:
                last = time.monotonic()
                servers = ", ".join(f"{name} {n}" for name, n in state.by_worker.items())
                bar.set_postfix_str(f"{state.counts[jobs.FAILED]} failed, {servers}")

        return jobs.run_captions(
            todo,
            job,
            workers,
            options.job,
            outputs,
            watcher=lambda worker: _Watcher(stop, noted),
            seed=options.seed,
            chunk=options.chunk or jobs.CHUNK,
            progress=show,
        )


class _Watcher(Watcher):
    """Cancels on Ctrl-C, and prints what a run says about all its images once.

    Args:
        noted: what was printed before: each chunk is another run.
    """

    def __init__(self, stop: Event, noted: set[str]) -> None:
        self._stop = stop
        self._noted = noted

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def note(self, text: str) -> None:
        if text not in self._noted and "kept from earlier" not in text:
            self._noted.add(text)
            tqdm.write(text, file=sys.stderr)


def _with_models(
    job: Job,
    opened: Mapping[str, Sequence[Backend]],
    before: Mapping[str, Any],
    stop: Event,
) -> tuple[Job, dict[str, Model]]:
    """Return the job with the names of its models, and the models by their stage.

    Raises:
        JobError: two servers have different models under the name.
        LLMError: a server does not have a model.
    """
    models: dict[str, Model] = {}
    noted: set[str] = set()
    for name, capability, number in (("vision", "vision", 0), ("text", "completion", -1)):
        stage: Stage | None = getattr(job, name)
        if stage is None:
            continue
        stage = replace(stage, model=split_model(stage.model)[0])
        if stage.model == AUTO and before.get(f"{name}_model"):
            stage = replace(stage, model=str(before[f"{name}_model"]))
        for server, backends in opened.items():
            found = find_model(
                backends[number],
                stage,
                capability,
                memory=StageMemory(),
                watcher=_Watcher(stop, noted),
            )
            stage = replace(stage, model=found.name)
            first = models.setdefault(name, found)
            if first.digest != found.digest:
                raise jobs.JobError(
                    f'The server "{server}" has another {found.name} than the first one. Install '
                    "the same model on both, or use one of them."
                )
        job = replace(job, **{name: stage})
    return job, models


def _fingerprint(
    job: Job, models: Mapping[str, Model], options: argparse.Namespace
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": options.task,
        "seed": options.seed,
        "instructions": job.instructions[0] if job.text else "",
        "vision_prompt": job.custom_prompts[0],
        "prompt_format": PROMPT_FORMAT,
    }
    for name, model in models.items():
        stage: Stage = getattr(job, name)
        found[f"{name}_model"] = model.name
        found[f"{name}_digest"] = model.digest
        found[f"{name}_options"] = {**stage.options, "format": stage.settings.format}
    return found


def _lines(counts: Mapping[str, Any], state: jobs.Progress | None) -> Iterator[str]:
    yield f"{counts['done']} done, {counts['failed']} failed, {counts['left']} left."
    for title in ("errors", "flags"):
        if counts[title]:
            yield f"{title}: {', '.join(f'{n} {name}' for name, n in counts[title].items())}"
    if state is None:
        return
    for server, error in state.errors.items():
        yield f"Error: {server}: {_explained(error)}"
    for problem in state.unwritten[:5]:
        yield f"Error: {problem}"
    if len(state.unwritten) > 5:
        yield f"... and {len(state.unwritten) - 5} more caption files."


def _explained(error: LLMError) -> str:
    return message(error, DESCRIBE)
