"""`image-refinery describe`: what the node LLM Image Refine does, for files."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import memory
from .._advice import remark, with_code
from .._backends import open_backends
from .._program import PACK
from ..captioning.images import file_source
from ..captioning.job import Caption, Job, Result, Stage
from ..captioning.kept import KeptAnswers, open_answers
from ..captioning.options import (
    TEXT_SAMPLING,
    VISION_SAMPLING,
    StageOptions,
    text_options,
    vision_options,
    with_preset,
)
from ..captioning.placeholders import used_in
from ..captioning.run import run
from ..files import (
    NameTaken,
    NoImages,
    NotWritten,
    UnreadableImage,
    about_file,
    caption_file,
    caption_files,
    check_image,
    find_images,
    same_name_message,
    write_caption,
)
from ..llm.choice import AUTO
from ..llm.errors import Cancelled, LLMError
from ..llm.servers import config_path, split_model
from ..texts import presets
from ..texts.instructions import PresetError
from .progress import TerminalWatcher, WatcherFactory, watching
from .terminal import (
    DESCRIBE,
    FILES_READ,
    TERMINAL,
    WRONG_ARGUMENTS,
    about_existing,
    cancelled,
    failed,
    message,
)

if TYPE_CHECKING:
    from .._advice import Edge
    from ..texts import Preset


def describe(options: argparse.Namespace) -> int:
    """Describe and rewrite `options.images`; 0 if every one went well, else 1 or 2."""
    try:
        job = job_of(options)
    except PresetError as error:
        failed(error)
        return WRONG_ARGUMENTS
    paths = _files(options.images, recursive=options.recursive)
    if options.txt:  # a file that is named twice gets one caption
        paths = list({os.path.abspath(path): path for path in paths}.values())
    named = dict(zip(paths, caption_files(paths, full_names=options.full_names), strict=True))
    refused = {
        path: with_code(
            NameTaken(
                f"{same_name_message(str(path), str(caption_file(path)))}, or use --full-names to "
                f"write {path.name}.txt."
            )
        )
        for path in paths
        if options.txt and named[path] is None
    }
    paths = [path for path in paths if path not in refused]
    files = {path: named[path] or caption_file(path) for path in paths}
    found = len(paths)
    existing = {path: file for path, file in files.items() if file.exists()}
    if options.skip_existing:
        paths = [path for path in paths if path not in existing]
        print(f"{len(existing)} of {found} have a caption already.", file=sys.stderr)
    elif existing and options.txt and not options.overwrite:
        return failed(NameTaken(about_existing([*existing.values()])))
    # Found before a model loads.
    refused |= {path: reason for path in paths if (reason := _unreadable(path))}
    paths = [path for path in paths if path not in refused]
    for path, reason in refused.items():
        _print_error(path, reason, as_json=options.json)
    if not paths:
        if not refused:
            nothing = "There is nothing to describe."
            if not found:
                nothing = with_code(NoImages(f"{nothing} {FILES_READ}"))
            print(nothing, file=sys.stderr)
        return 0 if options.skip_existing and not refused else 1
    if used_in([*job.instructions, *job.custom_prompts]):
        job = replace(job, about=[about_file(path) for path in paths])
    done = _Done(paths, files, options)
    try:
        with open_answers() as kept:
            run_on_files(
                paths,
                job,
                server=options.server,
                edge=DESCRIBE,
                kept=kept,
                described=done.described,
                finished=done.finished,
            )
    except Cancelled:
        done.print()
        return cancelled(done.summary())
    if options.txt:
        print(f"{done.written} captions written.", file=sys.stderr)
    done.print()
    return 1 if refused or done.problems else 0


def job_of(options: argparse.Namespace) -> Job:
    """Return the job that the options of `describe` or `batch` ask for.

    Raises:
        PresetError: there is no such preset, or its header cannot be used.
    """
    return make_job(
        vision_model=options.vision_model,
        text_model=options.text_model,
        instructions=options.instructions,
        preset=None if options.preset is None else _find_preset(options.preset),
        vision_prompt=options.vision_prompt,
        seed=options.seed,
        num_predict=options.num_predict,
        keep_loaded_s=60.0 * options.keep_loaded_minutes,
    )


def _find_preset(name: str) -> Preset:
    """Return a preset: the user's own, which are beside image-refinery.toml, or the pack's.

    Raises:
        PresetError: there is none of this name, in any case of its letters.
    """
    own = config_path().parent
    if own.name != "image-refinery":  # ComfyUI's user folder holds those of other packs, too
        own /= "image-refinery"
    found = presets([own / "instructions", PACK / "instructions"])
    names = {known.lower(): known for known in found}
    if name.lower() in names:
        return found[names[name.lower()]]
    meant = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f'Did you mean "{names[meant[0]]}"?' if meant else f"There are: {', '.join(found)}."
    raise PresetError(f'There is no preset "{name}". {hint}')


def _files(named: Sequence[Path], *, recursive: bool) -> list[Path]:
    """The files that were named, and the images in the folders that were."""
    return [
        path
        for one in named
        for path in (
            find_images(one, recursive=recursive, follow_links=True) if one.is_dir() else [one]
        )
    ]


def _unreadable(path: Path) -> str:
    try:
        check_image(path)
    except UnreadableImage as error:
        return with_code(error)
    return ""


def _print_error(path: Path, reason: str, *, as_json: bool) -> None:
    print(f"Error: {reason}", file=sys.stderr)
    if as_json:
        _print_json({"image": str(path), "error": reason})


def _print_json(entry: dict[str, Any]) -> None:
    print(json.dumps(entry, ensure_ascii=False))


class _Done:
    """What is done so far, so that Ctrl-C loses none of it. Captions are written immediately."""

    def __init__(
        self, paths: Sequence[Path], files: dict[Path, Path], options: argparse.Namespace
    ) -> None:
        self._paths = paths
        self._files = files
        self._options = options
        self._captions: dict[int, Caption] = {}
        self.written = 0
        self.problems: list[str] = []
        self._error: LLMError | None = None
        self._same = 0

    def described(self, index: int, result: Result) -> None:
        """Keep a description, which may still be rewritten."""
        self._captions[index] = Caption(description=result)

    def finished(self, index: int, caption: Caption) -> None:
        """Keep an image's texts, or its error; write its caption."""
        self._captions[index] = caption
        path = self._paths[index]
        error = caption.final.error
        if error is not None and error is self._error:
            self._same += 1  # such as a missing model: all images have one error
        elif error is not None:
            self._error = error
            self.problems.append(_about(path, error))
        elif self._options.txt:
            self._write(self._files[path], caption.final.text)

    def _write(self, file: Path, text: str) -> None:
        options = self._options
        try:
            write_caption(
                file,
                text,
                prefix=options.prefix,
                suffix=options.suffix,
                keep_line_breaks=options.keep_line_breaks,
            )
        except OSError as error:
            reason = f"{file} cannot be written ({error.strerror or error})."
            self.problems.append(with_code(NotWritten(reason)))
        else:
            self.written += 1

    def print(self) -> None:
        """Print the texts that are not in files, or all as JSON; then what failed."""
        for index, caption in sorted(self._captions.items()):
            path = self._paths[index]
            if self._options.json:
                _print_json(_as_json(path, caption))
            elif not self._options.txt:
                _print_texts(path, caption, heading=len(self._paths) > 1)
        for problem in self.problems:
            print(f"Error: {problem}", file=sys.stderr)
        if self._same:
            images = "1 more image" if self._same == 1 else f"{self._same} more images"
            print(f"The same error for {images}.", file=sys.stderr)

    def summary(self) -> str:
        """How far a run came that was cancelled."""
        count = len(self._paths)
        if self._options.txt:
            summary = f"{self.written} of {count} captions written."
            if self.written and not self._options.overwrite:
                summary += " Run again with --skip-existing for the others."
            return summary
        captions = self._captions.values()
        described = sum(caption.description.error is None for caption in captions)
        summary = f"{described} of {count} images described"
        if self._options.instructions or self._options.preset:
            summary += f", {sum(_is_rewritten(caption) for caption in captions)} rewritten"
        return f"{summary}."


