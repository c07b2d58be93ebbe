"""Refine Folder: refined copies of the images of a folder, as a job that can be continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, refiner_inputs
from .host import job_folders

if TYPE_CHECKING:
    from ..refine import RefineSettings
    from ..refine.settings import MemoryMode, OutputSize, WorkingSize

FORMATS = ("png", "jpg", "webp")
"""`FORMATS` of refine.saving, which ComfyUI's start need not import."""


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order; most are those of SDXL Refiner."""

    folder: str = job_folders.folder("Folder with the images, inside ComfyUI's input or output")
    include_subfolders: bool = job_folders.include_subfolders()
    pattern: str = job_folders.pattern()
    checkpoint: str = host.same(refiner_inputs.Inputs, "checkpoint")
    strength: float = host.same(refiner_inputs.Inputs, "strength")
    num_inference_steps: int = host.same(refiner_inputs.Inputs, "num_inference_steps")
    guidance_scale: float = host.same(refiner_inputs.Inputs, "guidance_scale")
    prompt: str = refiner_inputs.prompt_input(
        "What all of the images show. Leave empty if they show different things.", default=""
    )
    negative_prompt: str = refiner_inputs.prompt_input(
        "What the images should not look like. Leave empty for no negative prompt.", default=""
    )
    # Without the control that changes it: each run would be another job.
    seed: int = host.number(
        0,
        0,
        0xFFFF_FFFF_FFFF_FFFF,
        "Seed of the noise. Each image has its own, from this seed and its name in the folder.",
        hide=True,
        control_after_generate=False,
    )
    output_size: OutputSize = host.same(refiner_inputs.Inputs, "output_size", hide=True)
    format: str = host.choice(
        FORMATS,
        "Type of the refined files. PNG loses nothing, JPEG and WebP have quality 95.",
        hide=True,
    )
    working_size: WorkingSize = host.same(refiner_inputs.Inputs, "working_size")
    keep_colours: bool = host.same(refiner_inputs.Inputs, "keep_colours")
    memory_mode: MemoryMode = host.same(refiner_inputs.Inputs, "memory_mode")
    retry_failed: bool = job_folders.retry_failed()

    def settings(self) -> RefineSettings:
        """Return the settings of all images.

        Raises:
            SettingsError: a value is out of range.
        """
        from ..refine import RefineSettings

        return RefineSettings(
            strength=self.strength,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            output_size=self.output_size,
            working_size=self.working_size,
            keep_colors=self.keep_colours,
        )


class RefineFolder(job_folders.WorksOnFolder):
    """(names, folder, report): the refined images, in a folder of ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`; reads no checkpoint and no network."""
        return host.schema(
            node_id="RefineryRefineFolder",
            display_name="Refine Folder",
            category="Image Refinery/Image",
            description=(
                "Refines the images of a folder of any size into a folder of ComfyUI's output. "
                "What is finished is kept: cancel, and queue again to continue."
            ),
            search_aliases=[
                *("batch refine", "batch img2img", "batch enhance", "dataset", "directory"),
                *("batch folder", "sdxl", "refiner", "image to image", "restore", "artifacts"),
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="Name of each refined image inside ComfyUI's output folder.",
                ),
                io.String.Output(
                    display_name="folder",
                    tooltip="Folder of the refined images, for folder of Caption Folder.",
                ),
                job_folders.report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, folder: Any = "", checkpoint: Any = "", working_size: Any = None
    ) -> bool | str:
        """Accept any folder and checkpoint: workflows of other machines must load and queue."""
        return host.check_choices(Inputs, working_size=working_size)

    @classmethod
    @host.shows_errors
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Refine what has no result yet."""
        from .refine_run import refine_folder

        given, problem = host.read(Inputs, values)
        if problem:
            raise problem
        return refine_folder(
            cls,
            folder=job_folders.path_of(given.folder),
            recursive=given.include_subfolders,
            pattern=given.pattern,
            settings=given.settings(),
            checkpoint=given.checkpoint,
            memory_mode=given.memory_mode,
            format=given.format,
            retry_failed=given.retry_failed,
        )
