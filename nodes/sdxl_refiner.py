"""SDXL Refiner: an image in, a refined image out."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from .._advice import with_code
from . import host
from .host import convert
from .refiner_inputs import ON_ERROR, Inputs

if TYPE_CHECKING:
    import torch

    from ..refine import Batch, RefineError, RefineSettings

log = logging.getLogger(__name__)


class SDXLRefiner(io.ComfyNode):
    """Refine images with an SDXL checkpoint, over the package `refine`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`; reads no checkpoint and no network."""
        return host.schema(
            node_id="RefinerySDXLRefiner",
            display_name="SDXL Refiner",
            category="Image Refinery/Image",
            description=(
                "Sharpens texture and removes noise and compression artifacts by image to image "
                "with an SDXL checkpoint. Low strength keeps the content."
            ),
            search_aliases=[
                *("refine", "enhance", "img2img", "image to image", "sdxl", "detailer", "denoise"),
                *("sharpen", "restore", "artifacts"),
            ],
            is_input_list=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.Image.Output(
                    display_name="image",
                    is_output_list=True,
                    tooltip="Refined images: a batch for a batch, a list for a list.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    is_output_list=True,
                    tooltip="The input mask, or zeros without one.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        checkpoint: Any = "",
        working_size: Any = None,
        on_error: Any = None,
        regions: Any = None,
        prompt_syntax: Any = None,
    ) -> bool | str:
        """Accept any checkpoint: workflows of other machines must load and queue."""
        return host.check_choices(
            Inputs,
            working_size=working_size,
            on_error=on_error,
            regions=regions,
            prompt_syntax=prompt_syntax,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that returned an original image, so that none is cached."""
        return host.failed_runs(cls)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Ask for what is linked only when it is used."""
        given, _ = host.read(Inputs, inputs)
        if not given.enabled:
            return []
        sockets = {"tile_prompts": given.strength > 0, "upscale_model": given.scale > 1}
        linked = [name for name, used in sockets.items() if used and name in inputs]
        return ["prompt", "negative_prompt", *linked]

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Refine every image; with strength 0, or not enabled, return the very same objects."""
        from ..refine import RefineCancelled, RefineError

        given, problem = host.read(Inputs, values)
        result, errors = given.image, []
        if given.enabled:
            try:
                if problem:
                    raise problem
                settings = given.settings()
                if settings.strength > 0 or settings.scale > 1:
                    result, errors = _refine(cls, given, settings)
            except RefineCancelled:
                host.show(host.node_id(cls), "cancelled")
                host.stop()
            except (RefineError, host.BadInput) as error:
                host.note_error(cls, error)
                message = with_code(error)
                host.show(host.node_id(cls), f"Error: {message}")  # "loading" is no longer true
                if given.on_error == ON_ERROR[0]:
                    error.args = (message,)
                    raise
                errors = [message]
        else:
            host.show(host.node_id(cls), "off: the image passes through")
        texts = [f"Error: {error}" for error in errors]
        if errors:
            host.count_failed_run(cls)
            host.show(host.node_id(cls), *texts)
        masks = _masks(given, result)
        return io.NodeOutput(result, masks, ui={"text": texts, "failed": texts} if texts else None)


def _masks(given: Inputs, result: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the input masks, at the size of images that `scale` enlarged; zeros without any."""
    if given.mask and given.scale > 1:
        from ..refine import SettingsError
        from .host.pairing import masks_for

        with suppress(SettingsError):  # they cannot be paired, which was reported
            return masks_for(given.mask, result) or []
    return given.mask or [convert.empty_mask(batch) for batch in result]


def _refine(
    node: type[io.ComfyNode], given: Inputs, settings: RefineSettings
) -> tuple[list[torch.Tensor], list[str]]:
    """Return the refined batches, and what was wrong with images that come out unchanged."""
    from ..refine import Batch, enlarge_items
    from .host.pairing import masks_for, prompts_for, tile_prompts_for

    errors: dict[int, str] = {}

    def keep_original(number: int, error: RefineError) -> None:
        log.warning("SDXL Refiner returns image %d unchanged: %s", number + 1, error)
        errors[number] = with_code(error)
        host.note_error(node, error)

    batch = Batch(
        given.image,
        settings,
        prompts=prompts_for(given.prompt, given.image),
        masks=masks_for(given.mask, given.image),
        tile_prompts=tile_prompts_for(given.tile_prompts, given.image),
        upscaler=_upscaler(given.upscale_model[0]) if given.upscale_model else None,
        on_image_error=keep_original if given.on_error == ON_ERROR[1] else None,
    )
    results = given.image
    if batch.items:
        progress = host.RefineProgress(host.node_id(node), batch.count)
        if batch.needs_model:
            results = _refine_items(given, batch, progress)
        else:
            results = enlarge_items(batch, on_progress=progress, should_stop=host.interrupted)
        # An image that could not be refined may have no pixels to show.
        last = next(one for one in reversed(results) if len(one))
        progress.finished(None if errors else last[-1:], batch.advice)
    ordered = [errors[number] for number in sorted(errors)]
    if batch.count > 1:
        ordered = [f"image {number + 1}: {errors[number]}" for number in sorted(errors)]
    return results, ordered


def _refine_items(given: Inputs, batch: Batch, progress: host.RefineProgress) -> list[torch.Tensor]:
    from .host import kept
    from .host.waiting import wait_for_checkpoint

    refiner = wait_for_checkpoint(
        given.checkpoint,
        lambda: kept.loaded_refiner(given.checkpoint, given.memory_mode),
        progress.say,
    )
    try:
        return refiner.refine_items(batch, on_progress=progress, should_stop=host.interrupted)
    finally:
        if given.unload_after:
            kept.unload_refiner(refiner)


def _upscaler(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what enlarges an image with an upscale model, as ComfyUI's own node does."""

    core = importlib.import_module("nodes").NODE_CLASS_MAPPINGS["ImageUpscaleWithModel"]

    def enlarge(image: torch.Tensor) -> torch.Tensor:
        return core.execute(model, image).args[0]

    return enlarge
