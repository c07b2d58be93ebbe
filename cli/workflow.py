"""`image-refinery batch --workflow`: a ComfyUI workflow, run once for each image of a job."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from tqdm import tqdm

from .. import jobs
from ..llm.errors import Cancelled
from .batch_run import Bars, find_items, input_around, print_begin, print_end, print_plan
from .progress import stop_on_ctrl_c

_TAKES = {
    *("inputs", "recursive", "pattern", "column", "job", "workflow", "comfyui", "output", "seed"),
    *("limit", "retry_failed", "estimate", "dry_run"),
    *("run", "parser", "verbose"),
}


def batch_workflow(options: argparse.Namespace) -> int:
    """Run or continue a job; 0 if every image has a result, else 1."""
    _check(options)
    workflow = jobs.read_workflow(options.workflow)
    items = find_items(options)
    if options.dry_run:
        print_plan(items, options.job, options)
        return 0
    with ExitStack() as stack:
        servers = [
            stack.enter_context(closing(jobs.ComfyUI(address)))
            for address in dict.fromkeys(options.comfyui)
        ]
        stack.enter_context(jobs.locked(options.job))
        stop = stack.enter_context(stop_on_ctrl_c())
        bars = stack.enter_context(Bars(stop))
        return _run(items, workflow, servers, options, bars)


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
    bars: Bars,
) -> int:
    seed, folder = options.seed, options.job
    todo, warning = jobs.begin_workflow(
        items, workflow, folder, seed=seed, retry_failed=options.retry_failed
    )
    downloads = None
    if options.output is not None:
        if one := input_around(options.output, options):
            raise jobs.JobError(f"{options.output} is inside the input {one}. Name another folder.")
        downloads = jobs.Downloads(options.output, folder, items)
    done = len(items) - len(todo)
    print_begin([warning] if warning else [], done, len(items))
    if done and downloads and downloads.is_new:
        print("Results of earlier runs are not downloaded.", file=sys.stderr)
    todo = todo[: options.limit]
    state: jobs.Progress | None = None
    was_cancelled = False

    def show(progress: jobs.Progress) -> None:
        bars.finished("workflow")
        bars.show(progress)

    began = time.monotonic()
    try:
        if todo:
            bars.total = len(todo)
            state = jobs.run_workflow(
                todo,
                workflow,
                servers,
                folder,
                seed=seed,
                downloads=downloads,
                cancelled=bars.stop.is_set,
                progress=show,
                note=lambda text: tqdm.write(text, file=sys.stderr),
            )
    except Cancelled:
        was_cancelled = True
    seconds = time.monotonic() - began
    bars.close()
    counts = jobs.write_report(folder, jobs.Rows(folder), {item.id: item for item in items})
    return print_end(counts, state, folder, options, seconds=seconds, was_cancelled=was_cancelled)
