"""The part of `image-refinery batch` that refines; it needs torch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import jobs
from ..jobs.refining import CAPTION, RefinedFiles, begin_refining, end_refining, run_refining
from ..jobs.refining_on_ray import Checkpoint, run_refining_on_ray
from ..refine import ImageRefiner, RefineCancelled, RefineError, RefineSettings
from ..refine.identity import identify
from ..refine.progress import Progress
from .batch_run import Bars, input_around, print_begin, print_end
from .progress import stop_on_ctrl_c
from .refine import load, open_refiner


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What refines the images of a job.

    Attributes:
        folder: the job's directory.
        captions: the directory of the job whose captions are in the prompts; None: no captions.
    """

    refiner: ImageRefiner
    settings: RefineSettings
    folder: Path
    files: RefinedFiles
    captions: Path | None


def refinement_of(
    options: argparse.Namespace, items: Sequence[jobs.Item], *, after_captions: bool
) -> Refinement:
    """Return what the options ask for, checked before the first image.

    Raises:
        JobError: two images would have one file, or the results would become inputs.
        SettingsError, CheckpointError: an option is out of range, or names no checkpoint.
    """
    prompt = options.prompt
    if prompt is None:
        prompt = CAPTION if after_captions else ""
    settings = RefineSettings(
        strength=options.strength,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        prompt=prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
    )
    files = RefinedFiles(
        folder=options.output or options.job / "refined",
        format=options.format,
        quality=options.quality,
    )
    if one := input_around(files.folder, options):
        raise jobs.JobError(
            f"The refined images would be in {one}, which is an input, and the next run would "
            "refine them again. Name another folder after --output."
        )
    files.check(items)
    return Refinement(
        # With Ray, the refiners are elsewhere.
        refiner=open_refiner(options, "cpu" if options.ray else None),
        settings=settings,
        folder=options.job / "refine" if after_captions else options.job,
        files=files,
        captions=options.job if after_captions and CAPTION in prompt else None,
    )


def refine_items(
    items: Sequence[jobs.Item], refinement: Refinement, options: argparse.Namespace
) -> int:
    """Run or continue the refinement of a job; 0 if every image has a result, else 1.

    Raises:
        JobError: the job cannot be run in its directory as it was asked for.
        RefineError: it ended the run; all that is finished is kept.
        OSError: a file cannot be written.
    """
    refiner, folder = refinement.refiner, refinement.folder
    identity = identify(refiner.model)
    with jobs.locked(folder):
        job = begin_refining(
            items,
            refinement.settings,
            identity,
            folder,
            refinement.files,
            captions=jobs.Rows(refinement.captions) if refinement.captions else None,
            retry_failed=options.retry_failed,
            overwrite=options.existing == "overwrite",
        )
        count = len(job.items)
        print_begin(job.notes, count - len(job.todo) - job.waiting, count)
        todo = job.todo[: options.limit]
        state: jobs.Progress | None = None
        ended: RefineError | None = None
        was_cancelled = False
        address: str | None = options.ray
        began = time.monotonic()

        def show(progress: jobs.Progress) -> None:
            nonlocal state
            state = progress
            bars.finished("refine")
            bars.show(progress)

        def show_step(event: Progress) -> None:
            bars.doing("refine", event.text)

        try:
            with ExitStack() as stack:
                if todo and address is None:
                    load(stack.enter_context(refiner))
                    began = time.monotonic()
                stop = stack.enter_context(stop_on_ctrl_c())
                bars = stack.enter_context(Bars(stop))
                bars.total = len(todo)
                if todo and address is None:
                    run_refining(
                        job,
                        todo,
                        refiner,
                        should_stop=stop.is_set,
                        on_step=show_step,
                        progress=show,
                    )
                elif todo and address is not None:
                    state = run_refining_on_ray(
                        job,
                        todo,
                        Checkpoint(str(refiner.model), identity, options.memory_mode),
                        address,
                        should_stop=stop.is_set,
                        progress=show,
                        note=bars.note,
                    )
        except RefineCancelled:
            was_cancelled = True
        except RefineError as error:
            ended = error
        seconds = time.monotonic() - began
        counts = end_refining(job)
    notes = [f"Refined images: {refinement.files.folder}"]
    if job.waiting:
        notes.insert(0, f"{job.waiting} images have no caption yet, so they are left.")
    code = print_end(
        counts,
        state,
        folder,
        options,
        seconds=seconds,
        was_cancelled=was_cancelled,
        notes=notes,
        waiting=job.waiting,
    )
    if ended:
        raise ended
    return code
