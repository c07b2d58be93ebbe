"""The inputs of SDXL Refiner: how they look, and how they are read.

ComfyUI gives the node lists (`is_input_list`): an input is {id: [value, ...]}.
"""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..refine import RefineSettings, SettingsError
from ..refine.settings import MemoryMode, OutputSize, WorkingSize
from .host.checkpoints import checkpoints_to_choose

ON_ERROR = ("stop the workflow", "pass the image on")


def refiner_inputs() -> list[Any]:
    """Return the node's inputs in their fixed order; no network and no checkpoint is touched."""
    checkpoints = checkpoints_to_choose()
    defaults = RefineSettings()
    return [
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
            default=defaults.strength,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.001,
            tooltip="How much is redrawn. 0: the image passes untouched; 0.2 to 0.35: "
            "texture and artefacts; above 0.5 the picture changes.",
        ),
        io.Int.Input(
            "num_inference_steps",
            default=defaults.num_inference_steps,
            min=1,
            max=1000,
            tooltip="Steps of the whole schedule; steps x strength of them run (20 x 0.3 = 6).",
        ),
        io.Float.Input(
            "guidance_scale",
            default=defaults.guidance_scale,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the prompt pulls. 1 or less: not at all, in half the "
            "time. Turbo and Lightning checkpoints want 1.",
        ),
        io.Int.Input(
            "seed",
            default=defaults.seed,
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
            default=defaults.aesthetic_score,
            min=0.0,
            max=10.0,
            step=0.1,
            round=0.01,
            optional=True,
            tooltip="The quality to go for. Refiner checkpoints only.",
        ),
        io.Float.Input(
            "negative_aesthetic_score",
            default=defaults.negative_aesthetic_score,
            min=0.0,
            max=10.0,
            step=0.1,
            round=0.01,
            optional=True,
            tooltip="The quality to move away from. Refiner checkpoints only.",
        ),
        io.Float.Input(
            "guidance_end",
            default=defaults.guidance_end,
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
            default=defaults.working_size,
            optional=True,
            tooltip="auto: small images are enlarged to about a megapixel for the work.",
        ),
        io.Combo.Input(
            "output_size",
            options=list(get_args(OutputSize)),
            default=defaults.output_size,
            optional=True,
            tooltip="working: keep the size of the work, so that a small image comes out larger.",
        ),
        io.Boolean.Input(
            "keep_colours",
            default=defaults.keep_colours,
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
    ]


def settings_of(inputs: dict[str, list[Any]]) -> RefineSettings:
    """Return the settings but for the prompts, of which each image may have its own.

    Raises:
        SettingsError: a value is out of range, or a list of different ones.
    """
    values = {
        name: value_of(inputs, name, default)
        for name, default in RefineSettings().describe().items()
        if name != "prompt"
    }
    return RefineSettings(**values)


def value_of(inputs: dict[str, list[Any]], id: str, default: Any) -> Any:
    """Return the value of an input that all images share.

    Raises:
        SettingsError: it is a list of different ones.
    """
    values = [value for value in inputs.get(id) or () if value is not None]
    if any(value != values[0] for value in values):
        raise SettingsError(
            f"{id} got a list of different values, but all of a run share one. Link one value, or "
            "use a node for each."
        )
    return values[0] if values else default


def first(inputs: dict[str, Any], id: str, default: Any) -> Any:
    """Return the first value of an input."""
    values = [value for value in inputs.get(id) or () if value is not None]
    return values[0] if values else default
