"""`image-refinery batch --workflow`: a ComfyUI workflow, run once for each image of a job."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from .. import jobs
from .._advice import with_code
from ..llm.errors import Cancelled
from .progress import estimate, stop_on_ctrl_c
from .terminal import cancelled, failed

_TAKES = {
    *("inputs", "recursive", "pattern", "column", "job", "workflow", "comfyui", "output", "seed"),
    *("limit", "retry_failed", "estimate", "dry_run"),
    *("run", "parser", "verbose"),
}


def batch_workflow(options: argparse.Namespace) -> int:
    """Run or continue a job; 0 if every image has a result, else 1."""
    _check(options)
    try:
        workflow = jobs.read_workflow(options.workflow)
        items = jobs.find_items(
            options.inputs,
            recursive=options.recursive,
            patterns=options.pattern,
            column=options.column,
        )
        if options.dry_run:
            todo, _ = jobs.to_do(items, jobs.Rows(options.job), failed=options.retry_failed)
            count = len(todo[: options.limit])
            print(f"{len(items)} images, {len(items) - len(todo)} have a result, {count} to do.")
            return 0
        with ExitStack() as stack:
            servers = [
                stack.enter_context(closing(jobs.ComfyUI(address)))
                for address in dict.fromkeys(options.comfyui)
            ]
            stack.enter_context(jobs.locked(options.job))
            stop = stack.enter_context(stop_on_ctrl_c())
            return _run(items, workflow, servers, options, stop)
    except (jobs.BadInputList, jobs.ComfyUIError, jobs.JobError) as error:
        return failed(error)
    except OSError as error:
        return failed(jobs.JobError(f"{error.filename or options.job}: {error.strerror or error}."))


def _check(options: argparse.Namespace) -> None:
    """End with exit code 2 if options contradict each other."""
    if not (options.workflow and options.comfyui):
        options.parser.error("--workflow and --comfyui belong together")
    for name, value in vars(options).items():
        if name not in _TAKES and value != options.parser.get_default(name):
            options.parser.error(f"--workflow takes no --{name.replace('_', '-')}")


def _run(
    items: Sequence[jobs.Item],
    workflow: jobs.Workflow,
    servers: Sequence[jobs.ComfyUI],
    options: argparse.Namespace,
    stop: Event,
) -> int:
    seed, folder = options.seed, options.job
    todo, warning = jobs.begin_workflow(
        items, workflow, folder, seed=seed, retry_failed=options.retry_failed
    )
    downloads = None
    if options.output is not None:
        _check_output(options)
        downloads = jobs.Downloads(options.output, folder, items)
    if warning:
        print(warning, file=sys.stderr)
    done = len(items) - len(todo)
    print(f"{done} of {len(items)} images have a result.", file=sys.stderr)
    if done and downloads and downloads.is_new:
        print("Results of earlier runs are not downloaded.", file=sys.stderr)
    todo = todo[: options.limit]
    state: jobs.WorkflowProgress | None = None
    was_cancelled = False
    began = time.monotonic()
    try:
        if todo:
            with tqdm(
                total=len(todo),
                desc="done",
                unit="image",
                mininterval=0.1 if sys.stderr.isatty() else 30.0,
                file=sys.stderr,
            ) as bar:
                state = jobs.run_workflow(
                    todo,
                    workflow,
                    servers,
                    folder,
                    seed=seed,
                    downloads=downloads,
                    cancelled=stop.is_set,
                    progress=lambda state: _show(bar, state),
                    note=lambda text: tqdm.write(text, file=sys.stderr),
                )
    except Cancelled:
        was_cancelled = True
    seconds = time.monotonic() - began
    counts = jobs.write_report(folder, jobs.Rows(folder), {item.id: item for item in items})
    print(
        f"{counts['done']} done, {counts['failed']} failed, {counts['left']} left.", file=sys.stderr
    )
    if counts["errors"]:
        errors = ", ".join(f"{count} {name}" for name, count in counts["errors"].items())
        print(f"errors: {errors}", file=sys.stderr)
    for error in state.errors.values() if state else ():
        print(f"Error: {with_code(error)}", file=sys.stderr)
    if options.estimate and state:
        print(estimate(counts["left"], state.counts.total(), seconds))
    print(f"Report: {folder / jobs.REPORT}", file=sys.stderr)
    if was_cancelled:
        return cancelled(f"{counts['left']} images are left. The same command continues.")
    left = counts["left"] and not (options.limit and state and not state.errors)
    return 1 if counts["failed"] or left else 0


def _show(bar: tqdm[Any], state: jobs.WorkflowProgress) -> None:
    servers = ", ".join(f"{url} {count}" for url, count in state.by_server.items())
    bar.set_postfix_str(f"{state.counts[jobs.FAILED]} failed, {servers}", refresh=False)
    bar.update(1)


def _check_output(options: argparse.Namespace) -> None:
    """Raise JobError if the next run would take the results for images of the input."""
    place = options.output.absolute()
    for one in options.inputs:
        if isinstance(one, Path) and (
            place == one.absolute() or (options.recursive and place.is_relative_to(one.absolute()))
        ):
            raise jobs.JobError(f"{options.output} is inside the input {one}. Name another folder.")
