"""What the two benchmarks of the refiner share: the picture, the ways, and processes of their own.

No torch at the top: ComfyUI's interpreter and the process that only starts others read this too.
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
# What diffusers does not have is off, so that both do the same work.
PLAIN: dict[str, Any] = {"working_size": "as it is", "keep_colours": False}

OnStep = Callable[[], None]
Way = Callable[[str, OnStep], object]
"""Refines the picture with a prompt, and calls back after every step."""


def no_step() -> None:
    """For a run of whose steps nothing is asked."""


def photo(side: int) -> Image.Image:
    """The picture to refine, side x side pixels."""
    from PIL import Image

    with Image.open(PHOTO) as file:
        return file.convert("RGB").resize((side, side))


def plain_pipeline(checkpoint: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint file, whose description lies beside it, with diffusers alone."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    be_quiet()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_single_file(
        str(checkpoint),
        config=str(checkpoint.with_suffix("")),
        torch_dtype=dtype,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain_way(pipeline: Any, picture: Image.Image, steps: int = STEPS) -> Way:
    """diffusers' one call, PIL in and PIL out."""
    import torch

    def refine(prompt: str, on_step: OnStep) -> object:
        def after(_pipeline: Any, _index: int, _time: Any, tensors: dict[str, Any]) -> Any:
            on_step()
            return tensors

        return pipeline(
            prompt=prompt,
            image=picture,
            strength=STRENGTH,
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=None if on_step is no_step else after,
        ).images[0]

    return refine


def our_way(refiner: Any, picture: Any, steps: int = STEPS) -> Way:
    """ImageRefiner's call, the same work; the result is of the picture's kind."""

    def refine(prompt: str, on_step: OnStep) -> object:
        def after(event: Any) -> None:
            if event.stage == "refine" and event.step > 0:
                on_step()

        return refiner.refine(
            picture,
            strength=STRENGTH,
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            prompt=prompt,
            on_progress=None if on_step is no_step else after,
            **PLAIN,
        )

    return refine


def be_quiet() -> None:
    """Keep diffusers' and transformers' bars and notes out of the tables, from here on."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def peak_ram_bytes() -> int:
    """The most memory that this process has held so far, pages of mapped files among it."""
    if sys.platform == "linux":
        # Not getrusage: it starts with the high-water mark of the process that started this one.
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def in_a_process(
    script: str, arguments: Sequence[str], *, python: str = sys.executable, timeout_s: float = 900
) -> dict[str, Any]:
    """Run a benchmark's worker; return the JSON object of its last line.

    Whatever comes instead of it (no memory, a signal, no such module, other words) becomes
    `{"reason": ...}`, so that one failure does not end the whole table.
    """
    try:
        done = subprocess.run(
            [python, script, *arguments], capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return {"reason": f"not done after {timeout_s:.0f} s"}
    except OSError as error:
        return {"reason": f"{python} could not be started ({error})"}
    if done.returncode == 0 and (lines := done.stdout.strip().splitlines()):
        try:
            return json.loads(lines[-1])
        except ValueError:
            return {"reason": f"ended with no result but: {lines[-1][:200]}"}
    told = done.stderr.strip().splitlines()
    return {"reason": told[-1].strip()[:200] if told else f"ended with {done.returncode}"}
