"""Caption Folder: caption files for the images of a folder, as a job that can be continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..captioning.options import StageOptions
from . import host, llm_inputs
from .host import job_folders

if TYPE_CHECKING:
    from ..captioning.job import Job

EXISTING = ("skip", "overwrite")


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    folder: str = job_folders.folder("Folder with the images, inside ComfyUI's input or output")
    include_subfolders: bool = job_folders.include_subfolders()
    pattern: str = job_folders.pattern()
    vision_model: str = llm_inputs.vision_model()
    text_model: str = llm_inputs.text_model(
        "Model that rewrites the description, or auto to choose one that your server has. Not used "
        "if instructions is empty."
    )
    instructions: list[str] = llm_inputs.text(
        "Tell the text model how to rewrite each description. Leave empty to write the description "
        "itself."
    )
    custom_vision_prompt: list[str] = llm_inputs.custom_vision_prompt()
    existing: str = host.choice(
        EXISTING,
        "Leave out images that have a caption by you or another program, or replace it.",
        label="if file exists",
    )
    retry_failed: bool = job_folders.retry_failed()
    server: str = llm_inputs.server()
    vision_options: StageOptions = llm_inputs.options("Connect Ollama Options for the description.")
    text_options: StageOptions = llm_inputs.options("Connect Ollama Options for the rewrite.")


class CaptionFolder(job_folders.WorksOnFolder):
    """(names, texts, report) of a folder, and a .txt beside each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryCaptionFolder",
            display_name="Caption Folder",
            category="Image Refinery/LLM",
            description=(
                "Writes a caption file beside each image of a folder of any size. What is finished "
                "is kept: cancel, and queue again to continue."
            ),
            search_aliases=[
                *("batch caption", "dataset", "caption files", "lora", "training", "txt", "kohya"),
                *("tag folder", "directory", "batch folder", "vlm", "ollama"),
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=host.widgets(Inputs),
            outputs=[
                *job_folders.outputs(),
                io.String.Output(
                    display_name="texts",
                    is_output_list=True,
                    tooltip="Caption of each image, or why it has none.",
                ),
                job_folders.report_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, folder: Any = "", vision_model: Any = "", text_model: Any = "", server: Any = ""
    ) -> bool:
        """Accept any folder, model and server: workflows of other machines must load and queue."""
        return True

    @classmethod
    @host.shows_errors
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Describe and rewrite what has no result yet, and write the caption files."""
        from .caption_run import caption_folder

        given, problem = host.read(Inputs, values)
        if problem:
            raise problem
        return caption_folder(
            cls,
            folder=job_folders.path_of(given.folder),
            recursive=given.include_subfolders,
            pattern=given.pattern,
            job=_job(given),
            models=(given.vision_model, given.text_model),
            server=given.server,
            overwrite=given.existing == EXISTING[1],
            retry_failed=given.retry_failed,
        )


def _job(given: Inputs) -> Job:
    from ..captioning.job import Job
    from ..captioning.options import TEXT_SAMPLING, VISION_SAMPLING, text_options, vision_options

    seeing, writing = given.vision_options, given.text_options
    rewrites = bool(given.instructions[0].strip())
    options = vision_options(VISION_SAMPLING, 0, seeing)
    text = None
    if rewrites:
        options_of_text = text_options(TEXT_SAMPLING, 0, writing)
        text = llm_inputs.stage("text_model", given.text_model, options_of_text, writing)
    return Job(
        vision=llm_inputs.stage("vision_model", given.vision_model, options, seeing),
        text=text,
        instructions=given.instructions[:1],
        custom_prompts=given.custom_vision_prompt[:1],
    )
