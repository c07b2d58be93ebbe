"""What all tasks of `image-refinery batch` share: plan, bars, last lines, exit codes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tqdm import tqdm

from .. import jobs
from .._advice import with_code
from ..captioning.events import Watcher
from ..captioning.job import Result
from ..llm.errors import LLMError
from .progress import estimate
from .terminal import DESCRIBE, cancelled, message

_DOING = {
    "describe": "described", "rewrite": "rewritten", "refine": "refined", "workflow": "done",
}  # fmt: skip
_MOST_UNWRITTEN = 5


def find_items(options: argparse.Namespace) -> list[jobs.Item]:
    """Return the images of the inputs."""
    return jobs.find_items(
        options.inputs,
        recursive=options.recursive,
        patterns=options.pattern,
        column=options.column,
    )


def input_around(place: Path, options: argparse.Namespace) -> Path | None:
    """Return the input whose images would be joined by results in a folder, or None."""
    place = place.resolve()
    for one in options.inputs:
        if isinstance(one, Path):
            taken = one.resolve()
            if place == taken or (options.recursive and taken in place.parents):
                return one
    return None


def print_plan(
    items: Sequence[jobs.Item], folder: Path, options: argparse.Namespace, title: str = ""
) -> None:
    """Print what a run would do, without asking any server."""
    rows = jobs.Rows(folder)
    todo, _ = jobs.to_do(items, rows, failed=options.retry_failed, flagged=options.retry_flagged)
    count = len(todo[: options.limit])
    print(f"{title}{len(items)} images, {len(items) - len(todo)} have a result, {count} to do.")


def print_begin(notes: Sequence[str], done: int, count: int) -> None:
    """Print the first lines of a run."""
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{done} of {count} images have a result.", file=sys.stderr)


def print_end(
    counts: Mapping[str, Any],
    state: jobs.Progress | None,
    folder: Path,
    options: argparse.Namespace,
    *,
    seconds: float,
    was_cancelled: bool,
    notes: Sequence[str] = (),
    waiting: int = 0,
) -> int:
    """Print the last lines of a run; return its exit code.

    Args:
        counts: of the report.
        state: of the run; None: it did nothing, or was cancelled.
        notes: further lines.
        waiting: images that this run could not take.
    """
    lines = [f"{counts['done']} done, {counts['failed']} failed, {counts['left']} left."]
    for title in ("errors", "flags"):
        if counts[title]:
            lines.append(
                f"{title}: {', '.join(f'{n} {name}' for name, n in counts[title].items())}"
            )
    errors, unwritten = (state.errors, state.unwritten) if state else ({}, [])
    lines += [f"Error: {_explained(name, error)}" for name, error in errors.items()]
    lines += [f"Error: {problem}" for problem in unwritten[:_MOST_UNWRITTEN]]
    if more := unwritten[_MOST_UNWRITTEN:]:
        lines.append(f"... and {len(more)} more caption files.")
    for line in (*lines, *notes):
        print(line, file=sys.stderr)
    if options.estimate and state:
        print(estimate(counts["left"], state.counts.total(), seconds))
    print(f"Report: {folder / jobs.REPORT}", file=sys.stderr)
    if was_cancelled:
        return cancelled(f"{counts['left']} images are left. The same command continues.")
    left = counts["left"] and not (options.limit and state and not errors)
    return 1 if counts["failed"] or left or waiting or unwritten else 0


def _explained(worker: str, error: Exception) -> str:
    if isinstance(error, jobs.ComfyUIError):
        return with_code(error)  # it names the address
    text = message(error, DESCRIBE) if isinstance(error, LLMError) else with_code(error)
    return f"{worker}: {text}"


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
