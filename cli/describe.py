"""`image-refinery describe`: what the node LLM Image Refine does, for files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from .._backends import open_backends
from ..captioning.job import Caption, Job, Result, Stage
from ..captioning.options import (
    TEXT_SAMPLING,
    VISION_SAMPLING,
    StageOptions,
    text_options,
    vision_options,
)
from ..captioning.run import run
from ..files import (
    UnreadableImage,
    caption_file,
    caption_files,
    find_images,
    open_image,
    same_name_message,
    write_caption,
)
from ..files.folders import IMAGE_SUFFIXES
from ..llm.choice import AUTO
from ..llm.errors import UnusableImage
from ..llm.servers import split_model
from .progress import watching
from .terminal import message

if TYPE_CHECKING:
    from PIL import Image

_READ = f"Files that are read: {', '.join(sorted(IMAGE_SUFFIXES))}."


def describe(options: argparse.Namespace) -> int:
    """Describe and rewrite `options.images`; 0 if every one went well, else 1."""
    paths = _files(options.images, recursive=options.recursive)
    if options.txt:  # a file that is named twice gets one caption
        paths = list({os.path.abspath(path): path for path in paths}.values())
    named = dict(zip(paths, caption_files(paths, full_names=options.full_names), strict=True))
    refused = [path for path in paths if options.txt and named[path] is None]
    paths = [path for path in paths if path not in refused]
    files = {path: named[path] or caption_file(path) for path in paths}
    if options.skip_existing:
        found = len(paths)
        paths = [path for path in paths if not files[path].exists()]
        print(f"{found - len(paths)} of {found} have a caption already.", file=sys.stderr)
    for path in refused:
        _print_refused(path, as_json=options.json)
    if not paths:
        print(f"There is nothing to describe. {_READ}", file=sys.stderr)
        return 0 if options.skip_existing and not refused else 1
    job = make_job(
        vision_model=options.vision_model,
        text_model=options.text_model,
        instructions=options.instructions,
        vision_prompt=options.vision_prompt,
        seed=options.seed,
        keep_loaded_s=60.0 * options.keep_loaded_minutes,
    )
    captions = _Captions({path: files[path] for path in paths}, options) if options.txt else None
    done = run_on_files(paths, job, server=options.server, finished=captions)
    if captions is not None:
        print(f"{captions.written} captions written.", file=sys.stderr)
        for problem in captions.problems:
            print(f"Error: {problem}", file=sys.stderr)
    for path, caption in zip(paths, done, strict=True):
        if options.json:
            entry = _as_json(path, caption)
            print(json.dumps(entry, ensure_ascii=False))
            if "error" in entry and captions is None:
                print(f"Error: {path}: {entry['error']}", file=sys.stderr)
        elif captions is None:
            _print_texts(path, caption, heading=len(paths) > 1)
    unwritten = refused or (captions is not None and captions.problems)
    return 1 if unwritten or any(_failed(caption) for caption in done) else 0


def _files(named: Sequence[Path], *, recursive: bool) -> list[Path]:
    """The files that were named, and the images in the folders that were."""
    return [
        path
        for one in named
        for path in (
            find_images(one, recursive=recursive, follow_links=True) if one.is_dir() else [one]
        )
    ]


def _print_refused(path: Path, *, as_json: bool) -> None:
    message = (
        f"{same_name_message(str(path), str(caption_file(path)))}, or use --full-names to write "
        f"{path.name}.txt."
    )
    print(f"Error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"image": str(path), "error": message}, ensure_ascii=False))


class _Captions:
    """Writes each caption when it is there: what is cancelled later keeps what it has."""

    def __init__(self, files: dict[Path, Path], options: argparse.Namespace) -> None:
        self._files = list(files.items())
        self._how = {
            name: getattr(options, name) for name in ("prefix", "suffix", "keep_line_breaks")
        }
        self.written = 0
        self.problems: list[str] = []

    def __call__(self, index: int, caption: Caption) -> None:
        path, file = self._files[index]
        if caption.final.error:
            self.problems.append(f"{path}: {message(caption.final.error)}")
            return
        try:
            write_caption(file, caption.final.text, **self._how)
        except OSError as error:
            self.problems.append(f"{file} cannot be written ({error.strerror or error}).")
        else:
            self.written += 1


def run_on_files(
    paths: Sequence[Path],
    job: Job,
    *,
    server: str = "",
    finished: Callable[[int, Caption], None] | None = None,
) -> list[Caption]:
    """Run a job on image files, with progress on stderr; `finished` hears of each when it is done.

    Args:
        server: where models are that do not name their own server ("llava @ box").
    """
    models = [stage.model for stage in (job.vision, job.text) if stage]
    job = replace(job, vision=_without_server(job.vision))
    if job.text:
        job = replace(job, text=_without_server(job.text))
    with (
        watching() as watcher,
        open_backends(server, *models, cancelled=watcher.cancelled) as backends,
    ):
        return run(
            backends[0],
            [source(path) for path in paths],
            job,
            text_backend=backends[-1],
            memory=memory.StageMemory(),
            watcher=watcher,
            finished=finished,
        )


def _without_server(stage: Stage) -> Stage:
    return replace(stage, model=split_model(stage.model)[0])


def make_job(
    *,
    vision_model: str | None = None,
    text_model: str | None = None,
    instructions: str = "",
    vision_prompt: str = "",
    seed: int = 0,
    keep_loaded_s: float = 0.0,
) -> Job:
    """Return the job with the node's defaults; a model that is not named is chosen by the run."""
    settings = StageOptions()
    return Job(
        vision=Stage(
            model=vision_model or AUTO, options=vision_options(VISION_SAMPLING, seed, settings)
        ),
        text=Stage(model=text_model or AUTO, options=text_options(TEXT_SAMPLING, seed, settings))
        if instructions
        else None,
        instructions=[instructions],
        custom_prompts=[vision_prompt],
        keep_loaded_s=keep_loaded_s,
    )


def source(path: Path) -> Callable[[], Image.Image]:
    """Return what opens an image file, upright, when its turn comes."""

    def load() -> Image.Image:
        try:
            return open_image(path)
        except UnreadableImage as error:
            raise UnusableImage(str(error)) from error

    return load


def _print_texts(path: Path, caption: Caption, *, heading: bool) -> None:
    if heading:
        print(f"== {path}")
    _print_result(path, caption.description)
    if caption.refined is not None and caption.refined is not caption.description:
        print()
        _print_result(path, caption.refined)


def _print_result(path: Path, result: Result) -> None:
    if result.error is None:
        print(result.text)
        return
    # The error of an unreadable file names it already.
    where = "" if str(result.error).startswith(f"{path} ") else f"{path}: "
    print(f"Error: {where}{message(result.error)}", file=sys.stderr)


def _as_json(path: Path, caption: Caption) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": str(path)}
    stages = (
        ("vision_model", "description", caption.description),
        ("text_model", "refined_output", caption.refined),
    )
    for model, name, result in stages:
        if result and result.error:
            entry["error"] = message(result.error)
        elif result and result.answer:
            entry |= {model: result.answer.model, name: result.text}
    return entry


def _failed(caption: Caption) -> bool:
    return any(result and result.error for result in (caption.description, caption.refined))
