"""SDXL Refiner: an image in, a refined image out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, refined_images
from .refiner_inputs import Inputs

if TYPE_CHECKING:
    import torch

    from ..refine import Batch


class SDXLRefiner(refined_images.RefinesImages):
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
            outputs=refined_images.outputs(),
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
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Ask for what is linked only when it is used."""
        given, _ = host.read(Inputs, inputs)
        if not given.enabled:
            return []
        sockets = refined_images.used_sockets(given, given.strength, inputs)
        return ["prompt", "negative_prompt", *sockets]

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Refine every image; with strength 0, or not enabled, return the very same objects."""
        given, problem = host.read(Inputs, values)
        refine_items = partial(_refine_items, given)
        return refined_images.run(cls, given, problem, given.prompt, refine_items)


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
