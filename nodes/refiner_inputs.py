"""The inputs of SDXL Refiner. Their defaults and choices equal those of `RefineSettings`.

Importing `refine` here would more than double what loading the pack costs, so a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host
from .host.checkpoints import DOWNLOAD, checkpoints_to_choose

if TYPE_CHECKING:
    import torch

    from ..refine import RefineSettings, TilePrompts
    from ..refine.settings import MemoryMode, OutputSize, PromptSyntax, Regions, WorkingSize

ON_ERROR = ("stop the workflow", "return original image")
_SETTINGS = (
    *("negative_prompt", "strength", "num_inference_steps", "guidance_scale", "seed"),
    *("aesthetic_score", "negative_aesthetic_score", "guidance_end", "working_size"),
    *("output_size", "scale", "regions", "prompt_syntax"),
)
TilePromptsType = io.Custom("REFINERY_TILE_PROMPTS")


def prompt_input(tooltip: str, *, lazy: bool | None = None, **default: Any) -> Any:
    """A text of several lines."""
    return host.widget(
        lambda id: io.String.Input(id, multiline=True, default="", lazy=lazy, tooltip=tooltip),
        **default,
    )


def _float(
    default: float,
    high: float,
    step: float,
    tooltip: str,
    *,
    label: str = "",
    hide: bool = False,
    **more: Any,
) -> Any:
    return host.widget(
        lambda id: io.Float.Input(
            id, default=default, min=0.0, max=high, step=step, tooltip=tooltip, **more
        ),
        label=label,
        hide=hide,
        default=default,
    )


def _int(default: int, low: int, high: int, tooltip: str, *, label: str = "", **more: Any) -> Any:
    return host.widget(
        lambda id: io.Int.Input(id, default=default, min=low, max=high, tooltip=tooltip, **more),
        label=label,
        default=default,
    )


def _checkpoint(id: str) -> Any:
    names = checkpoints_to_choose()
    return io.Combo.Input(
        id,
        options=names,
        default=names[0],
        tooltip="SDXL checkpoint from models/checkpoints, refiners first. The last entry downloads "
        "SDXL Refiner 1.0 (6 GB) when it first runs.",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    image: list[torch.Tensor] = host.widget(
        lambda id: io.Image.Input(id, tooltip="Image, batch or list of images to refine.")
    )
    checkpoint: str = host.widget(_checkpoint, default=DOWNLOAD)
    prompt: list[str] = prompt_input(
        "What the image shows, of any length or empty. Connect refined_output of LLM Image Refine "
        "to give each image its own prompt.",
        lazy=True,
        default_factory=lambda: [""],
    )
    negative_prompt: str = prompt_input(
        "What the image should not look like. Leave empty for no negative prompt.",
        lazy=True,
        default="",
    )
    strength: float = _float(
        0.3,
        1.0,
        0.01,
        "How much to change: 0.2 to 0.35 refines texture, above 0.5 changes the content. Like "
        "denoise, but only steps x strength run.",
        round=0.001,
    )
    num_inference_steps: int = _int(
        20,
        1,
        1000,
        "Length of the schedule, of which steps x strength run (20 x 0.3 = 6). KSampler's denoise "
        "runs all steps.",
        label="steps",
    )
    guidance_scale: float = _float(
        7.5,
        100.0,
        0.1,
        "How closely to follow the prompt. 1 or less turns guidance off and halves the time, as "
        "Turbo and Lightning checkpoints need.",
        label="cfg",
        round=0.01,
    )
    seed: int = _int(
        0,
        0,
        0xFFFF_FFFF_FFFF_FFFF,
        "Seed of the noise. Each further image of a batch or list uses the next seed.",
        control_after_generate=True,
    )
    mask: list[torch.Tensor] = host.widget(
        lambda id: io.Mask.Input(
            id,
            optional=True,
            tooltip="Refine only this region, at about one megapixel. Pixels outside of it stay "
            "exactly the same.",
        )
    )
    enabled: bool = host.switch(
        True, "Off: pass the image through. Nodes that feed the prompts do not run.", hide=True
    )
    aesthetic_score: float = _float(
        6.0,
        10.0,
        0.1,
        "Aesthetic score to aim for. Only SDXL refiner checkpoints use it.",
        hide=True,
        round=0.01,
        optional=True,
    )
    negative_aesthetic_score: float = _float(
        2.5,
        10.0,
        0.1,
        "Aesthetic score to move away from. Only SDXL refiner checkpoints use it.",
        hide=True,
        round=0.01,
        optional=True,
    )
    guidance_end: float = _float(
        1.0,
        1.0,
        0.05,
        "Share of the steps that follow the prompt. The remaining steps take half the time.",
        hide=True,
        round=0.001,
        optional=True,
    )
    working_size: WorkingSize = host.choice(
        ("auto", "keep size"),
        "Work at about one megapixel if the image is smaller (auto), or at its own size.",
        hide=True,
    )
    output_size: OutputSize = host.choice(
        ("original", "working"),
        "Return the size of the input, or the working size, which makes small images larger.",
    )
    keep_colours: bool = host.switch(
        True,
        "Transfer the colors and shading of the input to the result.",
        label="keep_colors",
        hide=True,
    )
    memory_mode: MemoryMode = host.choice(
        ("auto", "gpu", "offload", "low_vram"),
        "What stays in VRAM: auto lets ComfyUI decide, gpu keeps all parts. offload keeps only the "
        "active part, low_vram at most 1.5 GiB of it.",
        hide=True,
    )
    unload_after: bool = host.switch(
        True,
        "Free the VRAM after each run. Off: the models stay until ComfyUI needs their memory.",
        hide=True,
    )
    on_error: str = host.choice(
        ON_ERROR,
        "On error: stop the workflow, or return the original image and continue. The LLM nodes "
        "continue by default.",
        hide=True,
    )

    scale: float = host.number(
        1.0,
        1.0,
        4.0,
        "Enlarge the image by this factor first, and refine it at that size, in tiles if it is "
        "large.",
        hide=True,
        step=0.25,
        round=0.01,
    )
    regions: Regions = host.choice(
        ("separate", "one box"),
        "Refine each separate part of the mask by itself, at about one megapixel, or the smallest "
        "box around all of them.",
        hide=True,
    )
    prompt_syntax: PromptSyntax = host.choice(
        ("plain text", "ComfyUI weights"),
        "Read prompts as they are, or read weights such as (word:1.3) as ComfyUI does. Plain text "
        "is safe for what a language model writes.",
        hide=True,
    )
    upscale_model: list[Any] = host.widget(
        lambda id: io.UpscaleModel.Input(
            id,
            optional=True,
            lazy=True,
            tooltip="Upscale model that enlarges the image for scale. Without one: Lanczos.",
        ),
        default_factory=list,
    )
    tile_prompts: list[TilePrompts] = host.widget(
        lambda id: TilePromptsType.Input(
            id,
            optional=True,
            lazy=True,
            tooltip="Connect Describe Tiles to give each tile or region its own text. It is added "
            "to the prompt.",
        ),
        default_factory=list,
    )

    def settings(self) -> RefineSettings:
        """Return the settings but for the prompts, of which each image may have its own.

        Raises:
            SettingsError: a value is out of range.
        """
        from ..refine import RefineSettings

        values = {name: getattr(self, name) for name in _SETTINGS}
        return RefineSettings(**values, keep_colors=self.keep_colours)
