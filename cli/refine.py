"""`image-refinery refine`: what the node SDXL Refiner does, for files."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from .._setup import default_refiner
from ..files import (
    NameTaken,
    NoImages,
    NotWritten,
    UnreadableImage,
    check_image,
    find_images,
    open_image,
    with_8_bits,
)
from ..files.whole import draft_of
from ..refine import ImageError, ImageRefiner, NotFiniteError, RefineCancelled, RefineSettings
from ..refine.pixels import read_mask
from ..refine.saving import save_refined
from ..refine.settings import SEEDS
from .compare import comparison
from .progress import stop_on_ctrl_c
from .terminal import FILES_READ, about_existing, cancelled, failed

if TYPE_CHECKING:
    from ..refine import Progress, TilePrompts


class _File(NamedTuple):
    path: Path
    target: Path
    settings: RefineSettings


def refine(options: argparse.Namespace) -> int:
    """Refine `options.images`; 0 if every one went well, else 1."""
    settings = RefineSettings(
        scale=options.scale,
        regions=options.regions,
        prompt_syntax=options.prompt_syntax,
        strength=options.strength,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
    )
    paths = image_files(options.images)
    if not paths:
        return failed(NoImages(f"There is nothing to refine. {FILES_READ}"))
    if options.output.is_file():
        return failed(NotWritten(f"{options.output} is a file. Choose a folder with --output."))
    # Whatever can be found is found before the checkpoint loads, which may be a long download.
    targets = target_files(paths, options.output)
    files = [
        _File(path, target, replace(settings, seed=(settings.seed + index) % SEEDS))
        for index, (path, target) in enumerate(zip(paths, targets, strict=True))
    ]
    existing = [target for target in targets if _exists(target, sheet=options.compare)]
    if options.skip_existing:
        files = [file for file in files if file.target not in existing]
        print(f"{len(existing)} of {len(paths)} are refined already.", file=sys.stderr)
    elif existing and not options.overwrite:
        return failed(NameTaken(about_existing(existing)))
    mask = None if options.mask is None else _mask(options.mask)
    usable = [file for file in files if _is_usable(file.path, mask)]
    if not usable:
        return 1 if files else 0
    done = 0
    tiles: list[TilePrompts | None] = [None] * len(usable)
    try:
        if options.describe_tiles:
            from .describe_tiles import describe_tiles

            tiles = [
                *describe_tiles(
                    [file.path for file in usable],
                    settings,
                    mask,
                    model=options.vision_model,
                    server=options.server,
                )
            ]
        refiner = open_refiner(options)
        load(refiner)
        with stop_on_ctrl_c() as stopped, refiner:
            for file, own in zip(usable, tiles, strict=True):
                done += _refine_file(refiner, file, mask, own, options.compare, stopped.is_set)
    except RefineCancelled:
        text = f"{done} of {len(usable)} images refined"
        text += f", in {options.output}." if done else "."
        if done and not options.overwrite:
            text += " Run again with --skip-existing for the others."
        return cancelled(text)
    return 0 if done == len(files) else 1


def _refine_file(
    refiner: ImageRefiner,
    file: _File,
    mask: Image.Image | None,
    tiles: TilePrompts | None,
    compare: bool,
    should_stop: Callable[[], bool],
) -> bool:
    """Refine one file and print where the result is; return whether that went well."""
    path, target, settings = file
    try:
        before = with_8_bits(open_image(path))
        after = refine_one(refiner, before, settings, path.name, mask, tiles, should_stop)
        save(after, target, settings, str(refiner.model))
        print(target)
        if compare:
            comparison(before, after).save(_sheet(target))
            print(_sheet(target))
    except UnreadableImage as error:
        failed(error)
    except (ImageError, NotFiniteError) as error:  # of this image alone
        failed(error, f"{path}: {error}")
    except OSError as error:
        # Pillow's own errors have no strerror.
        failed(NotWritten(f"{target} cannot be written ({error.strerror or error})."))
    else:
        return True
    return False


def _exists(target: Path, *, sheet: bool) -> bool:
    return target.exists() or (sheet and _sheet(target).exists())


def _sheet(target: Path) -> Path:
    """Return where the comparison of a result goes."""
    return target.with_name(f"{target.stem}-compare.png")


def best_device() -> str:
    """Return the name of the fastest device that torch has here; warn if it is the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    for name in ("xpu", "mps"):
        if getattr(torch, name).is_available():
            return name
    print("PyTorch found no GPU: refining on the CPU, which is slow.", file=sys.stderr)
    return "cpu"


