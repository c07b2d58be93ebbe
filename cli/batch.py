"""`image-refinery batch`: a job over any number of images, which can be continued at any time."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tqdm import tqdm

from .. import jobs
from .._backends import open_backends
from ..captioning.events import Watcher
from ..captioning.job import Job, Result, Stage
from ..jobs.on_ray import on_ray
from ..llm.errors import Cancelled, LLMError
from ..memory import StageMemory, finish_pending_unloads
from ..texts.instructions import PresetError
from .describe import job_of
from .progress import estimate, stop_on_ctrl_c
from .terminal import CANCELLED, DESCRIBE, WRONG_ARGUMENTS, cancelled, failed, message
from .workflow import batch_workflow

_DOING = {"describe": "described", "rewrite": "rewritten", "refine": "refined"}
_OF_CAPTIONS = (
    *("instructions", "preset", "vision_prompt", "vision_model", "text_model", "num_predict"),
    *("keep_loaded_minutes", "server", "vision_server", "text_server", "ray", "allow_mixed"),
    *("parallel", "out", "prefix", "suffix", "chunk", "retry_flagged", "max_tokens"),
)
_OF_REFINING = (
    *("model", "strength", "steps", "guidance_scale", "negative_prompt", "memory_mode", "prompt"),
    *("format", "quality"),
)
_MEANT = {"model": "--vision-model", "prompt": "--vision-prompt"}


def batch(options: argparse.Namespace) -> int:
    """Run or continue a job; 0 if every image has a result, else 1."""
    if options.workflow or options.comfyui:
        return batch_workflow(options)
    try:
        return _batch(options)
    except (jobs.BadInputList, jobs.JobError) as error:
        return failed(error)
    except PresetError as error:
        failed(error)
        return WRONG_ARGUMENTS
    except OSError as error:  # the rows or an output cannot be written
        place, reason = error.filename or options.job, error.strerror or error
        return failed(
            jobs.JobError(
                f"{place} cannot be written ({reason}). What is done is kept: then run the same "
                "command again."
            )
        )
    finally:
        finish_pending_unloads()


def _batch(options: argparse.Namespace) -> int:
    tasks = options.task.split(",")
    captions, refines = tasks[0] != "refine", "refine" in tasks
    options.task = tasks[0]  # so that captions can be refined later, too
    _check_options(options, captions=captions, refines=refines)
    items = jobs.find_items(
        options.inputs,
        recursive=options.recursive,
        patterns=options.pattern,
        column=options.column,
    )
    job = _parallel(job_of(options), options.parallel)
    if captions:
        _check(options, job)
    if options.dry_run:
        for task in tasks:
            folder = options.job / task if task == "refine" and captions else options.job
            _plan(items, folder, options, f"{task}: " if tasks[1:] else "")
        return 0
    refinement = None
    if refines:
        from .batch_refine import refinement_of

        refinement = refinement_of(options, items, after_captions=captions)
    code = _caption(items, job, options) if captions else 0
    if refinement is None or code == CANCELLED:
        return code
    finish_pending_unloads()  # the refiner needs the memory of the server's models
    from .batch_refine import refine_items

    return max(code, refine_items(items, refinement, options))


def _caption(items: Sequence[jobs.Item], job: Job, options: argparse.Namespace) -> int:
    outputs = jobs.Outputs(
        job=options.job,
        kinds=frozenset(options.out),
        folder=options.output,
        prefix=options.prefix,
        suffix=options.suffix,
    )
    with (
        jobs.locked(options.job),
        stop_on_ctrl_c() as stop,
        _workers(options, job) as workers,
        Bars(stop) as bars,
    ):
        if options.ray is None:
            return _run(items, job, workers, outputs, options, bars)
        with on_ray(workers, options.ray, options.job) as remote:
            return _run(items, job, remote, outputs, options, bars)


def _check_options(options: argparse.Namespace, *, captions: bool, refines: bool) -> None:
    """End with exit code 2 if an option is for another task."""
    parser = options.parser
    others = [*(() if captions else _OF_CAPTIONS), *(() if refines else _OF_REFINING)]
    for name in others:
        if getattr(options, name) != parser.get_default(name):
            meant = _MEANT.get(name)
            hint = f", did you mean {meant}?" if meant and captions else ""
            parser.error(f"--task {options.task} takes no --{name.replace('_', '-')}{hint}")
    if not captions and "{caption}" in (options.prompt or ""):
        parser.error("{caption} needs --task describe,refine or caption,refine")


def _check(options: argparse.Namespace, job: Job) -> None:
    """End with exit code 2 if options contradict each other."""
    error = options.parser.error
    if (options.task == "caption") != (job.text is not None):
        needs = "needs" if options.task == "caption" else "takes no"
        error(f"--task {options.task} {needs} --instructions or --preset")
    roles = {"vision": options.vision_server, "text": options.text_server}
    if not any(roles.values()):
        return
    if options.server:
        error("--server is for both models: leave it out beside --vision-server and --text-server")
    if not options.vision_server or (options.task == "caption" and not options.text_server):
        error("--vision-server and --text-server belong together")
    if options.task == "describe" and options.text_server:
        error("--task describe takes no --text-server")
    if both := {*roles["vision"]} & {*(roles["text"] or ())}:
        error(f"{both.pop()} would have both roles, so name it with --server")


def _parallel(job: Job, count: int) -> Job:
    """Return the job with so many requests at a time."""

    def faster(stage: Stage) -> Stage:
        return replace(stage, settings=replace(stage.settings, parallel=count))

    return replace(job, vision=faster(job.vision), text=job.text and faster(job.text))


def _plan(
    items: Sequence[jobs.Item], folder: Path, options: argparse.Namespace, title: str
) -> None:
    """Print what a run would do, without asking any server."""
    rows = jobs.Rows(folder)
    todo, _ = jobs.to_do(items, rows, failed=options.retry_failed, flagged=options.retry_flagged)
    count = min(len(todo), options.limit or len(todo))
    print(f"{title}{len(items)} images, {len(items) - len(todo)} have a result, {count} to do.")


@contextmanager
def _workers(options: argparse.Namespace, job: Job) -> Iterator[list[jobs.Worker]]:
    """Yield a worker for each server that was named."""
    with ExitStack() as stack:

        def opened(server: str, *models: str) -> list[Any]:
            return stack.enter_context(open_backends(server, *models))

        vision, text = job.vision.model, job.text.model if job.text else ""
        workers: list[jobs.Worker] = []
        if options.vision_server:
            for name in dict.fromkeys(options.vision_server):
                (backend,) = opened(name, vision)
                workers.append(
                    jobs.Worker(name=name, vision=backend, text=None, memory=StageMemory())
                )
            for name in dict.fromkeys(options.text_server or ()):
                (backend,) = opened(name, text)
                workers.append(
                    jobs.Worker(name=name, vision=None, text=backend, memory=StageMemory())
                )
        else:
            for name in dict.fromkeys(options.server or ["default"]):
                backends = opened(name, *filter(None, (vision, text)))
                workers.append(
                    jobs.Worker(
                        name=name,
                        vision=backends[0],
                        text=backends[-1] if text else None,
                        memory=StageMemory(),
                    )
                )
        yield workers


def _run(
    items: Sequence[jobs.Item],
    job: Job,
    workers: Sequence[jobs.Worker],
    outputs: jobs.Outputs,
    options: argparse.Namespace,
    bars: Bars,
) -> int:
    inputs = {one.absolute() for one in options.inputs if isinstance(one, Path)}
    for place in outputs.places.values():
        if place.absolute() in inputs:
            raise jobs.JobError(f"{place} is an input. Name another folder after --output.")
    begun = jobs.begin(
        items,
        job,
        workers,
        options.job,
        outputs,
        bars.watcher(),
        settings={"task": options.task, "seed": options.seed},
        retry_failed=options.retry_failed,
        retry_flagged=options.retry_flagged,
        overwrite=options.existing == "overwrite",
        allow_mixed=options.allow_mixed,
    )
    for note in begun.notes:
        print(note, file=sys.stderr)
    count = len(begun.items)
    print(f"{count - len(begun.todo)} of {count} images have a result.", file=sys.stderr)
    todo = begun.todo[: options.limit]
    state: jobs.Progress | None = None
    was_cancelled = False
    began = time.monotonic()
    try:
        if todo:
            bars.total = len(todo)
            state = jobs.run_captions(
                todo,
                begun.job,
                begun.workers,
                options.job,
                outputs,
                watcher=lambda worker: bars.watcher(),
                seed=options.seed,
                attempts=begun.attempts,
                tags=begun.tags,
                chunk=options.chunk,
                progress=bars.show,
            )
    except Cancelled:
        was_cancelled = True
    seconds = time.monotonic() - began
    bars.close()
    counts = jobs.end(
        begun,
        options.job,
        outputs,
        max_tokens=options.max_tokens,
        cancelled=was_cancelled,
    )
    for line in summary(counts, state):
        print(line, file=sys.stderr)
    if options.estimate and state:
        print(estimate(counts["left"], sum(state.counts.values()), seconds))
    print(f"Report: {options.job / jobs.REPORT}", file=sys.stderr)
    if was_cancelled:
        return cancelled(f"{counts['left']} images are left. The same command continues.")
    left = counts["left"] and not (options.limit and state and not state.errors)
    return 1 if counts["failed"] or left or (state and state.unwritten) else 0


class Bars:
    """A line of progress for each stage: rate, time left, failures, and each server's count."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop
        self.total = 0
        self.noted: set[str] = set()
        self._bars: dict[str, tqdm[Any]] = {}
        self._lock = Lock()
        self._shown = 0.0

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watcher(self) -> Watcher:
        """Return a watcher of one chunk."""
        return _Watcher(self)

    def finished(self, stage: str) -> None:
        """Count one image of a stage."""
        with self._lock:
            self._bar(stage).update(1)

    def doing(self, stage: str, text: str) -> None:
        """Show what happens to the image in progress."""
        with self._lock:
            bar = self._bar(stage)
            bar.set_postfix_str(text, refresh=False)
            bar.update(0)

    def show(self, state: jobs.Progress) -> None:
        """Show the counts of servers and failures; at most once a second."""
        with self._lock:
            if self._bars and time.monotonic() - self._shown > 1.0:
                self._shown = time.monotonic()
                servers = ", ".join(f"{name} {n}" for name, n in state.by_worker.items())
                last = list(self._bars.values())[-1]
                last.set_postfix_str(
                    f"{state.counts[jobs.FAILED]} failed, {servers}", refresh=sys.stderr.isatty()
                )

    def note(self, text: str) -> None:
        """Print a sentence about the whole run, once: each chunk is another run."""
        if text not in self.noted:
            self.noted.add(text)
            tqdm.write(text, file=sys.stderr)

    def _bar(self, stage: str) -> tqdm[Any]:
        if stage not in self._bars:
            self._bars[stage] = tqdm(
                total=self.total,
                desc=_DOING[stage],
                unit="image",
                position=len(self._bars),
                # A log file gets a line now and then, not ten a second.
                mininterval=0.1 if sys.stderr.isatty() else 30.0,
                file=sys.stderr,
            )
        return self._bars[stage]

    def close(self) -> None:
        """End the lines."""
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()


class _Watcher(Watcher):
    """Cancels on Ctrl-C, and counts."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._stage = ""

    def cancelled(self) -> bool:
        return self._bars.stop.is_set()

    def stage(self, title: str, model: str, count: int) -> None:
        self._stage = title

    def finished(self, index: int, result: Result) -> None:
        self._bars.finished(self._stage)

    def kept(self, title: str, count: int, requests: int) -> None:
        """Say nothing: each chunk that is continued would."""

    def note(self, text: str) -> None:
        self._bars.note(text)


def summary(counts: Mapping[str, Any], state: jobs.Progress | None) -> Iterator[str]:
    """Yield the last lines of a run."""
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
