"""The SDXL refiner's architecture in miniature: same blocks, same keys, far fewer channels.

What is kept: four levels with the attention on the middle two, linear projections, the text and
time embeddings with an aesthetic score, one OpenCLIP text encoder, a VAE of factor 8 with four
latent channels, and 0.13025 as its scaling factor. Ten text layers are needed: diffusers tells a
refiner checkpoint by its tenth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_WIDTH = 32
TIME_WIDTH = 8

UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (24, 32, 64, 64),
    "attention_head_dim": (1, 1, 2, 2),
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIME_WIDTH,
    # The pooled text and five numbers: original size, crop corner, aesthetic score.
    "projection_class_embeddings_input_dim": TEXT_WIDTH + 5 * TIME_WIDTH,
    "down_block_types": (
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": (8, 16, 32, 32),
    # One group: with two channels a group, normalizing would take absolute colors away.
    "norm_num_groups": 1,
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
    "force_upcast": True,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_WIDTH,
    "projection_dim": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 10,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
TOKENIZER: dict[str, Any] = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    # The refiner's text encoder pads with the token "!", as OpenCLIP does.
    "pad_token": "!",
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def build_pipeline(seed: int, tokenizer_folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """Build a tiny refiner with random weights.

    Args:
        seed: Equal seeds give equal weights.
        tokenizer_folder: Where the tokenizer's two files are written.
    """
    tokenizer = build_tokenizer(tokenizer_folder)
    torch.manual_seed(seed)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT,
    )
    return StableDiffusionXLImg2ImgPipeline(
        vae=AutoencoderKL(**VAE).eval(),
        text_encoder=None,
        text_encoder_2=CLIPTextModelWithProjection(text_config).eval(),
        tokenizer=None,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a CLIP tokenizer that knows single letters and one pair, and load it.

    CLIP spells text in bytes; each byte has a printable letter, once inside a word and once
    (with </w>) at its end.
    """
    letters = [chr(byte) for byte in range(256) if _is_printable(byte)]
    letters += [chr(256 + index) for index in range(256 - len(letters))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "th"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _is_printable(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
