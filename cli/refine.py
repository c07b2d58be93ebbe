"""`image-refinery refine`: what the node SDXL Refiner does, for files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from .._version import __version__
from ..files import (
    UnreadableImage,
    check_image,
    find_images,
    open_image,
    with_8_bits,
)
from ..refine import ImageError, ImageRefiner, NotFiniteError, RefineCancelled, RefineSettings
from ..refine.pixels import read_mask
from ..refine.settings import SEEDS
from .compare import comparison
from .progress import stop_on_ctrl_c

if TYPE_CHECKING:
    from ..refine import Progress

METADATA_KEY = "image-refinery"
"""The PNG text chunk that holds the settings, as JSON."""


def refine(options: argparse.Namespace) -> int:
    """Refine `options.images`; 0 if every one went well, else 1."""
    settings = RefineSettings(
        strength=options.strength,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        seed=options.seed,
    )
    paths = _files(options.images)
    if not paths:
        print("There is nothing to refine.", file=sys.stderr)
        return 1
    targets = target_files(paths, options.output)
    mask = None if options.mask is None else _mask(options.mask)
    # Found before the checkpoint loads, which takes minutes where it is downloaded.
    files = list(zip(paths, targets, strict=True))
    usable = [_is_usable(path, mask) for path in paths]
    problems = usable.count(False)
    if not any(usable):
        return 1
    refiner = ImageRefiner(best_device(), model=options.model, memory_mode=options.memory_mode)
    load(refiner)
    with stop_on_ctrl_c() as stopped, refiner:
        for index, (path, target) in enumerate(files):
            if not usable[index]:
                continue
            own = replace(settings, seed=(settings.seed + index) % SEEDS)
            try:
                before = with_8_bits(open_image(path))
                after = refine_one(refiner, before, own, path.name, mask, stopped.is_set)
                save(after, target, own, str(refiner.model))
                print(target)
                if options.compare:
                    place = target.with_name(f"{target.stem}-compare.png")
                    comparison(before, after).save(place)
                    print(place)
            except UnreadableImage as error:
                problems += 1
                print(f"Error: {error}", file=sys.stderr)
            except (ImageError, NotFiniteError) as error:  # of this picture; the others go on
                problems += 1
                print(f"Error: {path}: {error}", file=sys.stderr)
            except OSError as error:
                problems += 1
                why = error.strerror or error  # Pillow's own errors have no strerror
                print(f"Error: {target} cannot be written ({why}).", file=sys.stderr)
    return 1 if problems else 0


def best_device() -> str:
    """Return the name of the fastest device that torch has here; a word on stderr if it is slow."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    for name in ("xpu", "mps"):
        if getattr(torch, name).is_available():
            return name
    print("torch finds no GPU: images are refined on the CPU, which is slow.", file=sys.stderr)
    return "cpu"


def load(refiner: ImageRefiner) -> None:
    """Load the weights; Ctrl-C ends it at once, also in the middle of a download."""
    print(f"loading {refiner.model}", file=sys.stderr, flush=True)
    try:
        refiner.load()
    except KeyboardInterrupt:
        raise RefineCancelled("Cancelled while the weights were loading.") from None


def refine_one(
    refiner: ImageRefiner,
    picture: Image.Image,
    settings: RefineSettings,
    name: str,
    mask: Image.Image | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Image.Image:
    """Refine one picture, with a bar on stderr that is called `name`."""
    with _bar(name) as on_progress:
        (refined,) = refiner.refine_batch(
            [picture],
            settings,
            masks=None if mask is None else [mask],
            on_progress=on_progress,
            should_stop=should_stop,
        )
    return refined


def save(picture: Image.Image, file: Path, settings: RefineSettings, model: str) -> None:
    """Write a PNG that holds the settings in a text chunk, and the picture's color profile."""
    about = {"software": f"image-refinery {__version__}", "model": Path(model).name}
    if "/" in model and not Path(model).exists():
        about["model"] = model  # a hub id; of a path only the name, which tells nothing private
    chunk = PngInfo()
    chunk.add_itxt(METADATA_KEY, json.dumps(about | settings.describe(), ensure_ascii=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, pnginfo=chunk, icc_profile=picture.info.get("icc_profile"))


def target_files(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return where each result goes: NAME-refined.png in `folder`; none is an input or another's.

    >>> [path.name for path in target_files([Path("a/x.png"), Path("b/x.jpg")], Path("out"))]
    ['x-refined.png', 'x-refined-2.png']
    """
    taken = {_same(path) for path in paths}
    targets: list[Path] = []
    for path in paths:
        number, target = 1, folder / f"{path.stem}-refined.png"
        while taken & {_same(target), _same(target.with_name(f"{target.stem}-compare.png"))}:
            number += 1
            target = folder / f"{path.stem}-refined-{number}.png"
        taken |= {_same(target), _same(target.with_name(f"{target.stem}-compare.png"))}
        targets.append(target)
    return targets


def _same(path: Path) -> str:
    """A path in the one form that it has on this system, where "A" may be "a"."""
    return os.path.normcase(path.resolve())


def _files(named: Sequence[Path]) -> list[Path]:
    return [path for one in named for path in (find_images(one) if one.is_dir() else [one])]


def _is_usable(path: Path, mask: Image.Image | None) -> bool:
    """Say whether a file can be refined, and why not on stderr."""
    try:
        if mask is None:
            check_image(path)
        else:
            image = open_image(path)  # whole: its size may change when it is turned upright
            read_mask(mask, 1, image.height, image.width)
    except UnreadableImage as error:
        print(f"Error: {error}", file=sys.stderr)
    except ImageError as error:
        print(f"Error: {path}: {error}", file=sys.stderr)
    else:
        return True
    return False


def _mask(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except UnreadableImage as error:
        raise ImageError(str(error)) from error


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Give what shows a picture's progress: a bar, or a line where stderr is no terminal."""
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
