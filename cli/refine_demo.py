"""The part of `image-refinery demo` that refines."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from .._program import program
from ..refine import CheckpointError, HubError, ImageRefiner, RefineSettings
from .compare import comparison
from .progress import stop_on_ctrl_c
from .refine import best_device, load, refine_one, save

STAND_IN = (
    Path(__file__).resolve().parent.parent
    / "tools"
    / "tiny_refiner"
    / "weights"
    / "tiny_refiner.safetensors"
)
"""A refiner of a few MB that was trained on drawn scenes; in a checkout only."""

_NOISE = 25.0
"""The standard deviation, of 255, of the noise that damages the example."""
_SEED = 0


def refine_demo(picture: Image.Image, output: Path, *, is_example: bool) -> list[Path]:
    """Refine a picture with the best checkpoint there is; return what was written into `output`.

    The example is a clean drawing, so it is damaged first, and how far that is undone is printed.

    Raises:
        RefineError: it failed; the sentence says why.
    """
    refiner, settings = _best_refiner()
    before = with_noise(picture, _NOISE) if is_example else picture
    with stop_on_ctrl_c() as stopped, refiner:
        after = refine_one(refiner, before, settings, "refine", should_stop=stopped.is_set)
    written = [output / "refined.png", output / "refined-compare.png"]
    save(after, written[0], settings, str(refiner.model))
    names = ("with noise" if is_example else "before", "refined")
    comparison(before, after, names).save(written[1])
    if is_example:
        noisy, refined = (psnr(picture, one) for one in (before, after))
        print(f"Compared with the drawing before the noise: {noisy:.1f} dB with it, ", end="")
        print(f"{refined:.1f} dB refined.")
    return written


def with_noise(picture: Image.Image, deviation: float) -> Image.Image:
    """Return a picture with normally distributed noise, the same at each call."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    noise = np.random.default_rng(_SEED).standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(pixels + noise * deviation, 0, 255).round().astype(np.uint8))


def psnr(picture: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two pictures of one size, in dB."""
    first, second = (np.asarray(one.convert("RGB"), np.float64) for one in (picture, other))
    error = float(((first - second) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _best_refiner() -> tuple[ImageRefiner, RefineSettings]:
    """A real checkpoint that is here already, else the stand-in; nothing is downloaded for a demo.

    The real one takes a minute or more per picture on a CPU, so it says what it is.
    """
    device = best_device()
    real = ImageRefiner(device, local_files_only=True)
    try:
        load(real)
    except HubError as error:
        if "IMAGE_REFINERY_REFINER" in os.environ:
            raise
        reason = str(error)
    else:
        print(f"Refined by {real.model} on {device}.", file=sys.stderr)
        return real, RefineSettings()
    if not STAND_IN.is_file():
        raise CheckpointError(
            f"{reason} The stand-in is in a checkout only: name a checkpoint with "
            f"IMAGE_REFINERY_REFINER, or run `{program()} refine`, which downloads one."
        )
    print(
        f"{reason}\nSo a stand-in refines: a model of a few MB that knows drawn scenes only.\n"
        "For the real one: put sd_xl_refiner_1.0.safetensors (6 GB) anywhere, and name it in "
        "IMAGE_REFINERY_REFINER.",
        file=sys.stderr,
    )
    stand_in = ImageRefiner(device, model=STAND_IN)
    load(stand_in)
    return stand_in, RefineSettings()
