"""Helpers that both refiner benchmarks share: the image, the ways to refine it, and the workers.

Imports no torch at the top: ComfyUI's interpreter, and the process that only starts workers, import
this file too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import ROOT

if TYPE_CHECKING:
    import torch
    from PIL import Image

TINY = ROOT / "tools" / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"
PHOTO = ROOT / "examples" / "photo.jpg"
STRENGTH, GUIDANCE, STEPS = 0.3, 7.5, 20
# Features that diffusers does not have are off, so that both do the same work.
PLAIN: dict[str, Any] = {"working_size": "as it is", "keep_colours": False}

OnStep = Callable[[], None]
Way = Callable[[str, OnStep], object]
"""Refines the image with a prompt, and calls back after every step."""


def no_step() -> None:
    """Do nothing after a step."""


def load_photo(side: int) -> Image.Image:
    """Return the image to refine, side x side pixels."""
    from PIL import Image

    with Image.open(PHOTO) as file:
        return file.convert("RGB").resize((side, side))


def plain_pipeline(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint file with diffusers alone; its JSON is in the folder beside it."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    silence_libraries()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_single_file(
        str(checkpoint),
        config=str(checkpoint.with_suffix("")),
        torch_dtype=dtype,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_way(pipeline: Any, image: Image.Image, steps: int = STEPS) -> Way:
    """Return a way that calls diffusers' pipeline once, with PIL images."""
    import torch

    def refine(prompt: str, on_step: OnStep) -> object:
        def after(_pipeline: Any, _index: int, _time: Any, tensors: dict[str, Any]) -> Any:
            on_step()
            return tensors

        return pipeline(
            prompt=prompt,
            image=image,
            strength=STRENGTH,
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=None if on_step is no_step else after,
        ).images[0]

    return refine


def our_way(refiner: Any, image: Any, steps: int = STEPS) -> Way:
    """Return a way that does the same work with ImageRefiner; the result is of the image's type."""

    def refine(prompt: str, on_step: OnStep) -> object:
        def after(event: Any) -> None:
            if event.stage == "refine" and event.step > 0:
                on_step()

        return refiner.refine(
            image,
            strength=STRENGTH,
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            prompt=prompt,
            on_progress=None if on_step is no_step else after,
            **PLAIN,
        )

    return refine


def silence_libraries() -> None:
    """Turn off diffusers' and transformers' progress bars and notes."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def own_ram_bytes() -> int | None:
    """Return this process's memory without pages of files; None where the system does not say."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    [own] = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(own) * 1024


def run_worker(
    script: str, arguments: Sequence[str], *, python: str = sys.executable, timeout_s: float = 900
) -> dict[str, Any]:
    """Run a benchmark's worker process; return the JSON object on its last line.

    Any failure (out of memory, a signal, a missing module, other output) becomes
    `{"reason": ...}`, so that one failure does not stop the whole table.
    """
    try:
        done = subprocess.run(
            [python, script, *arguments], capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"did not finish within {timeout_s:.0f} s"}
    except OSError as error:
        return {"reason": f"{python} could not be started ({error})"}
    if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
        try:
            return json.loads(lines[-1])
        except ValueError:
            return {"reason": f"printed no result but: {lines[-1][:200]}"}
    errors = done.stderr.strip().splitlines()
    return {"reason": errors[-1].strip()[:200] if errors else f"exit status {done.returncode}"}
