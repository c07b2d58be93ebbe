"""`image-refinery refine-splat`: refine the colors of a 3D Gaussian splat by its views."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import NameTaken, NotWritten
from ..files.whole import draft_of
from ..refine.splats import (
    Splat,
    SplatRefiner,
    frame,
    read_ply,
    ring,
    view_weights,
    write_ply,
)
from ..refine.splats.splat_refiner import over_gray, straight_image
from .progress import stop_on_ctrl_c
from .refine import load, open_refiner, progress_bar
from .terminal import failed

TURNTABLE_VIEWS = 6
_TURNTABLE_PX = 384
_TURNTABLE_ELEVATION = 15.0


def refine_splat(options: argparse.Namespace) -> int:
    """Refine `options.splat` into `options.output`; 0 if that went well, else 1."""
    splat = read_ply(options.splat)
    output: Path = options.output or options.splat.with_name(f"{options.splat.stem}-refined.ply")
    sheet = output.with_name(f"{output.stem}-turntable.png")
    for path in (output, sheet):
        if path.exists() and (not options.overwrite or path.samefile(options.splat)):
            return failed(NameTaken(_about_existing(path, options.splat)))
    refiner = open_refiner(options)
    load(refiner)
    with stop_on_ctrl_c() as stopped, refiner, progress_bar(options.splat.name) as on_progress:
        refined = SplatRefiner(refiner).refine(
            splat,
            options.views,
            options.strength,
            options.passes,
            size=options.size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            prompt=options.prompt,
            negative_prompt=options.negative_prompt,
            seed=options.seed,
            on_progress=on_progress,
            should_stop=stopped.is_set,
        )
    try:
        with draft_of(output) as draft:
            write_ply(refined.splat, draft)
        turntable(splat, refined.splat).save(sheet)
    except OSError as error:
        return failed(NotWritten(f"{output} cannot be written ({error.strerror or error})."))
    print(output)
    print(sheet)
    return 0


def turntable(before: Splat, after: Splat) -> Image.Image:
    """Return an image with views from all around: `before` above, `after` below."""
    with torch.inference_mode():
        rows: list[list[np.ndarray]] = [[], []]
        around = frame(before)
        for camera in ring(around, TURNTABLE_VIEWS, _TURNTABLE_ELEVATION, _TURNTABLE_PX):
            weights = view_weights(before, camera)
            for row, splat in zip(rows, (before, after), strict=True):
                row.append(over_gray(straight_image(splat, weights)).numpy())
        sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    return Image.fromarray((sheet * 255).round().astype(np.uint8))


def _about_existing(path: Path, source: Path) -> str:
    if path.samefile(source):
        return f"{path} is the splat itself. Choose another file with --output."
    return f"{path} exists already. Add --overwrite to replace it, or choose another --output."