def run_on_files(
    paths: Sequence[Path],
    job: Job,
    *,
    server: str = "",
    edge: Edge = TERMINAL,
    kept: KeptAnswers | None = None,
    described: Callable[[int, Result], None] | None = None,
    finished: Callable[[int, Caption], None] | None = None,
    stage_memory: memory.StageMemory | None = None,
    make_watcher: WatcherFactory = TerminalWatcher,
) -> list[Caption]:
    """Run a job on image files, with progress on stderr.

    Args:
        server: where models are that do not name their own server ("llava @ box").
        edge: where a remark about an answer is read.
        kept: answers of earlier runs.
        described: called with the index of each file that is described.
        finished: called with the index of each file when it is done, and its caption.
        stage_memory: frees memory before and after each stage; None: a `StageMemory`.
        make_watcher: makes what shows the progress.
    """
    models = [stage.model for stage in (job.vision, job.text) if stage]
    job = replace(job, vision=_without_server(job.vision))
    if job.text:
        job = replace(job, text=_without_server(job.text))
    with (
        watching(described, make_watcher) as watcher,
        open_backends(server, *models, cancelled=watcher.cancelled) as backends,
    ):

        def report(index: int, caption: Caption) -> None:
            for name, result in (
                ("description", caption.description),
                ("rewrite", caption.refined),
            ):
                if result and result.answer and (text := remark(result.answer, edge)):
                    watcher.note(f"{paths[index]}, {name}: {text}")
            if finished:
                finished(index, caption)

        return run(
            backends[0],
            [file_source(path) for path in paths],
            job,
            text_backend=backends[-1],
            memory=stage_memory or memory.StageMemory(),
            watcher=watcher,
            kept=kept,
            finished=report,
        )


