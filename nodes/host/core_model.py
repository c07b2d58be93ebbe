"""ComfyUI's own model, VAE and text encoder as what refines tiles. Imported when a node runs.

Sampling is `comfy.sample.sample`: the function behind KSampler would draw new noise for each tile.
"""

from __future__ import annotations

import importlib
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ...refine import (
    Batch,
    CheckpointError,
    DeviceMemoryError,
    NotFiniteError,
    RefineError,
    RefineSettings,
    TilePrompts,
)
from ...refine.batch_run import BatchRun, PromptCache
from ...refine.geometry import MAX_TILE_SIDE_PX, MULTIPLE, Size
from ...refine.progress import raise_if
from ...refine.residency import is_out_of_memory
from ...refine.settings import SEEDS
from ...refine.work import Noise, Tile
from .conditioning import Conditioning, for_tile
from .inputs import BadInput
from .progress import RefineProgress
from .running import interrupted

_SD15_TILE_PX = 512


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(RefineSettings):
    """Settings for ComfyUI's sampler, which runs all steps however low denoise (strength) is."""

    @property
    def steps(self) -> int:
        """The number of steps that run."""
        return self.num_inference_steps if self.strength > 0 else 0

    @property
    def guided_steps(self) -> int:
        """All: ComfyUI itself leaves the negative prompt out if cfg is 1."""
        return self.steps

    @property
    def formula(self) -> str:
        """How much is denoised, such as "denoise 0.3"."""
        return f"denoise {self.strength:g}"


_check = raise_if(interrupted)


