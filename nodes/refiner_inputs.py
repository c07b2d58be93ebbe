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

    from ..refine import RefineSettings
    from ..refine.settings import MemoryMode

ON_ERROR = ("stop the workflow", "pass the image on")
_SETTINGS = (
    *("negative_prompt", "strength", "num_inference_steps", "guidance_scale", "seed"),
    *("aesthetic_score", "negative_aesthetic_score", "guidance_end", "working_size"),
    *("output_size", "keep_colours"),
)


def _prompt(tooltip: str, **default: Any) -> Any:
    return host.widget(
        lambda id: io.String.Input(id, multiline=True, default="", lazy=True, tooltip=tooltip),
        **default,
    )


def _float(default: float, high: float, step: float, tooltip: str, **more: Any) -> Any:
    return host.widget(
        lambda id: io.Float.Input(
            id, default=default, min=0.0, max=high, step=step, tooltip=tooltip, **more
        ),
        default=default,
    )


def _int(default: int, low: int, high: int, tooltip: str, **more: Any) -> Any:
    return host.widget(
        lambda id: io.Int.Input(id, default=default, min=low, max=high, tooltip=tooltip, **more),
        default=default,
    )


def _checkpoint(id: str) -> Any:
    names = checkpoints_to_choose()
    return io.Combo.Input(
        id,
        options=names,
        default=names[0],
        tooltip="A checkpoint of the SDXL family in ComfyUI's checkpoints folder, "
        "refiners first. The last entry downloads the refiner (6 GB) when it is run.",
    )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs, in their order."""

    image: list[torch.Tensor] = host.widget(
        lambda id: io.Image.Input(id, tooltip="The image, batch or list of images to refine.")
    )
    checkpoint: str = host.widget(_checkpoint, default=DOWNLOAD)
    prompt: list[str] = _prompt(
        "What the image shows; may be empty, and as long as you like. Link refined_output of LLM "
        "Image Refine: a list gives each image its own.",
        default_factory=lambda: [""],
    )
    negative_prompt: str = _prompt(
        "What the image should not look like. Empty: nothing in particular.", default=""
    )
    strength: float = _float(
        0.3,
        1.0,
        0.01,
        "How much is redrawn. 0: the image passes untouched; 0.2 to 0.35: texture and artifacts; "
        "above 0.5 the picture changes.",
        round=0.001,
    )
    num_inference_steps: int = _int(
        20, 1, 1000, "Steps of the whole schedule; steps x strength of them run (20 x 0.3 = 6)."
    )
    guidance_scale: float = _float(
        7.5,
        100.0,
        0.1,
        "How strongly the prompt pulls. 1 or less: not at all, in half the time. Turbo and "
        "Lightning checkpoints want 1.",
        round=0.01,
    )
    seed: int = _int(
        0,
        0,
        0xFFFF_FFFF_FFFF_FFFF,
        "Image i of a batch or list uses seed + i.",
        control_after_generate=True,
    )
    mask: list[torch.Tensor] = host.widget(
        lambda id: io.Mask.Input(
            id,
            optional=True,
            tooltip="Refine only this region: it is cut out, worked on at about a megapixel and "
            "blended back. Pixels outside stay bit for bit.",
        )
    )
    enabled: bool = host.switch(
        True, "Off: the image passes untouched, and linked prompts are not made."
    )
    aesthetic_score: float = _float(
        6.0,
        10.0,
        0.1,
        "The quality to go for. Refiner checkpoints only.",
        round=0.01,
        optional=True,
    )
    negative_aesthetic_score: float = _float(
        2.5,
        10.0,
        0.1,
        "The quality to move away from. Refiner checkpoints only.",
        round=0.01,
        optional=True,
    )
    guidance_end: float = _float(
        1.0,
        1.0,
        0.05,
        "The share of the steps that follow the prompt; the rest take half the time. 1: all.",
        round=0.001,
        optional=True,
    )
    working_size: str = host.choice(
        ("auto", "as it is"),
        "auto: small images are enlarged to about a megapixel for the work.",
    )
    output_size: str = host.choice(
        ("original", "working"),
        "working: keep the size of the work, so that a small image comes out larger.",
    )
    keep_colours: bool = host.switch(
        True, "Carry the colors and shading of the image over to the result."
    )
    memory_mode: MemoryMode = host.choice(
        ("auto", "gpu", "offload", "low_vram"),
        "auto: ComfyUI decides what stays on the GPU. gpu: each part whole. offload: only the "
        "part at work. low_vram: at most 1.5 GiB of weights.",
    )
    unload_after: bool = host.switch(
        True, "Free the GPU after each run. The next run reads nothing from disk again, either way."
    )
    on_error: str = host.choice(
        ON_ERROR, "Stop with the error's sentence, or pass the untouched image on."
    )

    def settings(self) -> RefineSettings:
        """Return the settings but for the prompts, of which each image may have its own.

        Raises:
            SettingsError: a value is out of range.
        """
        from ..refine import RefineSettings

        return RefineSettings(**{name: getattr(self, name) for name in _SETTINGS})
