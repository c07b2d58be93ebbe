"""SDXL Refiner: an image in, a refined image out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import folder_paths
from comfy_api.latest import io

from ..refine.checkpoints import SUFFIXES
from ..refine.errors import (
    CheckpointError,
    DeviceMemoryError,
    ImageError,
    NotFiniteError,
    RefineCancelled,
    RefineError,
    SettingsError,
)
from ..refine.settings import MemoryMode, OutputSize, RefineSettings, WorkingSize
from . import host
from .host import convert
from .host.refine_progress import NodeProgress

if TYPE_CHECKING:
    import torch

    from ..refine import ImageRefiner

log = logging.getLogger(__name__)
T = TypeVar("T")

HUB_MODEL = "stabilityai/stable-diffusion-xl-refiner-1.0"
DOWNLOAD = f"{HUB_MODEL} (download)"
ON_ERROR = ("stop the workflow", "pass the image on")

_POLL_S = 0.1
_OF_ONE_IMAGE = (ImageError, NotFiniteError, DeviceMemoryError)
"""Errors that another image of the same run need not meet."""


class SDXLRefiner(io.ComfyNode):
    """Refine images with an SDXL checkpoint, over the package `refine`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The inputs in the order of docs/nodes.md; no network and no checkpoint is touched."""
        checkpoints = checkpoints_to_choose()
        return host.schema(
            node_id="RefinerySDXLRefiner",
            display_name="SDXL Refiner",
            category="refinery",
            description=(
                "Sharpens texture, removes noise and artefacts and keeps the picture: image to "
                "image with an SDXL checkpoint at low strength. Small images are worked on at "
                "about a megapixel, large ones in tiles, masks as regions."
            ),
            search_aliases=["refine", "enhance", "img2img", "sdxl", "detail", "denoise", "upscale"],
            is_input_list=True,
            inputs=[
                io.Image.Input("image", tooltip="The image, batch or list of images to refine."),
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoints,
                    default=checkpoints[0],
                    tooltip="A checkpoint of the SDXL family in ComfyUI's checkpoints folder, "
                    "refiners first. The last entry downloads the refiner (6 GB) when it is run.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    lazy=True,
                    tooltip="What the image shows; may be empty, and as long as you like. Link "
                    "refined_output of LLM Image Refine: a list gives each image its own.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    lazy=True,
                    tooltip="What the image should not look like. Empty: nothing in particular.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How much is redrawn. 0: the image passes untouched; 0.2 to 0.35: "
                    "texture and artefacts; above 0.5 the picture changes.",
                ),
                io.Int.Input(
                    "num_inference_steps",
                    default=20,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole schedule; steps x strength of them run "
                    "(20 x 0.3 = 6).",
                ),
                io.Float.Input(
                    "guidance_scale",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly the prompt pulls. 1 or less: not at all, in half the "
                    "time. Turbo and Lightning checkpoints want 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFF_FFFF_FFFF_FFFF,
                    control_after_generate=True,
                    tooltip="Image i of a batch or list uses seed + i.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Refine only this region: it is cut out, worked on at about a "
                    "megapixel and blended back. Pixels outside stay bit for bit.",
                ),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    optional=True,
                    tooltip="Off: the image passes untouched, and linked prompts are not made.",
                ),
                io.Float.Input(
                    "aesthetic_score",
                    default=6.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="The quality to go for. Refiner checkpoints only.",
                ),
                io.Float.Input(
                    "negative_aesthetic_score",
                    default=2.5,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="The quality to move away from. Refiner checkpoints only.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    tooltip="The share of the steps that follow the prompt; the rest take half "
                    "the time. 1: all.",
                ),
                io.Combo.Input(
                    "working_size",
                    options=list(get_args(WorkingSize)),
                    default="auto",
                    optional=True,
                    tooltip="auto: small images are enlarged to about a megapixel for the work.",
                ),
                io.Combo.Input(
                    "output_size",
                    options=list(get_args(OutputSize)),
                    default="original",
                    optional=True,
                    tooltip="working: keep the size of the work, so that a small image comes out "
                    "larger.",
                ),
                io.Boolean.Input(
                    "keep_colours",
                    default=True,
                    optional=True,
                    tooltip="Carry the colours and shading of the image over to the result.",
                ),
                io.Combo.Input(
                    "memory_mode",
                    options=list(get_args(MemoryMode)),
                    default="auto",
                    optional=True,
                    tooltip="auto: ComfyUI decides what stays on the GPU. gpu: each part whole. "
                    "offload: only the part at work. low_vram: at most 1.5 GiB of weights.",
                ),
                io.Boolean.Input(
                    "unload_after",
                    default=True,
                    optional=True,
                    tooltip="Free the GPU after each run. The next run reads nothing from disk "
                    "again, either way.",
                ),
                io.Combo.Input(
                    "on_error",
                    options=list(ON_ERROR),
                    default=ON_ERROR[0],
                    optional=True,
                    tooltip="Stop with the error's sentence, or pass the untouched image on.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="The refined images: a batch for a batch, a list for a list.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    is_output_list=True,
                    tooltip="The mask as it came; zeros where none came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: Any = "") -> bool:
        """Accept any name: a workflow from a machine with other files must load and queue."""
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that passed an image on for an error: that is never cached."""
        return host.failed_runs(cls)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Ask for linked prompts only when they are used."""
        return ["prompt", "negative_prompt"] if _first(inputs, "enabled", True) else []

    @classmethod
    def execute(cls, image: list[torch.Tensor], **inputs: list[Any]) -> io.NodeOutput:
        """Refine every image; with strength 0, or not enabled, pass on the very same objects."""
        masks = [mask for mask in inputs.get("mask") or () if mask is not None]
        passes_on = _first(inputs, "on_error", ON_ERROR[0]) == ON_ERROR[1]
        result, errors = image, []
        if _first(inputs, "enabled", True):
            try:
                result, errors = _refine(cls, image, masks, inputs, passes_on=passes_on)
            except RefineCancelled:
                host.stop()
            except RefineError as error:
                host.show(host.node_id(cls), f"Error: {error}")  # "loading" is no longer true
                if not passes_on:
                    raise
                result, errors = image, [str(error)]
        texts = [f"Error: {error}" for error in errors]
        if errors:
            host.count_failed_run(cls)
            host.show(host.node_id(cls), *texts)
        out_masks = masks or [convert.empty_mask(batch) for batch in result]
        return io.NodeOutput(result, out_masks, ui={"text": texts} if texts else None)


def checkpoints_to_choose() -> list[str]:
    """Names for the checkpoint widget: refiners first, the download last."""
    files = [
        name
        for name in folder_paths.get_filename_list("checkpoints")
        if name.lower().endswith(SUFFIXES)
    ]
    return [*sorted(files, key=lambda name: ("refiner" not in name.lower(), name)), DOWNLOAD]


def find_checkpoint(name: str) -> Path | str:
    """Return the file that the checkpoint widget names, or the hub's id of the download.

    Raises:
        CheckpointError: there is no such file here.
    """
    if name in (DOWNLOAD, HUB_MODEL):
        return HUB_MODEL
    # A workflow saved on Windows names files in sub-folders with a backslash.
    for candidate in (name, name.replace("\\", os.sep)):
        path = folder_paths.get_full_path("checkpoints", candidate)
        if path is not None:
            return Path(path)
    raise CheckpointError(
        f'There is no checkpoint "{name}" in ComfyUI\'s checkpoints folder: choose another one, '
        "or put the file there."
    )


def _refine(
    node: type[io.ComfyNode],
    batches: list[torch.Tensor],
    masks: list[torch.Tensor],
    inputs: dict[str, list[Any]],
    *,
    passes_on: bool,
) -> tuple[list[torch.Tensor], list[str]]:
    """Return the refined batches, and what was wrong with images that were passed on."""
    settings = _settings(inputs)
    if settings.strength == 0:
        return batches, []
    singles = convert.single_images(batches)
    prompts = _prompts(inputs, len(batches), [batch.shape[0] for batch in batches])
    single_masks = _masks(masks, batches)
    if single_masks is not None and not passes_on:
        _check_masks(single_masks, singles)
    checkpoint = str(_one(inputs, "checkpoint", DOWNLOAD))
    mode = _one(inputs, "memory_mode", "auto")
    unload_after = _one(inputs, "unload_after", True)
    progress = NodeProgress(host.node_id(node), len(singles))
    what = f"fetching {HUB_MODEL}" if checkpoint == DOWNLOAD else "loading the checkpoint"
    refiner = _wait_for(
        lambda: _loaded_refiner(checkpoint, mode),
        lambda seconds: progress.say(f"{what} ({seconds} s)" if seconds else what),
    )

    def run(first: int, last: int) -> list[torch.Tensor]:
        progress.start_at(first)
        return refiner.refine_batch(
            singles[first:last],
            replace(settings, seed=(settings.seed + first) % 2**64),
            prompts=prompts[first:last],
            masks=None if single_masks is None else single_masks[first:last],
            on_progress=progress,
            should_stop=host.interrupted,
        )

    try:
        if not passes_on:
            results = run(0, len(singles))
            progress.finished(results[-1] if results else None)
            return convert.rejoin(batches, results), []
        # One by one, so that a bad image costs only itself.
        results = []
        errors: list[str] = []
        for index, single in enumerate(singles):
            try:
                results += run(index, index + 1)
            except _OF_ONE_IMAGE as error:
                log.warning("SDXL Refiner passes image %d on: %s", index + 1, error)
                results.append(single)
                errors.append(str(error) if len(singles) == 1 else f"image {index + 1}: {error}")
        # An image that was passed on may be none that can be shown.
        progress.finished(results[-1] if results and not errors else None)
        return convert.rejoin(batches, results), errors
    finally:
        if unload_after:
            _unload(refiner)


def _settings(inputs: dict[str, list[Any]]) -> RefineSettings:
    usual = RefineSettings()
    values = {
        name: _one(inputs, name, default)
        for name, default in usual.describe().items()
        if name != "prompt"
    }
    return RefineSettings(**values)


def _prompts(inputs: dict[str, list[Any]], batches: int, sizes: list[int]) -> list[str]:
    """Return one prompt for each image."""
    given = [str(prompt or "") for prompt in inputs.get("prompt") or ()] or [""]
    count = sum(sizes)
    if len(given) == 1:
        return given * count
    if len(given) == count:
        return given
    if len(given) == batches:
        return [prompt for prompt, size in zip(given, sizes, strict=True) for _ in range(size)]
    raise SettingsError(
        f"{len(given)} prompts came for {count} images: link one prompt, or one for each image."
    )


def _masks(masks: list[torch.Tensor], batches: list[torch.Tensor]) -> list[torch.Tensor] | None:
    if not masks:
        return None
    try:
        return convert.single_masks(masks, batches)
    except ValueError as error:
        raise SettingsError(f"{error} Link one mask, or one for each image.") from None


def _check_masks(masks: list[torch.Tensor], images: list[torch.Tensor]) -> None:
    """Refuse a mask that cannot be used before the checkpoint loads."""
    from ..refine.pixels import read_mask

    for mask, image in zip(masks, images, strict=True):
        if 0 not in image.shape:  # the refiner says what is wrong with such an image
            read_mask(mask, 1, *image.shape[1:3])


def _loaded_refiner(checkpoint: str, mode: MemoryMode) -> ImageRefiner:
    """Return the refiner that is kept in memory, or a new one in its place; its weights loaded."""
    from .host.kept import keep_refiner

    model = find_checkpoint(checkpoint)
    key: tuple[Hashable, ...] = (model, mode)
    if isinstance(model, Path):
        about = model.stat()
        key += (about.st_size, about.st_mtime_ns)
    refiner = keep_refiner(key, lambda: _make_refiner(model, mode))
    refiner.load()
    return refiner


def _make_refiner(model: Path | str, mode: MemoryMode) -> ImageRefiner:
    from ..memory import comfyui
    from ..refine import ImageRefiner
    from .host.managed import ManagedResidency

    device = comfyui.compute_device()
    return ImageRefiner(
        device,
        comfyui.computes_in_half(device),
        model=model,
        memory_mode=mode,
        residency=lambda parts, where: ManagedResidency(parts, where, mode),
    )


def _wait_for(work: Callable[[], T], waiting: Callable[[int], None]) -> T:
    """Do slow work in a thread; on a cancel leave at once, and let it finish behind us.

    Args:
        work: Done in the thread, which has none of ComfyUI's inference mode: that holds for one
            thread only, and weights that are loaded inside it could not be moved outside it.
        waiting: Told at the start and at every full second how many have passed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (it belongs to the node that waits)
            future.set_exception(error)
        else:
            future.set_result(result)

    began, told = time.monotonic(), -1
    threading.Thread(target=run, name="image-refinery-load", daemon=True).start()
    while not wait([future], timeout=_POLL_S).done:
        if host.interrupted():
            raise RefineCancelled("Cancelled while the checkpoint was loading.")
        if (seconds := int(time.monotonic() - began)) > told:
            waiting(seconds)
            told = seconds
    return future.result()


def _unload(refiner: ImageRefiner) -> None:
    from .. import memory
    from ..refine.residency import free_cache

    freed = memory.Freed("the refiner", refiner.unload())
    free_cache(refiner.device)  # on a CPU: ComfyUI's manager leaves freed memory to the C library
    memory.log_freed(log, freed, memory.free_cuda_cache())


def _first(inputs: dict[str, Any], id: str, default: Any) -> Any:
    values = [value for value in inputs.get(id) or () if value is not None]
    return values[0] if values else default


def _one(inputs: dict[str, list[Any]], id: str, default: Any) -> Any:
    """Return the value of an input that all images share; a list of different ones is refused."""
    values = [value for value in inputs.get(id) or () if value is not None]
    if any(value != values[0] for value in values):
        raise SettingsError(
            f"{id} got a list of different values, but all of a run share one. Link one value, or "
            "use a node for each."
        )
    return values[0] if values else default
