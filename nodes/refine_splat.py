"""Refine Splat: a 3D Gaussian splat in, the same splat with refined colors out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.latest import io

from . import host
from .refiner_inputs import Inputs as RefinerInputs
from .refiner_inputs import prompt_input

if TYPE_CHECKING:
    import torch

    from ..refine import ImageRefiner, Progress
    from ..refine.settings import MemoryMode
    from ..refine.splats import RefinedSplat, Splat

SplatType = io.Custom("SPLAT")
_SETTINGS = (
    *("prompt", "negative_prompt", "strength", "num_inference_steps", "guidance_scale"),
    *("views", "passes"),
)


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    splat: list[Any] = host.widget(
        lambda id: SplatType.Input(
            id, tooltip="3D Gaussian splat of an object, such as from Get Splat or TripoSplat."
        )
    )
    checkpoint: str = host.same(RefinerInputs, "checkpoint")
    prompt: str = prompt_input(
        "What the splat shows, for all views. Connect LLM Describe with an image of it, or leave "
        "it empty.",
        default="",
    )
    negative_prompt: str = prompt_input("What the splat should not look like.", default="")
    strength: float = host.number(
        0.25,
        0.0,
        1.0,
        "How much to change each view. Views agree less the higher it is, and what they do not "
        "agree on stays as it was.",
        optional=False,
    )
    views: int = host.number(
        16,
        1,
        256,
        "How many views from all around are refined. More cover small parts better and take "
        "longer.",
        optional=False,
    )
    passes: int = host.number(
        4,
        1,
        100,
        "How often the colors are compared with all views. More follow the views closer, also "
        "where they do not agree.",
        optional=False,
    )
    seed: int = host.widget(
        lambda id: io.Int.Input(
            id,
            default=0,
            min=0,
            max=0xFFFF_FFFF_FFFF_FFFF,
            control_after_generate=True,
            tooltip="Seed of the noise, the same for all views. Each further splat uses the next "
            "seed.",
        ),
        default=0,
    )
    memory_mode: MemoryMode = host.same(RefinerInputs, "memory_mode")
    num_inference_steps: int = host.number(
        20,
        1,
        1000,
        "Length of the schedule, of which steps x strength run for each view (20 x 0.25 = 5).",
        label="steps",
        hide=True,
    )
    guidance_scale: float = host.number(
        7.5,
        0.0,
        100.0,
        "How closely to follow the prompt. 1 or less turns guidance off and halves the time, as "
        "Turbo and Lightning checkpoints need.",
        label="cfg",
        hide=True,
        step=0.1,
        round=0.01,
    )


class RefineSplat(io.ComfyNode):
    """Refine the colors of splats, over `refine.splats`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefinerySplat",
            display_name="Refine Splat",
            category="Image Refinery/3D",
            description=(
                "Refines the colors of a 3D Gaussian splat: views from all around go through SDXL "
                "Refiner, and the colors are fitted to them. Its shape stays."
            ),
            search_aliases=[
                *("gaussian splatting", "3dgs", "refine gaussian", "enhance splat", "triposplat"),
                *("ply", "sdxl refiner"),
            ],
            is_input_list=True,
            is_experimental=True,
            inputs=host.widgets(Inputs),
            outputs=[
                SplatType.Output(
                    display_name="splat",
                    is_output_list=True,
                    tooltip="The splat with refined colors: a batch for a batch, a list for a "
                    "list.",
                ),
                io.Image.Output(
                    display_name="views",
                    is_output_list=True,
                    tooltip="The refined views over gray, which the colors are fitted to: one "
                    "batch for each splat input.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: Any = "") -> bool | str:
        """Accept any checkpoint: workflows of other machines must load and queue."""
        return True

    @classmethod
    @host.shows_errors
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Refine every splat; with strength 0 its colors stay."""
        from ..refine import RefineCancelled
        from .host.splats import single_splats, with_colors_of

        given, problem = host.read(Inputs, values)
        if problem:
            raise problem
        batches = [single_splats(batch) for batch in given.splat]
        try:
            refined = iter(_refine_all(given, [one for batch in batches for one in batch], cls))
        except (RefineCancelled, comfy.model_management.InterruptProcessingException):
            host.show(host.node_id(cls), "cancelled")
            host.stop()
        results = [[next(refined) for _ in batch] for batch in batches]
        splats = [
            with_colors_of(batch, [one.splat for one in some])
            for batch, some in zip(given.splat, results, strict=True)
        ]
        return io.NodeOutput(splats, [_views(some) for some in results])


def _refine_all(given: Inputs, splats: list[Splat], node: type[io.ComfyNode]) -> list[RefinedSplat]:
    from ..refine.settings import SEEDS
    from ..refine.splats import SplatRefiner
    from .host import kept
    from .host.waiting import wait_for_checkpoint

    progress = host.RefineProgress(host.node_id(node), len(splats), "splat")
    refiner: ImageRefiner = wait_for_checkpoint(
        given.checkpoint,
        lambda: kept.loaded_refiner(given.checkpoint, given.memory_mode),
        progress.say,
    )
    settings = {name: getattr(given, name) for name in _SETTINGS}
    results: list[RefinedSplat] = []
    try:
        for number, splat in enumerate(splats):
            results.append(
                SplatRefiner(refiner).refine(
                    splat,
                    seed=(given.seed + number) % SEEDS,
                    on_progress=partial(_show_one_of, progress, number, len(splats)),
                    should_stop=host.interrupted,
                    **settings,
                )
            )
    finally:
        kept.unload_refiner(refiner)
    progress.finished(_views(results[-1:])[:1])
    return results


def _show_one_of(progress: host.RefineProgress, number: int, count: int, event: Progress) -> None:
    progress(event.part_of(number, count))


def _views(results: list[RefinedSplat]) -> torch.Tensor:
    """Return the refined views of splats (B, H, W, 3), over gray."""
    import numpy as np
    import torch

    from ..refine.splats.splat_refiner import over_gray

    views = torch.from_numpy(np.stack([view for one in results for view in one.after]))
    return over_gray(views)
