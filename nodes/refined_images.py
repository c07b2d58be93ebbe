"""What the nodes that refine images have in common: outputs, errors, cancel. See `run`."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import comfy.model_management
from comfy_api.latest import io

from .._advice import with_code
from . import host
from .host import convert
from .refiner_inputs import ON_ERROR

if TYPE_CHECKING:
    import torch

    from ..refine import Batch, RefineError, RefineSettings, TilePrompts
    from ..refine.work import Upscaler

log = logging.getLogger(__name__)

RefineItems = Callable[["Batch", host.RefineProgress], "list[torch.Tensor]"]
"""Refines a batch that needs the model."""


class RefinerInputs(Protocol):
    """The inputs that these nodes share."""

    image: list[torch.Tensor]
    mask: list[torch.Tensor]
    enabled: bool
    scale: float
    upscale_model: list[Any]
    tile_prompts: list[TilePrompts]
    on_error: str

    def settings(self) -> RefineSettings:
        """Return the settings but for the prompts."""
        ...


class RefinesImages(io.ComfyNode):
    """A node (image, ...) -> (image, mask)."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes after each run that returned an original image, so that none is cached."""
        return host.failed_runs(cls)


def outputs() -> list[Any]:
    """Return the outputs of such a node."""
    return [
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
    ]


def used_sockets(given: RefinerInputs, strength: float, inputs: dict[str, Any]) -> list[str]:
    """Return the optional lazy inputs that are linked and that this run uses."""
    used = {"tile_prompts": strength > 0, "upscale_model": given.scale > 1}
    return [name for name, is_used in used.items() if is_used and name in inputs]


def run(
    node: type[io.ComfyNode],
    given: RefinerInputs,
    problem: host.BadInput | None,
    prompts: list[str],
    refine_items: RefineItems,
) -> io.NodeOutput:
    """Refine every image; with strength 0, or not enabled, return the very same objects.

    Args:
        node: The running node.
        given: Its inputs.
        problem: What is wrong with them.
        prompts: One for all images, one for each image, or one for each batch.
        refine_items: Called if any image needs the model.
    """
    from ..refine import RefineCancelled, RefineError

    result, errors = given.image, []
    if given.enabled:
        try:
            if problem:
                raise problem
            settings = given.settings()
            if settings.strength > 0 or settings.scale > 1:
                result, errors = _refine(node, given, settings, prompts, refine_items)
        except (RefineCancelled, comfy.model_management.InterruptProcessingException):
            host.show(host.node_id(node), "cancelled")
            host.stop()
        except (RefineError, host.BadInput) as error:
            host.note_error(node, error)
            message = with_code(error)
            host.show(host.node_id(node), f"Error: {message}")  # "loading" is no longer true
            if given.on_error == ON_ERROR[0]:
                error.args = (message,)
                raise
            errors = [message]
    else:
        host.show(host.node_id(node), "off: the image passes through")
    texts = [f"Error: {error}" for error in errors]
    if errors:
        host.count_failed_run(node)
        host.show(host.node_id(node), *texts)
    masks = _masks(given, result)
    return io.NodeOutput(result, masks, ui={"text": texts, "failed": texts} if texts else None)


def _refine(
    node: type[io.ComfyNode],
    given: RefinerInputs,
    settings: RefineSettings,
    prompts: list[str],
    refine_items: RefineItems,
) -> tuple[list[torch.Tensor], list[str]]:
    """Return the refined batches, and what was wrong with images that come out unchanged."""
    from ..refine import Batch, enlarge_items
    from .host.pairing import masks_for, prompts_for, tile_prompts_for

    errors: dict[int, str] = {}

    def keep_original(number: int, error: RefineError) -> None:
        log.warning("Image %d comes out unchanged: %s", number + 1, error)
        errors[number] = with_code(error)
        host.note_error(node, error)

    batch = Batch(
        given.image,
        settings,
        prompts=prompts_for(prompts, given.image),
        masks=masks_for(given.mask, given.image),
        tile_prompts=tile_prompts_for(given.tile_prompts, given.image),
        upscaler=_upscaler(given.upscale_model[0]) if given.upscale_model else None,
        on_image_error=keep_original if given.on_error == ON_ERROR[1] else None,
    )
    results = given.image
    if batch.items:
        progress = host.RefineProgress(host.node_id(node), batch.count)
        if batch.needs_model:
            results = refine_items(batch, progress)
        else:
            results = enlarge_items(batch, on_progress=progress, should_stop=host.interrupted)
        # An image that could not be refined may have no pixels to show.
        last = next(one for one in reversed(results) if len(one))
        progress.finished(None if errors else last[-1:], batch.advice)
    ordered = [errors[number] for number in sorted(errors)]
    if batch.count > 1:
        ordered = [f"image {number + 1}: {errors[number]}" for number in sorted(errors)]
    return results, ordered


def _masks(given: RefinerInputs, result: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the input masks, at the size of images that `scale` enlarged; zeros without any."""
    if given.mask and given.scale > 1:
        from ..refine import SettingsError
        from .host.pairing import masks_for

        with suppress(SettingsError):  # they cannot be paired, which was reported
            return masks_for(given.mask, result) or []
    return given.mask or [convert.empty_mask(batch) for batch in result]


def _upscaler(model: Any) -> Upscaler:
    """Return what enlarges an image with an upscale model, as ComfyUI's own node does."""
    core = importlib.import_module("nodes").NODE_CLASS_MAPPINGS["ImageUpscaleWithModel"]

    def enlarge(image: torch.Tensor) -> torch.Tensor:
        return core.execute(model, image).args[0]

    return enlarge