def _without_server(stage: Stage) -> Stage:
    return replace(stage, model=split_model(stage.model)[0])


def make_job(
    *,
    vision_model: str | None = None,
    text_model: str | None = None,
    instructions: str = "",
    preset: Preset | None = None,
    vision_prompt: str = "",
    seed: int = 0,
    num_predict: int | None = None,
    keep_loaded_s: float = 0.0,
) -> Job:
    """Return the job with the node's defaults; a model that is not named is chosen by the run.

    Args:
        preset: for the rewrite, what `instructions` and `num_predict` leave open.

    Raises:
        PresetError: the preset's header cannot be used.
    """
    more = {} if num_predict is None else {"num_predict": num_predict}
    settings = text_settings = StageOptions(model_options=more)
    if preset:
        instructions = instructions or preset.text
        text_settings = with_preset(settings, preset)
    return Job(
        vision=Stage(
            model=vision_model or AUTO, options=vision_options(VISION_SAMPLING, seed, settings)
        ),
        text=Stage(
            model=text_model or AUTO,
            options=text_options(TEXT_SAMPLING, seed, text_settings),
            settings=text_settings,
        )
        if instructions
        else None,
        instructions=[instructions],
        custom_prompts=[vision_prompt],
        keep_loaded_s=keep_loaded_s,
    )


def _print_texts(path: Path, caption: Caption, *, heading: bool) -> None:
    texts = [
        result.text
        for result in (caption.description, caption.refined)
        if result is not None and result.error is None
    ]
    if texts:
        print(*([f"== {path}"] if heading else []), "\n\n".join(texts), sep="\n")


def _about(path: Path, error: LLMError) -> str:
    # The error of an unreadable file names it already.
    where = "" if str(error).startswith(f"{path} ") else f"{path}: "
    return f"{where}{message(error, DESCRIBE)}"


def _as_json(path: Path, caption: Caption) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": str(path)}
    stages = (
        ("vision_model", "description", caption.description),
        ("text_model", "refined_output", caption.refined),
    )
    for model, name, result in stages:
        if result and result.error:
            entry["error"] = message(result.error, DESCRIBE)
        elif result and result.answer:
            entry |= {model: result.answer.model, name: result.text}
    return entry


def _is_rewritten(caption: Caption) -> bool:
    return caption.refined is not None and caption.refined.error is None