class CoreModel:
    """Refines tiles with ComfyUI's MODEL, CLIP and VAE; a `TileModel`.

    Args:
        model: MODEL.
        clip: CLIP; None if no text is to be encoded.
        vae: VAE.
        sampler_name: One of KSampler's.
        scheduler: One of KSampler's.
        positive: Conditioning whose words the texts replace, unless they are blank; or None.
        negative: The same for the negative prompt.

    Raises:
        CheckpointError: the VAE cannot encode images, or does not belong to the model.
    """

    def __init__(
        self,
        *,
        model: Any,
        clip: Any,
        vae: Any,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning | None,
        negative: Conditioning | None,
    ) -> None:
        self._model = model
        self._clip = clip
        self._vae = vae
        self._cell = cell_of(vae)
        self._sampler_name = sampler_name
        self._scheduler = scheduler
        self._positive = positive
        self._negative = negative
        self._encoded_negative: Conditioning | None = None

    def refine_items(self, batch: Batch, progress: RefineProgress) -> list[Any]:
        """Refine the images of a batch.

        Raises:
            RefineError: one of its subclasses; see refine/errors.py.
            RefineCancelled: the user pressed cancel.
        """
        prompts = kept_prompts(self._clip, self._positive, self._negative)
        return batch.join(BatchRun(batch, self, prompts, progress, _check).refine())

    def noise(self, size: Size, seed: int) -> Noise:
        """Return the noise of a padded region, as KSampler draws it for the whole of it."""
        format = self._model.get_model_object("latent_format")
        frames = (1,) if format.latent_dimensions == 3 else ()
        grid = (size.height // self._cell, size.width // self._cell)
        latents = torch.empty(1, format.latent_channels, *frames, *grid)
        field = comfy.sample.prepare_noise(latents, seed)
        return Noise(seed, [field], self._cell, torch.Generator())

    def encode_prompts(
        self, prompt: str, negative_prompt: str | None, syntax: str
    ) -> tuple[Conditioning, Conditioning]:
        """Encode the prompts as CLIPTextEncode does, which reads weights such as (word:1.3)."""
        _check()
        positive = self._conditioning(prompt, self._positive)
        if self._encoded_negative is None:  # the same for all tiles
            self._encoded_negative = self._conditioning(negative_prompt or "", self._negative)
        return positive, self._encoded_negative

    def encode(self, tiles: list[Tile], before: Callable[[int], None]) -> None:
        """Turn the tiles' pixels into latents; see `TileModel`."""
        for index, tile in enumerate(tiles):
            _check()
            before(index)
            latents = self._vae.encode(tile.pixels.movedim(1, -1).contiguous())
            latents = comfy.sample.fix_empty_latent_channels(self._model, latents)
            (noise,) = tile.noise.fields
            if latents.shape != noise.shape:
                raise CheckpointError(
                    f"The VAE's latents have the shape {tuple(latents.shape)}, but the model needs "
                    f"{tuple(noise.shape)}. Connect the VAE that belongs to the model."
                )
            tile.latents = tile.input_latents = latents

    def refine(
        self,
        tiles: list[Tile],
        conditionings: list[tuple[Conditioning, Conditioning]],
        settings: RefineSettings,
        on_step: Callable[[int, int, Tensor], None],
    ) -> None:
        """Sample each tile; see `TileModel`."""
        for index, (tile, conditioning) in enumerate(zip(tiles, conditionings, strict=True)):
            _check()
            on_step(index, 0, tile.latents)

            def show(step: int, clean: Tensor, *_: Any, i: int = index) -> None:
                _check()  # ComfyUI 0.3.64 looks only where its own bar is
                clean = self._model.model.process_latent_out(clean)
                on_step(i, min(step + 1, settings.steps), clean)

            try:
                tile.latents = self._sampled(tile, conditioning, settings, show)
                continue
            except (RuntimeError, MemoryError) as error:
                problem = _explained(error, tile.place.box.size)
                if problem is None:
                    raise
            # Outside the handler: until then, the exception's frames keep tensors alive.
            comfy.model_management.unload_all_models()
            raise problem

    def decode(self, tiles: list[Tile], before: Callable[[int], None]) -> list[Tensor]:
        """Turn latents into pixels (1, 3, H, W), 0 to 1, float32, on the CPU."""
        results: list[Tensor] = []
        for index, tile in enumerate(tiles):
            _check()
            before(index)
            decoded = self._vae.decode(tile.latents)
            # The VAEs of video models return frames, of which there is one.
            pixels = decoded.reshape(-1, *decoded.shape[-3:])[..., :3].movedim(-1, 1)
            pixels = pixels.to("cpu", torch.float32)
            if pixels.shape != tile.pixels.shape:
                raise CheckpointError(
                    f"The VAE returns images of {pixels.shape[-1]} x {pixels.shape[-2]} px for "
                    f"tiles of {tile.pixels.shape[-1]} x {tile.pixels.shape[-2]} px. Connect one "
                    "that keeps the size."
                )
            if not bool(torch.isfinite(pixels.sum())):
                raise NotFiniteError(
                    "The model or its VAE produced NaN or infinity, which would be a black image. "
                    "Start ComfyUI with --fp32-vae, or try another checkpoint."
                )
            results.append(pixels)
        return results

    def _sampled(
        self,
        tile: Tile,
        conditioning: tuple[Conditioning, Conditioning],
        settings: RefineSettings,
        show: Callable[..., None],
    ) -> Tensor:
        positive, negative = for_tile(conditioning, tile.place)
        (noise,) = tile.noise.fields
        # Samplers that add noise at each step draw it from the seed: not the same for all tiles.
        number = tile.place.region.tiles.index(tile.place.box)
        return comfy.sample.sample(
            self._model,
            noise.to(tile.latents.dtype),
            settings.num_inference_steps,
            settings.guidance_scale,
            self._sampler_name,
            self._scheduler,
            positive,
            negative,
            tile.latents,
            denoise=settings.strength,
            callback=show,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=(tile.noise.seed + number) % SEEDS,
        )

    def _conditioning(self, text: str, given: Conditioning | None) -> Conditioning:
        """Return the conditioning of a text, with what another conditioning has beside words."""
        if given is not None and not text.strip():
            return given
        if self._clip is None:
            raise BadInput("clip is empty: connect the CLIP that belongs to the model.")
        core = importlib.import_module("nodes").NODE_CLASS_MAPPINGS["CLIPTextEncode"]
        (encoded,) = core().encode(self._clip, text)
        if given is None:
            return encoded
        return [[words, more | values] for _, more in given for words, values in encoded]


_last: tuple[Callable[[], Any], tuple[Any, ...], PromptCache] | None = None


def kept_prompts(clip: Any, *conditionings: Conditioning | None) -> PromptCache:
    """Return the prompts that were encoded in the last run, if it had the same sources.

    Without this each run would load the text encoder again, and a large one takes the model's
    place.
    """
    global _last
    if clip is None:
        return {}
    if (
        _last is None
        or _last[0]() is not clip
        or any(one is not other for one, other in zip(conditionings, _last[1], strict=True))
    ):
        _last = (weakref.ref(clip), conditionings, {})
    return _last[2]


def plain_texts(clip: Any, prompts: TilePrompts) -> TilePrompts:
    """Return tile prompts that a text encoder reads as they are, also "a cat (asleep)".

    A vision model wrote them, and meant no weights. Text encoders that are language models read
    none.
    """
    rows = [row for rows in clip.tokenize("(a:2)").values() for row in rows]
    if all(weight == 1 for row in rows for _, weight, *_ in row):
        return prompts
    texts = (text for region in prompts.texts for text in region)
    return prompts.with_texts(re.sub(r"([()])", r"\\\1", text) for text in texts)


def cell_of(vae: Any) -> int:
    """Return how many pixels a latent has along one side.

    Raises:
        CheckpointError: the VAE is not for images.
    """
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise CheckpointError("vae is empty: the checkpoint has none. Connect Load VAE.")
    cell = vae.spacial_compression_encode()
    if vae.latent_dim == 1 or not isinstance(cell, int) or MULTIPLE % cell:
        raise CheckpointError(
            "This VAE cannot encode images in tiles. Connect the VAE of an image model."
        )
    return cell


def tile_size_for(model: Any, vae: Any) -> int:
    """Return the tile size that suits a model: 512 px for Stable Diffusion 1.5, else about 1024."""
    format = model.get_model_object("latent_format")
    if isinstance(format, comfy.latent_formats.SD15):
        return _SD15_TILE_PX
    # 0 has tiles of 1024 px as well, on a grid of 8 px.
    return 0 if cell_of(vae) <= 8 else MAX_TILE_SIDE_PX


def _explained(error: Exception, size: Size) -> RefineError | None:
    """Return what a user can do about an error of the sampler; None if that is not known."""
    reason = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"Memory ran out while refining a tile of {size.width} x {size.height} px ({reason}). "
            "Use a smaller tile_size, or close other programs."
        )
    if "shapes cannot be multiplied" in reason:
        return CheckpointError(
            f"The model cannot use the encoded texts ({reason}). Connect the CLIP that belongs to "
            "the model."
        )
    return None
