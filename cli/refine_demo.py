"""The part of `image-refinery demo` that refines."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from .._program import program
from .._setup import default_refiner
from ..refine import DEFAULT_MODEL, CheckpointError, HubError, ImageRefiner, RefineSettings
from ..refine.hugging_face import is_cached
from ..refine.image_refiner import MODEL_VARIABLE
from .compare import comparison
from .progress import stop_on_ctrl_c
from .refine import best_device, load, refine_one, save

_ROOT = Path(__file__).resolve().parent.parent
STAND_IN = _ROOT / "tools" / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"
"""A refiner of a few MB that was trained on drawn scenes; in a clone only."""
DAMAGED_EXAMPLE = _ROOT / "examples" / "scene-damaged.jpg"
"""The example scene with noise; tools/make_examples.py makes both."""


def refine_demo(image: Image.Image, output: Path, *, is_example: bool) -> list[Path]:
    """Refine an image with the best checkpoint there is; return what was written into `output`.

    For the example the damaged copy is refined, and how close the result is to `image` is printed.

    Raises:
        RefineError: it failed; the sentence says why.
    """
    refiner = _best_refiner()
    settings = RefineSettings()
    before = image
    if is_example:
        with Image.open(DAMAGED_EXAMPLE) as file:
            before = file.convert("RGB")
    try:
        load(refiner)
    except HubError as error:
        raise CheckpointError(
            f"{refiner.model} is not on this computer, and the demo downloads nothing. "
            f"Run `{program()} refine`, which downloads it."
        ) from error
    with stop_on_ctrl_c() as stopped, refiner:
        after = refine_one(refiner, before, settings, "refine", should_stop=stopped.is_set)
    written = [output / "refined.png", output / "refined-compare.png"]
    save(after, written[0], settings, str(refiner.model))
    names = ("damaged", "refined") if is_example else ("before", "refined")
    comparison(before, after, names).save(written[1])
    if is_example:
        damaged, refined = (psnr(image, one) for one in (before, after))
        print(
            f"Refined {DAMAGED_EXAMPLE.name}. PSNR against the clean scene, higher is closer: "
            f"{damaged:.1f} dB damaged, {refined:.1f} dB refined."
        )
    return written


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two images of one size, in dB."""
    first, second = (np.asarray(one.convert("RGB"), np.float64) for one in (image, other))
    error = float(((first - second) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _best_refiner() -> ImageRefiner:
    """A real checkpoint that is here already, else the stand-in model; a demo downloads nothing.

    Raises:
        CheckpointError: neither is here.
    """
    device = best_device()
    model = default_refiner()
    if model != DEFAULT_MODEL or is_cached(DEFAULT_MODEL):
        return ImageRefiner(device, model=model, local_files_only=True)
    missing = "The SDXL refiner (6 GB) is not on this computer, and the demo downloads nothing"
    if not STAND_IN.is_file():
        raise CheckpointError(
            f"{missing}. Run `{program()} refine`, which downloads it, or name a checkpoint file "
            f"in {MODEL_VARIABLE}."
        )
    print(
        f"{missing}: it uses a stand-in model of a few MB, which was trained on drawn scenes only "
        "and does not improve photographs.\n"
        "For the real refiner, download sd_xl_refiner_1.0.safetensors into ComfyUI's folder "
        f"models/checkpoints, or name that file in {MODEL_VARIABLE}.",
        file=sys.stderr,
    )
    return ImageRefiner(device, model=STAND_IN)
