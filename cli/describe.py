"""`image-refinery describe`: what the node LLM Image Refine does, for files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from .._program import pull
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
    UnreadablePicture,
    caption_file,
    caption_files,
    find_pictures,
    open_picture,
    same_name_message,
    write_caption,
)
from ..files.folders import PICTURE_SUFFIXES
from ..llm.backend import Model
from ..llm.errors import NoModel, UnusableImage
from ..llm.servers import Server, find_server
from ..ollama_client import OllamaClient, same_model
from .progress import watching
from .terminal import message

if TYPE_CHECKING:
    from PIL import Image

USUAL_MODELS = {"vision": "llava", "completion": "llama3.2"}
_CALLED = {"vision": "describing images", "completion": "writing text"}
TOY = "toy-vision"
"""The embedded engine's built-in model, for tests and the demo."""
_READ = f"Files that are read: {', '.join(sorted(PICTURE_SUFFIXES))}."


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
    with OllamaClient(find_server(options.server)) as client:
        job = make_job(
            client,
            vision_model=options.vision_model,
            text_model=options.text_model,
            instructions=options.instructions,
            vision_prompt=options.vision_prompt,
            seed=options.seed,
            keep_loaded_s=60.0 * options.keep_loaded_minutes,
        )
        if any(is_toy(stage.model, client.server) for stage in (job.vision, job.text) if stage):
            print(
                f"{TOY} is a stand-in that knows drawn shapes and colors only. Fetch a real model "
                f"with: {pull('smolvlm')} (or install Ollama, then run: ollama pull llava)",
                file=sys.stderr,
            )
        captions = (
            _Captions({path: files[path] for path in paths}, options) if options.txt else None
        )
        done = run_on_files(client, paths, job, finished=captions)
    if captions is not None:
        print(f"{captions.written} captions written.", file=sys.stderr)
        for problem in captions.problems:
            print(f"Error: {problem}", file=sys.stderr)
    for path, caption in zip(paths, done, strict=True):
        if options.json:
            print(json.dumps(_as_json(path, caption, job), ensure_ascii=False))
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
            find_pictures(one, recursive=recursive, follow_links=True) if one.is_dir() else [one]
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
    client: OllamaClient,
    paths: Sequence[Path],
    job: Job,
    finished: Callable[[int, Caption], None] | None = None,
) -> list[Caption]:
    """Run a job on image files, with progress on stderr; `finished` hears of each at once."""
    with watching() as watcher:
        return run(
            client,
            [source(path) for path in paths],
            job,
            memory=memory.StageMemory(),
            watcher=watcher,
            finished=finished,
        )


def make_job(
    client: OllamaClient,
    *,
    vision_model: str | None = None,
    text_model: str | None = None,
    instructions: str = "",
    vision_prompt: str = "",
    seed: int = 0,
    keep_loaded_s: float = 0.0,
) -> Job:
    """Return the job with the node's defaults; a model that is not named is chosen."""
    settings = StageOptions()
    if not vision_model or (instructions and not text_model):
        models = [client.show(model) for model in client.list()]
        vision_model = vision_model or choose(models, "vision", client.server)
        text_model = text_model or choose(models, "completion", client.server)
    return Job(
        vision=Stage(model=vision_model, options=vision_options(VISION_SAMPLING, seed, settings)),
        text=Stage(
            model=text_model or vision_model,
            options=text_options(TEXT_SAMPLING, seed, settings),
        )
        if instructions
        else None,
        instructions=[instructions],
        custom_prompts=[vision_prompt],
        keep_loaded_s=keep_loaded_s,
    )


def choose(models: Sequence[Model], capability: str, server: Server) -> str:
    """Return the usual model if it is installed, else the first that can do it, a toy last.

    The toy cannot write without a picture.

    Text models come before models that can see as well: they are the better writers for their size.

    Raises:
        NoModel: none can; the message names the usual one.
    """
    able = [model for model in models if not model.lacks(capability)]
    if capability == "completion":
        able = [model for model in able if not is_toy(model.name, server)]
    able.sort(key=lambda model: is_toy(model.name, server))
    if not able:
        raise NoModel(_CALLED[capability], USUAL_MODELS[capability], server)
    usual = [model for model in able if same_model(model.name, USUAL_MODELS[capability])]
    plain = [model for model in able if capability == "completion" and model.lacks("vision")]
    return (usual or plain or able)[0].name


def is_toy(name: str, server: Server) -> bool:
    """Return whether a name means the built-in model of the embedded engine."""
    return server.is_embedded and same_model(name, TOY)


def source(path: Path) -> Callable[[], Image.Image]:
    """Return what opens an image file, upright, when its turn comes."""

    def load() -> Image.Image:
        try:
            return open_picture(path)
        except UnreadablePicture as error:
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


def _as_json(path: Path, caption: Caption, job: Job) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": str(path), "vision_model": job.vision.model}
    if job.text is not None:
        entry["text_model"] = job.text.model
    for name, result in (("description", caption.description), ("refined_output", caption.refined)):
        if result and result.error:
            entry["error"] = message(result.error)
        elif result:
            entry[name] = result.text
    return entry


def _failed(caption: Caption) -> bool:
    return any(result and result.error for result in (caption.description, caption.refined))
