"""The stages of a refinement, each with only the component that it needs on the device.

text encoders -> VAE encode -> UNet steps -> VAE decode. In sequence they give exactly the same
numbers as diffusers' single call, with the memory of the largest stage instead of their sum.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from .components import Components, has_fused_attention
from .denoising import denoise
from .errors import DeviceMemoryError, NotFiniteError
from .geometry import LATENT, Size
from .prompts import Conditioning, encode_prompts
from .residency import Residency, free_cache, is_out_of_memory
from .settings import PromptSyntax, RefineSettings
from .work import Noise, Tile

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# Bytes of activations per pixel of the working image, computed for the real architecture (see
# docs/memory.md): the UNet with guidance in fp16, the VAE in two-byte floats.
UNET_BYTES_PER_PIXEL = 379
ENCODE_BYTES_PER_PIXEL = 1286
DECODE_BYTES_PER_PIXEL = 1536
LATENT_CHANNELS = 4
TEXT_BYTES = 64 * 2**20
SCORE_BYTES = 8
"""Bytes per pair of tokens where attention is not fused: torch holds the scores before and after
softmax, in fp32 for every type (measured: 9)."""

VAE_TILES = (None, 512, 256)
"""The VAE's tile sides in pixels, tried one after another while memory runs out; None: no tiles."""


class Stages:
    """Runs the stages with a checkpoint's components.

    Args:
        components: The checkpoint, after `choose_dtypes`.
        residency: The manager of its weights.
    """

    def __init__(self, components: Components, residency: Residency) -> None:
        self.components = components
        self.residency = residency
        self._vae_tile: int | None = None

    def noise(self, size: Size, seed: int) -> Noise:
        """Return the noise of a padded region: for the VAE's posterior, and for the start.

        It is drawn in this order as in diffusers, and in fp32 also for a model in fp16, where
        PyTorch draws other numbers: one seed is one image on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (1, LATENT_CHANNELS, size.height // LATENT, size.width // LATENT)
        fields = [torch.randn(shape, generator=generator) for _ in range(2)]
        return Noise(seed, fields, LATENT, generator)

    @torch.no_grad()
    def encode_prompts(
        self, prompt: str, negative_prompt: str | None, syntax: PromptSyntax = "plain text"
    ) -> Conditioning:
        """Encode the prompts to the CPU. `negative_prompt` None: without guidance."""

        def encode() -> Conditioning:
            result = encode_prompts(
                self.components, self.residency.device, prompt, negative_prompt, syntax
            )
            return Conditioning(**result.to(torch.device("cpu"), self.components.dtypes["unet"]))

        # The base model has two encoders; they are small, so both may be on the device together.
        if self.components.text_encoder is None:
            return self._run("text_encoder_2", TEXT_BYTES, encode)
        return self._run(
            "text_encoder", TEXT_BYTES, lambda: self._run("text_encoder_2", TEXT_BYTES, encode)
        )

    @torch.no_grad()
    def encode(self, tiles: list[Tile], before: Callable[[int], None]) -> None:
        """Turn the tiles' pixels into latents; see `TileModel`."""
        dtype = self.components.dtypes["vae"]

        def encode_all() -> None:
            for index, tile in enumerate(tiles):
                before(index)
                pixels = (tile.pixels.to(self.residency.device, dtype) * 2).sub_(1)
                posterior = self._with_tiles(
                    lambda p=pixels: self.components.vae.encode(p)
                ).latent_dist
                posterior_noise, _ = tile.noise.fields
                sample = posterior.mean + posterior.std * posterior_noise.to(pixels)
                _require_finite(sample, "vae", self.components)
                tile.latents = sample.cpu() * self.components.vae.config.scaling_factor
                tile.input_latents = tile.latents

        self._run_vae(tiles, ENCODE_BYTES_PER_PIXEL, encode_all)

    @torch.no_grad()
    def refine(
        self,
        tiles: list[Tile],
        conditionings: list[Conditioning],
        settings: RefineSettings,
        on_step: Callable[[int, int, Tensor], None],
    ) -> None:
        """Run the UNet's steps over the tiles' latents; see `TileModel`."""
        dtype = self.components.dtypes["unet"]
        device = self.residency.device
        remaining = list(range(len(tiles)))  # a retry continues where the first try stopped

        def refine_rest() -> None:
            while remaining:
                index = remaining[0]
                tile = tiles[index]
                _, start_noise = tile.noise.fields
                on_step(index, 0, tile.latents)
                result = denoise(
                    self.components,
                    tile.latents.to(device, dtype),
                    start_noise.to(device, dtype),
                    conditionings[index],
                    settings,
                    tile.noise.generator,
                    lambda step, clean, i=index: on_step(i, step, clean),
                )
                _require_finite(result, "unet", self.components)
                tile.latents = result.cpu()
                remaining.pop(0)

        pixels = max(tile.pixels[0, 0].numel() for tile in tiles)
        working_bytes = UNET_BYTES_PER_PIXEL * pixels * (2 if dtype == torch.float32 else 1)
        if not has_fused_attention(device, dtype):
            working_bytes += _scores_bytes(self.components.unet.config, pixels)
        self._run("unet", working_bytes, refine_rest)

    @torch.no_grad()
    def decode(self, tiles: list[Tile], before: Callable[[int], None]) -> list[Tensor]:
        """Turn the tiles' latents into pixels (1, 3, H, W), 0 to 1, float32, on the CPU."""
        dtype = self.components.dtypes["vae"]
        device = self.residency.device

        def decode_all() -> list[Tensor]:
            results = []
            for index, tile in enumerate(tiles):
                before(index)
                latents = tile.latents.to(device, dtype) / self.components.vae.config.scaling_factor
                decoded = self._with_tiles(
                    lambda z=latents: self.components.vae.decode(z, return_dict=False)[0]
                )
                _require_finite(decoded, "vae", self.components)
                # In place: allocating memory for a whole image takes longer than the arithmetic.
                results.append(decoded.div_(2).add_(0.5).clamp_(0, 1).to("cpu", torch.float32))
            return results

        return self._run_vae(tiles, DECODE_BYTES_PER_PIXEL, decode_all)

    def _run(self, component: str, working_bytes: int, work: Callable[[], Result]) -> Result:
        """Run `work` with a component on the device; if out of memory, shrink and retry."""
        while True:
            try:
                with self.residency.use(component, working_bytes):
                    return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Outside the handler: until then, the exception's frames keep tensors alive.
            if not self.residency.shrink():
                raise DeviceMemoryError(
                    f"Memory ran out on {self.residency.device} while running the refiner's "
                    f"{component} ({reason}), even in the smallest mode that is allowed: close "
                    "other programs, choose memory_mode low_vram, or refine a smaller image."
                )

    def _with_tiles(self, work: Callable[[], Result]) -> Result:
        """Run the VAE; if memory runs out, switch to the VAE's own tiling, permanently."""
        while True:
            _set_vae_tile(self.components.vae, self._vae_tile)
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                smaller = VAE_TILES.index(self._vae_tile) + 1
                if not is_out_of_memory(error) or smaller == len(VAE_TILES):
                    raise
            free_cache(self.residency.device)
            self._vae_tile = VAE_TILES[smaller]
            log.warning("Out of memory: the VAE continues in tiles of %d px.", self._vae_tile)

    def _run_vae(
        self, tiles: list[Tile], bytes_per_pixel: int, work: Callable[[], Result]
    ) -> Result:
        """Run VAE work, in tiles from the start if the device has too little free memory.

        Waiting for an error is not enough: some drivers never raise one, but continue in RAM, a
        hundred times slower.
        """
        pixels = max(tile.pixels[0, 0].numel() for tile in tiles)
        wide = 2 if self.components.dtypes["vae"] == torch.float32 else 1
        working_bytes = pixels * bytes_per_pixel * wide

        def work_in_room() -> Result:
            if self._vae_tile is None and not self.residency.has_room(working_bytes):
                self._vae_tile = VAE_TILES[1]
            return work()

        return self._run("vae", working_bytes, work_in_room)


