"""Describe Tiles: a text for each tile and region that a refiner will work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import VISION_SAMPLING, StageOptions, vision_options
from ..captioning.prompts import TILE_REQUEST
from . import host, llm_inputs
from .host import convert
from .refiner_inputs import Inputs as RefinerInputs
from .refiner_inputs import TilePromptsType

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ..captioning.events import Watcher
    from ..captioning.job import Result
    from ..refine import RefineSettings, TilePrompts
    from ..refine.geometry import Box
    from ..refine.settings import Regions, WorkingSize


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    image: list[torch.Tensor] = llm_inputs.image()
    vision_model: str = llm_inputs.vision_model()
    custom_vision_prompt: list[str] = llm_inputs.text(
        "Replace the default request about each tile. Leave empty for one or two sentences.",
        optional=True,
        placeholder=TILE_REQUEST,
    )
    mask: list[torch.Tensor] = host.widget(
        lambda id: io.Mask.Input(
            id, optional=True, tooltip="Mask as on the refiner: describe only its regions."
        )
    )
    working_size: WorkingSize = host.same(RefinerInputs, "working_size")
    scale: float = host.same(RefinerInputs, "scale")
    regions: Regions = host.same(RefinerInputs, "regions")
    tile_size: int = host.number(
        0,
        0,
        4096,
        "Longest side of a tile in pixels, for Refine with Model. 0: the tiles of SDXL Refiner.",
        hide=True,
    )
    seed: int = llm_inputs.seed()
    keep_loaded_minutes: int = llm_inputs.keep_loaded_minutes()
    server: str = llm_inputs.server()
    on_error: str = llm_inputs.on_error()
    vision_options: StageOptions = llm_inputs.options("Connect Ollama Options for the description.")

    def settings(self) -> RefineSettings:
        """Return what decides about the tiles.

        Raises:
            SettingsError: a value is out of range.
        """
        from ..refine import RefineSettings

        return RefineSettings(
            working_size=self.working_size,
            scale=self.scale,
            regions=self.regions,
            tile_size=self.tile_size,
        )


class DescribeTiles(llm_inputs.AsksServer):
    """(texts, tile_prompts): a text for each tile, and one value for each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryDescribeTiles",
            display_name="Describe Tiles",
            category="Image Refinery/LLM",
            description=(
                "Describes each tile of a large image, or each region of a mask, for a refiner to "
                "use as its own prompt. All of them load the model once."
            ),
            search_aliases=[
                *("tile prompts", "regional prompt", "tiled upscale", "detailer", "caption tiles"),
                *("ultimate sd upscale", "ollama", "vlm", "vision"),
            ],
            is_input_list=True,
            has_intermediate_output=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.String.Output(
                    display_name="texts",
                    is_output_list=True,
                    tooltip="Text of each tile: image by image, region by region, row by row.",
                ),
                TilePromptsType.Output(
                    display_name="tile_prompts",
                    is_output_list=True,
                    tooltip="The texts of each image with their places, for a refiner.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        vision_model: Any = "",
        server: Any = "",
        working_size: Any = None,
        regions: Any = None,
        on_error: Any = None,
    ) -> bool | str:
        """Accept any model and server: workflows of other machines must load and queue."""
        return host.check_choices(
            Inputs, working_size=working_size, regions=regions, on_error=on_error
        )

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Describe every tile; one that fails has only the common prompt."""
        from ..captioning.job import Result
        from .llm_run import models_of, running, to_texts

        given, problem = host.read(Inputs, values)
        prompts: list[TilePrompts] = []
        results: list[Result] = []
        with running(cls, given.on_error) as node_run:
            if problem:
                raise problem
            prompts = _planned(given)
            images = convert.single_images(given.image)
            crops = [
                _crop(image, box)
                for image, plan in zip(images, prompts, strict=True)
                for region in plan.boxes
                for box in region
            ]
            if crops:
                results = _describe(given, crops, node_run.watcher)
        if node_run.error:
            count = sum(len(region) for plan in prompts for region in plan.boxes)
            results = [Result(error=node_run.error)] * max(1, count)
        failure = node_run.finish("described", "tile", results)
        texts = to_texts(results)
        ui = {"text": texts, "models": models_of(results)} | failure
        # What failed has an error in texts, and the common prompt alone.
        own = iter([one.text if one.answer else "" for one in results])
        return io.NodeOutput(texts, [plan.with_texts(own) for plan in prompts], ui=ui)


def _planned(given: Inputs) -> list[TilePrompts]:
    """Return the tiles of each image, still without texts.

    Raises:
        BadInput: the mask or a setting does not fit.
    """
    from ..refine import RefineError, TilePrompts
    from .host.pairing import masks_for

    prompts: list[TilePrompts] = []
    try:
        settings = given.settings()
        masks = masks_for(given.mask, given.image)
        for number, batch in enumerate(given.image):
            size = (batch.shape[1], batch.shape[2])
            for row in range(len(batch)):
                mask = None
                if masks:
                    mask = masks[number][row if len(masks[number]) > 1 else 0]
                prompts.append(TilePrompts.planned(size, settings, mask))
    except RefineError as error:
        problem = host.BadInput(str(error))
        problem.code = error.code
        raise problem from error
    return prompts


def _crop(image: torch.Tensor, box: Box) -> Callable[[], NDArray[np.uint8]]:
    return convert.pixels(image[(slice(None), *box.slices)])


def _describe(
    given: Inputs, crops: list[Callable[[], NDArray[np.uint8]]], watcher: Watcher
) -> list[Result]:
    """Ask for all tiles of all images in one run, so that the model is loaded once."""
    from ..captioning.job import Job
    from ..captioning.run import run
    from ..memory import StageMemory

    options = vision_options(VISION_SAMPLING, given.seed, given.vision_options)
    asked = given.custom_vision_prompt
    job = Job(
        vision=llm_inputs.stage("vision_model", given.vision_model, options, given.vision_options),
        custom_prompts=[asked[0] if asked[0].strip() else TILE_REQUEST],
        keep_loaded_s=60.0 * given.keep_loaded_minutes,
        stop_on_error=given.on_error == llm_inputs.ON_ERROR[1],
    )
    with (
        host.kept_answers() as kept,
        host.open_backends(given.server, given.vision_model) as (backend,),
    ):
        captions = run(backend, crops, job, memory=StageMemory(), watcher=watcher, kept=kept)
    return [caption.description for caption in captions]