def open_refiner(options: argparse.Namespace, device: str | None = None) -> ImageRefiner:
    """Return the refiner that the options name, else the default one, before its load."""
    return ImageRefiner(
        device or best_device(),
        model=options.model or default_refiner(),
        memory_mode=options.memory_mode,
    )


def load(refiner: ImageRefiner) -> None:
    """Load the weights; Ctrl-C ends it immediately, also during a download."""
    print(f"Loading {refiner.model}", file=sys.stderr, flush=True)
    try:
        refiner.load()
    except KeyboardInterrupt:
        raise RefineCancelled("Cancelled while the weights were loading.") from None


def refine_one(
    refiner: ImageRefiner,
    image: Image.Image,
    settings: RefineSettings,
    name: str,
    mask: Image.Image | None = None,
    tiles: TilePrompts | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Image.Image:
    """Refine one image, with a bar on stderr that is called `name`."""
    with progress_bar(name) as on_progress:
        (refined,) = refiner.refine_batch(
            [image],
            settings,
            masks=None if mask is None else [mask],
            tile_prompts=[tiles],
            on_progress=on_progress,
            should_stop=should_stop,
        )
    return refined


def save(image: Image.Image, file: Path, settings: RefineSettings, model: str) -> None:
    """Write a PNG that holds the settings in a text chunk, and the image's color profile."""
    with draft_of(file) as draft:  # a killed run leaves no half file for --skip-existing
        save_refined(image, draft, settings, model)


def target_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return where each result goes: NAME-refined.png in `folder`; none is an input or another's.

    >>> [path.name for path in target_files([Path("a/x.png"), Path("b/x.jpg")], Path("out"))]
    ['x-refined.png', 'x-refined-2.png']
    """
    taken = {_same(path) for path in paths}
    targets: list[Path] = []
    for path in paths:
        number, target = 1, folder / f"{path.stem}-refined.png"
        while taken & {_same(target), _same(_sheet(target))}:
            number += 1
            target = folder / f"{path.stem}-refined-{number}.png"
        taken |= {_same(target), _same(_sheet(target))}
        targets.append(target)
    return targets


def _same(path: Path) -> str:
    """A path in the one form that it has on this system, where "A" may be "a"."""
    return os.path.normcase(path.resolve())


def image_files(named: Sequence[Path]) -> list[Path]:
    """Return the files that were named, and the images in the folders that were."""
    return [path for one in named for path in (find_images(one) if one.is_dir() else [one])]


def _is_usable(path: Path, mask: Image.Image | None) -> bool:
    """Return whether a file can be refined; print why not."""
    try:
        if mask is None:
            check_image(path)
        else:
            image = open_image(path)  # whole: its size may change when it is turned upright
            read_mask(mask, 1, image.height, image.width)
    except UnreadableImage as error:
        failed(error)
    except ImageError as error:
        failed(error, f"{path}: {error}")
    else:
        return True
    return False


def _mask(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except UnreadableImage as error:
        raise ImageError(str(error)) from error


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Give what shows an image's progress: a bar, or a line where stderr is no terminal."""
    if not sys.stderr.isatty():
        print(name, file=sys.stderr, flush=True)
        yield lambda _: None
        return
    bar: tqdm[Any] = tqdm(total=0, desc=name, unit="step", file=sys.stderr)

    def show(event: Progress) -> None:
        bar.total = event.total or bar.total
        bar.n = event.done
        bar.set_postfix_str(event.text)

    try:
        yield show
    finally:
        bar.close()