@contextlib.contextmanager
def checked_layers(components: Components, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before every linear and convolution layer; if it raises, the work ends.

    One step of the real UNet takes over half a minute on a CPU; a cancel must not wait for it.
    """
    handles = [
        layer.register_forward_pre_hook(lambda *_: check())
        for module in components.modules().values()
        for layer in module.modules()
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scores_bytes(config: Any, pixels: int) -> int:
    """Return the bytes of the UNet's largest attention matrix, with guidance."""
    level = next(i for i, kind in enumerate(config.down_block_types) if kind.startswith("Cross"))
    heads = config.attention_head_dim  # diffusers' name for the number of heads
    heads = heads if isinstance(heads, int) else heads[level]
    tokens = pixels // 64 // 4**level
    return 2 * heads * tokens**2 * SCORE_BYTES


def _set_vae_tile(vae: Any, side: int | None) -> None:
    if side is None:
        vae.disable_tiling()
        return
    vae.enable_tiling()
    # Without these two, diffusers' tiling does nothing up to 1024 px.
    vae.tile_sample_min_size = side
    vae.tile_latent_min_size = side // 8


def _require_finite(result: Tensor, component: str, components: Components) -> None:
    # A sum propagates NaN and infinity without needing memory, and the values of an image cannot
    # overflow it in fp32.
    if bool(torch.isfinite(result.sum(dtype=torch.float32))):
        return
    name = {"unet": "UNet", "vae": "VAE"}[component]
    dtype = components.dtypes[component]
    advice = "download the checkpoint again"
    if dtype != torch.float32:
        advice = f"{components.fp32_advice.get(component, 'try use_fp16=False')}, or {advice}"
    raise NotFiniteError(
        f"The {name} of {components.origin} produced NaN or infinity in "
        f"{str(dtype).removeprefix('torch.')}, which would be a black image: {advice}."
    )
