"""The part of `image-refinery prove` that refines, compares and measures memory modes."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .._setup import scrub
from ..files import UnreadableImage
from ..refine import ImageRefiner, RefineError, RefineSettings
from ..refine.errors import PER_IMAGE_ERRORS
from ..refine.similarity import similarity
from .compare import busiest_box
from .progress import stop_on_ctrl_c
from .proof import Proof
from .prove_photos import damaged
from .refine import load, refine_one

MODES = ("gpu", "offload", "low_vram")
PEAK_SIDE_PX = 1024
"""Of the image whose peak is measured, as in docs/memory.md."""

_JPEG_QUALITY = 85
_PAGE_PX = 512


def refine_photos(proof: Proof, refiner: ImageRefiner) -> None:
    """Refine the damaged copies and compare; measure the peaks of the memory modes on a GPU.

    Raises:
        RefineCancelled: Ctrl-C.
        OSError: the proof cannot be written.
    """
    who, stand_in = proof.models["refiner"]["name"], proof.is_stand_in("refiner")
    begin = partial(proof.timeline.begin, who, stand_in=stand_in)
    try:
        begin("load")
        load(refiner)
        with stop_on_ctrl_c() as stopped:
            for index in range(len(proof.photos)):
                begin("refine")
                _refine_photo(proof, index, refiner, stopped.is_set)
                proof.write()
    except RefineError as error:
        proof.miss(f"Not refined: {error}")
        return
    finally:
        begin("unload")
        refiner.close()
        proof.timeline.end()
    if proof.device == "cuda" and not stand_in:
        with stop_on_ctrl_c() as stopped:
            measure_peaks(proof, str(refiner.model), stopped.is_set)


def _refine_photo(
    proof: Proof, index: int, refiner: ImageRefiner, should_stop: Callable[[], bool]
) -> None:
    photo, row = proof.photos[index], proof.rows[index]
    started = time.monotonic()
    try:
        original = photo.original()
        before = damaged(original)
        # No prompt: the figures of two machines compare, whatever their language models write.
        after = refine_one(
            refiner, before, RefineSettings(), photo.path.name, should_stop=should_stop
        )
    except (UnreadableImage, *PER_IMAGE_ERRORS) as error:
        row["errors"].append(scrub(f"refine: {error}"))
        return
    row["seconds"]["refine"] = round(time.monotonic() - started, 2)
    row["width"], row["height"] = original.size
    stand_in = proof.is_stand_in("refiner")
    for name, image in (
        ("damaged", before),
        ("refined_by_stand_in" if stand_in else "refined", after),
    ):
        measures = similarity(np.asarray(original), np.asarray(image))
        row[name] = {key: round(value, 4) for key, value in measures.items()}
    box = busiest_box(original.convert("RGB"), before.convert("RGB"))
    images = (original, before, after)
    proof.images[index] = [_data_url(one) for one in (*images, *(i.crop(box) for i in images))]


def measure_peaks(proof: Proof, model: str, should_stop: Callable[[], bool]) -> None:
    """Note the peak of each memory mode on a CUDA device, for one image of 1024 x 1024 px.

    Raises:
        RefineCancelled: Ctrl-C.
    """
    import torch

    image = Image.new("RGB", (PEAK_SIDE_PX, PEAK_SIDE_PX), "gray")
    for mode in MODES:
        proof.timeline.begin(f"{proof.models['refiner']['name']}, {mode}", "refine")
        torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        found: dict[str, Any] = {"mode": mode}
        try:
            with ImageRefiner(proof.device, model=model, memory_mode=mode) as refiner:
                refine_one(refiner, image, RefineSettings(), mode, should_stop=should_stop)
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
            found["seconds"] = round(time.monotonic() - started, 2)
        except RefineError as error:  # such as too little memory for this mode
            found["error"] = scrub(str(error))
        proof.timeline.end()
        proof.peaks.append(found)


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_PAGE_PX, _PAGE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
