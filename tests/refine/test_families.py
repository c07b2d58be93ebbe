"""SDXL base and SSD-1B in miniature: found out from the header, equal to diffusers' own call."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from image_refinery.refine import ImageRefiner, read_checkpoint
from image_refinery.refine.loading import shipped_config
from PIL import Image

# The published blocks and depths, a twentieth of the channels.
NARROW = {
    "block_out_channels": (16, 32, 64),
    "attention_head_dim": (1, 2, 4),
    "norm_num_groups": 4,
    "cross_attention_dim": 16 + 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
}


Tool = Callable[[str, str], ModuleType]


def build(tool: Tool, family: str, folder: Path) -> Any:
    """Build a miniature with random weights and two text encoders."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tiny = tool("tiny_refiner", "tiny_model")
    refiner = tiny.build_pipeline(3, folder / "tokenizer")
    # diffusers tells the two encoders apart by their widths, which differ in the real ones too.
    shape = {**tiny.TEXT, "hidden_size": 16, "intermediate_size": 64}
    text = CLIPTextConfig(vocab_size=515, bos_token_id=513, eos_token_id=514, **shape)
    unet = UNet2DConditionModel.from_config(
        {**shipped_config(family)["unet/config.json"], **NARROW}
    )
    return StableDiffusionXLImg2ImgPipeline(
        vae=refiner.vae,
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=refiner.text_encoder_2,
        tokenizer=refiner.tokenizer_2,
        tokenizer_2=refiner.tokenizer_2,
        unet=unet.eval(),
        scheduler=refiner.scheduler,
        requires_aesthetics_score=False,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


@pytest.mark.parametrize("family", ["base", "ssd-1b"])
def test_a_miniature_loads_and_equals_diffusers_own_call(
    tool: Tool, family: str, tmp_path: Path
) -> None:
    pipeline = build(tool, family, tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    path = tmp_path / "mini.safetensors"
    tool("tiny_refiner", "tiny_export").save_checkpoint(pipeline, path)
    assert read_checkpoint(path).family == family
    # What the file holds is what the pipeline computes with: fp16 values in fp32.
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        getattr(pipeline, name).half().float()
    image = Image.radial_gradient("L").convert("RGB").resize((128, 64))
    refiner = ImageRefiner("cpu", model=path)
    for words in ({"prompt": "a cup"}, {"prompt": "a cup", "negative_prompt": "blurry"}):
        theirs = pipeline(
            image=image,
            strength=0.3,
            guidance_scale=7.5,
            num_inference_steps=7,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
            **words,
        ).images.movedim(1, -1)[0]
        pixels = torch.from_numpy(np.array(image, np.float32) / 255)
        ours = refiner.refine(
            pixels,
            num_inference_steps=7,
            seed=1,
            working_size="keep size",
            keep_colors=False,
            **words,
        )
        assert (ours - theirs).abs().max() <= 1e-5


def test_a_models_description_beside_it_says_which_kind_it_is(tool: Tool, tmp_path: Path) -> None:
    path = tmp_path / "mini.safetensors"
    tool("tiny_refiner", "tiny_export").save_checkpoint(build(tool, "base", tmp_path), path)
    index = json.loads((tmp_path / "mini" / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
