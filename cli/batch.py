"""`image-refinery batch`: a job over any number of images, which can be continued at any time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from .. import jobs
from .._backends import open_backends
from ..captioning.job import Job, Stage
from ..jobs.on_ray import on_ray
from ..llm.errors import Cancelled
from ..memory import StageMemory, finish_pending_unloads
from ..texts.instructions import PresetError
from .batch_run import Bars, find_items, print_begin, print_end, print_plan
from .describe import job_of
from .progress import stop_on_ctrl_c
from .terminal import CANCELLED, WRONG_ARGUMENTS, failed
from .workflow import batch_workflow

_OF_CAPTIONS = (
    *("instructions", "preset", "vision_prompt", "vision_model", "text_model", "num_predict"),
    *("keep_loaded_minutes", "server", "vision_server", "text_server", "allow_mixed"),
    *("parallel", "out", "prefix", "suffix", "chunk", "retry_flagged", "max_tokens"),
)
_OF_REFINING = (
    *("model", "strength", "steps", "guidance_scale", "negative_prompt", "memory_mode", "prompt"),
    *("format", "quality"),
)
_VISION = ("vision_prompt", "vision_model", "vision_server", "text_server")
_MEANT = {"model": "--vision-model", "prompt": "--vision-prompt", "text_server": "--server"}


def batch(options: argparse.Namespace) -> int:
    """Run or continue a job; 0 if every image has a result, else 1."""
    try:
        return batch_workflow(options) if options.workflow or options.comfyui else _batch(options)
    except (jobs.BadInputList, jobs.ComfyUIError, jobs.JobError) as error:
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
    items = find_items(options)
    job = _parallel(job_of(options), options.parallel)
    if captions:
        _check(options, job)
    if options.dry_run:
        for task in tasks:
            folder = options.job / task if task == "refine" and captions else options.job
            print_plan(items, folder, options, f"{task}: " if tasks[1:] else "")
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
    others += _VISION if options.task == "rewrite" else ()
    for name in others:
        if getattr(options, name) != parser.get_default(name):
            meant = _MEANT.get(name)
            hint = f", did you mean {meant}?" if meant and captions else ""
            parser.error(f"--task {options.task} takes no --{name.replace('_', '-')}{hint}")
    if not captions and "{caption}" in (options.prompt or ""):
        parser.error("{caption} needs a task such as caption,refine")


def _check(options: argparse.Namespace, job: Job) -> None:
    """End with exit code 2 if options contradict each other."""
    error = options.parser.error
    if (options.task != "describe") != (job.text is not None):
        needs = "takes no" if options.task == "describe" else "needs"
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


@contextmanager
def _workers(options: argparse.Namespace, job: Job) -> Iterator[list[jobs.Worker]]:
    """Yield a worker for each server that was named."""
    vision, text = job.vision.model, job.text.model if job.text else ""
    if options.task == "rewrite":
        vision = ""
    if options.vision_server:
        named = [(name, vision, "") for name in options.vision_server]
        named += [(name, "", text) for name in options.text_server or ()]
    else:
        named = [(name, vision, text) for name in options.server or ["default"]]
    with ExitStack() as stack:
        workers: list[jobs.Worker] = []
        for name, describes, writes in dict.fromkeys(named):
            models = filter(None, (describes, writes))
            backends = stack.enter_context(open_backends(name, *models))
            workers.append(
                jobs.Worker(
                    name=name,
                    vision=backends[0] if describes else None,
                    text=backends[-1] if writes else None,
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
    count = len(begun.items)
    print_begin(begun.notes, count - len(begun.todo), count)
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
    return print_end(
        counts, state, options.job, options, seconds=seconds, was_cancelled=was_cancelled
    )
