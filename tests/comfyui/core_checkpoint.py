"""A small checkpoint with random weights that ComfyUI's own CheckpointLoaderSimple loads.

It is a Stable Diffusion 1.5 to ComfyUI, which tells models apart by the names and shapes of their
weights: a UNet of one level instead of four, with the 320 channels and the text width of 768 that
mark 1.5; a tiny autoencoder ("TAESD") in the VAE's place; and the text encoder, CLIP-L, in full,
as ComfyUI takes its size for granted. 303 MB, four fifths of them the text encoder.

What it draws means nothing, but it is drawn by all of ComfyUI's own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = Iterator[tuple[str, tuple[int, ...]]]

CHANNELS = 320
TEXT_WIDTH = 768
TIME_WIDTH = 4 * CHANNELS
LATENT_CHANNELS = 4
TINY_VAE_WIDTH = 64


def write_core_checkpoint(file: Path, seed: int = 0) -> None:
    """Write the checkpoint, in half precision; the same seed gives the same weights."""
    rng = np.random.default_rng(seed)
    shapes = [
        *_below("model.diffusion_model", _unet()),
        *_below("cond_stage_model.transformer.text_model", _clip_l()),
        *_below("first_stage_model", _tiny_vae()),
    ]
    save_file({name: _weights(rng, name, shape) for name, shape in shapes}, file)


def _weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values with which a signal keeps its size from layer to layer."""
    if len(shape) < 2:
        return np.full(shape, 0.0 if name.endswith(("bias", "vae_shift")) else 1.0, np.float16)
    values = rng.standard_normal(shape, np.float32)
    values *= np.prod(shape[1:]) ** -0.5
    return values.astype(np.float16)


def _below(prefix: str, shapes: Shapes) -> Shapes:
    return ((f"{prefix}.{name}", shape) for name, shape in shapes)


def _layer(name: str, out: int, *inputs: int, bias: bool = True) -> Shapes:
    """A linear layer (one input width), a convolution (width and kernel), or a norm (none)."""
    yield f"{name}.weight", (out, *inputs)
    if bias:
        yield f"{name}.bias", (out,)


# the UNet, in the layout of the published checkpoints


def _unet() -> Shapes:
    yield from _layer("time_embed.0", TIME_WIDTH, CHANNELS)
    yield from _layer("time_embed.2", TIME_WIDTH, TIME_WIDTH)
    yield from _layer("input_blocks.0.0", CHANNELS, LATENT_CHANNELS, 3, 3)
    yield from _residual_block("input_blocks.1.0", CHANNELS)
    yield from _transformer("input_blocks.1.1")
    yield from _residual_block("middle_block.0", CHANNELS)
    yield from _transformer("middle_block.1")
    yield from _residual_block("middle_block.2", CHANNELS)
    for block in ("output_blocks.0", "output_blocks.1"):
        # each takes what an input block kept, beside what comes from below
        yield from _residual_block(f"{block}.0", 2 * CHANNELS)
        yield from _transformer(f"{block}.1")
    yield from _layer("out.0", CHANNELS)
    yield from _layer("out.2", LATENT_CHANNELS, CHANNELS, 3, 3)


def _residual_block(name: str, inputs: int) -> Shapes:
    yield from _layer(f"{name}.in_layers.0", inputs)
    yield from _layer(f"{name}.in_layers.2", CHANNELS, inputs, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", CHANNELS, TIME_WIDTH)
    yield from _layer(f"{name}.out_layers.0", CHANNELS)
    yield from _layer(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3)
    if inputs != CHANNELS:
        yield from _layer(f"{name}.skip_connection", CHANNELS, inputs, 1, 1)


def _transformer(name: str) -> Shapes:
    yield from _layer(f"{name}.norm", CHANNELS)
    yield from _layer(f"{name}.proj_in", CHANNELS, CHANNELS, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for number, context in ((1, CHANNELS), (2, TEXT_WIDTH)):
        attention = f"{block}.attn{number}"
        yield from _layer(f"{attention}.to_q", CHANNELS, CHANNELS, bias=False)
        yield from _layer(f"{attention}.to_k", CHANNELS, context, bias=False)
        yield from _layer(f"{attention}.to_v", CHANNELS, context, bias=False)
        yield from _layer(f"{attention}.to_out.0", CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * CHANNELS, CHANNELS)
    yield from _layer(f"{block}.ff.net.2", CHANNELS, 4 * CHANNELS)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _layer(f"{block}.{norm}", CHANNELS)
    yield from _layer(f"{name}.proj_out", CHANNELS, CHANNELS, 1, 1)


# the text encoder: OpenAI's CLIP ViT-L/14


def _clip_l() -> Shapes:
    yield "embeddings.token_embedding.weight", (49408, TEXT_WIDTH)
    yield "embeddings.position_embedding.weight", (77, TEXT_WIDTH)
    for number in range(12):
        layer = f"encoder.layers.{number}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{projection}", TEXT_WIDTH, TEXT_WIDTH)
        yield from _layer(f"{layer}.mlp.fc1", 4 * TEXT_WIDTH, TEXT_WIDTH)
        yield from _layer(f"{layer}.mlp.fc2", TEXT_WIDTH, 4 * TEXT_WIDTH)
        yield from _layer(f"{layer}.layer_norm1", TEXT_WIDTH)
        yield from _layer(f"{layer}.layer_norm2", TEXT_WIDTH)
    yield from _layer("final_layer_norm", TEXT_WIDTH)


# the tiny autoencoder: https://github.com/madebyollin/taesd


def _tiny_vae() -> Shapes:
    yield "vae_scale", ()
    yield "vae_shift", ()
    half = "taesd_encoder"
    yield from _convolution(f"{half}.0", inputs=3)
    for block in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        yield from _tiny_block(f"{half}.{block}")
    for halving in (2, 6, 10):
        yield from _convolution(f"{half}.{halving}", bias=False)
    yield from _convolution(f"{half}.14", out=LATENT_CHANNELS)
    half = "taesd_decoder"
    yield from _convolution(f"{half}.1", inputs=LATENT_CHANNELS)
    for block in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        yield from _tiny_block(f"{half}.{block}")
    for after_doubling in (7, 12, 17):
        yield from _convolution(f"{half}.{after_doubling}", bias=False)
    yield from _convolution(f"{half}.19", out=3)


def _tiny_block(name: str) -> Shapes:
    for number in (0, 2, 4):
        yield from _convolution(f"{name}.conv.{number}")


def _convolution(
    name: str, out: int = TINY_VAE_WIDTH, inputs: int = TINY_VAE_WIDTH, *, bias: bool = True
) -> Shapes:
    return _layer(name, out, inputs, 3, 3, bias=bias)
