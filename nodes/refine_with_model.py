"""Refine with Model: an image in, a refined image out, by any model that ComfyUI samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, refined_images
from .refiner_inputs import Inputs as RefinerInputs
from .refiner_inputs import prompt_input

if TYPE_CHECKING:
    import torch

    from ..refine import Batch, TilePrompts
    from ..refine.settings import Regions
    from .host.core_model import SamplerSettings


def _model_input(kind: Any, tooltip: str, **more: Any) -> Any:
    return host.widget(
        lambda id: kind.Input(id, lazy=True, tooltip=tooltip, **more), default_factory=list
    )


def _sampler_input(names: str, default: str, tooltip: str) -> Any:
    def make(id: str) -> Any:
        import comfy.samplers

        options = list(getattr(comfy.samplers.KSampler, names))
        first = default if default in options else options[0]
        return io.Combo.Input(id, options=options, default=first, tooltip=tooltip)

    return host.widget(make, default=default)


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    image: list[torch.Tensor] = host.same(RefinerInputs, "image")
    model: list[Any] = _model_input(io.Model, "Model to refine with, with its LoRAs.")
    clip: list[Any] = _model_input(io.Clip, "Text encoder of the model.")
    vae: list[Any] = _model_input(io.Vae, "VAE of the model.")
    positive: list[str] = prompt_input(
        "What the image shows. The text of each tile is added to it.",
        lazy=True,
        default_factory=lambda: [""],
    )
    negative: str = prompt_input("What the image should not look like.", lazy=True, default="")
    steps: int = host.number(
        20, 1, 1000, "Steps of each tile. All of them run, as in KSampler.", optional=False
    )
    cfg: float = host.number(
        7.0,
        0.0,
        100.0,
        "How closely to follow the texts, as in KSampler. FLUX, Turbo and Lightning models need 1.",
        optional=False,
        step=0.1,
        round=0.01,
    )
    sampler_name: str = _sampler_input(
        "SAMPLERS",
        "euler",
        "Sampler, as in KSampler. Those that add noise at each step (ancestral, sde) join tiles "
        "less well.",
    )
    scheduler: str = _sampler_input("SCHEDULERS", "simple", "Scheduler, as in KSampler.")
    denoise: float = host.number(
        0.3,
        0.0,
        1.0,
        "How much to change: 0.2 to 0.35 refines texture, above 0.5 changes the content. 0 returns "
        "the image.",
        optional=False,
    )
    seed: int = host.same(RefinerInputs, "seed")
    mask: list[torch.Tensor] = host.widget(
        lambda id: io.Mask.Input(
            id,
            optional=True,
            tooltip="Refine only this region, enlarged to the size of a tile. Pixels outside of it "
            "stay exactly the same.",
        )
    )
    tile_prompts: list[TilePrompts] = host.same(RefinerInputs, "tile_prompts")
    upscale_model: list[Any] = host.same(RefinerInputs, "upscale_model")
    positive_conditioning: list[Any] = _model_input(
        io.Conditioning,
        "Conditioning with ControlNet, guidance or the like. The texts replace its words, unless "
        "they are blank.",
        optional=True,
    )
    negative_conditioning: list[Any] = _model_input(
        io.Conditioning, "The same for the negative text.", optional=True
    )
    scale: float = host.same(RefinerInputs, "scale")
    regions: Regions = host.same(RefinerInputs, "regions")
    tile_size: int = host.number(
        0,
        0,
        4096,
        "Longest side of a tile in pixels. 0: as Describe Tiles has it, else 512 for Stable "
        "Diffusion 1.5 and 1024 for others.",
        hide=True,
    )
    keep_colors: bool = host.switch(
        True, "Transfer the colors and shading of the input to the result.", hide=True
    )
    enabled: bool = host.switch(
        True, "Off: pass the image through. Nodes that feed this one do not run.", hide=True
    )
    on_error: str = host.same(RefinerInputs, "on_error")

    def settings(self) -> SamplerSettings:
        """Return the settings but for the prompts, of which each image may have its own.

        Raises:
            SettingsError: a value is out of range.
            BadInput: several values where one is needed.
        """
        from .host.core_model import SamplerSettings

        return SamplerSettings(
            strength=self.denoise,
            guidance_scale=self.cfg,
            num_inference_steps=self.steps,
            negative_prompt=self.negative,
            seed=self.seed,
            keep_colors=self.keep_colors,
            scale=self.scale,
            regions=self.regions,
            prompt_syntax="ComfyUI weights",
            tile_size=self._tile_size() if self.denoise > 0 else 0,
        )

    def _tile_size(self) -> int:
        from .host.core_model import cell_of, tile_size_for

        model, vae = self.one("model"), self.one("vae")
        if self.tile_size:
            return self.tile_size
        if not self.tile_prompts:
            return tile_size_for(model, vae)
        planned = self.tile_prompts[0].settings.tile_size
        if not planned and cell_of(vae) > 8:
            raise host.BadInput(
                "The texts are for the tiles of SDXL Refiner, which this model cannot use. Set "
                "tile_size of Describe Tiles to 1024."
            )
        return planned

    def one(self, name: str) -> Any:
        """Return the only value of a socket; None if nothing is connected.

        Raises:
            BadInput: there are several.
        """
        given = getattr(self, name)
        if len(given) > 1:
            raise host.BadInput(
                f"{name} got a list of {len(given)}, but all images of a run share one. Connect "
                "one, or use a node for each."
            )
        return given[0] if given else None


class RefineWithModel(refined_images.RefinesImages):
    """Refine images with ComfyUI's own sampler, over the geometry of the package `refine`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The fields of `Inputs`."""
        return host.schema(
            node_id="RefineryRefineWithModel",
            display_name="Refine with Model",
            category="Image Refinery/Image",
            description=(
                "Refines an image with any model, in tiles or in the regions of a mask. Each tile "
                "can have its own text, from Describe Tiles."
            ),
            search_aliases=[
                *("refine", "detailer", "tiled upscale", "ultimate sd upscale", "img2img"),
                *("face detailer", "tile", "enhance", "flux", "hires fix"),
            ],
            is_input_list=True,
            inputs=host.widgets(Inputs),
            outputs=refined_images.outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, regions: Any = None, on_error: Any = None) -> bool | str:
        """Accept the values of earlier versions."""
        return host.check_choices(Inputs, regions=regions, on_error=on_error)

    @classmethod
    def check_lazy_status(cls, **inputs: Any) -> list[str]:
        """Ask for what is linked only when it is used."""
        given, _ = host.read(Inputs, inputs)
        if not given.enabled:
            return []
        names = refined_images.used_sockets(given, given.denoise, inputs)
        if given.denoise > 0:
            names += ["model", "clip", "vae", "positive", "negative"]
            more = ("positive_conditioning", "negative_conditioning")
            names += [name for name in more if name in inputs]
        return names

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Refine every image; with denoise 0, or not enabled, return the very same objects."""
        from .host.core_model import plain_texts

        given, problem = host.read(Inputs, values)
        if given.clip:
            given.tile_prompts = [plain_texts(given.clip[0], one) for one in given.tile_prompts]
        refine_items = partial(_refine_items, given)
        return refined_images.run(cls, given, problem, given.positive, refine_items)


def _refine_items(given: Inputs, batch: Batch, progress: host.RefineProgress) -> list[torch.Tensor]:
    from .host import core_model
    from .host.conditioning import check_places

    model, clip = given.one("model"), given.one("clip")
    both = {name: given.one(name) for name in ("positive_conditioning", "negative_conditioning")}
    check_places(model, both, batch)
    positive, negative = both.values()
    refiner = core_model.CoreModel(
        model=model,
        clip=clip,
        vae=given.one("vae"),
        sampler_name=given.sampler_name,
        scheduler=given.scheduler,
        positive=positive,
        negative=negative,
    )
    return refiner.refine_items(batch, progress)
