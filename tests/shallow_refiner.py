"""A refiner checkpoint with as few layers as the format allows, for tests that need no quality.

A step of a tiny network takes its time for each layer, whatever its width. This one has the VAE of
tools/tiny_refiner, two layers of its text encoder, and a UNet of two levels with random weights.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "tiny_refiner"
TINY = TOOL / "weights" / "tiny_refiner.safetensors"
TEXT = "conditioner.embedders.0.model.transformer.resblocks."
TEXT_LAYERS = 2
# diffusers knows a refiner by this tensor of its tenth layer.
MARK = f"{TEXT}9.mlp.c_proj.bias"
LEVELS = {
    "block_out_channels": (24, 32),
    "attention_head_dim": (1, 1),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def write_shallow_refiner(folder: Path) -> Path:
    """Write it as a checkpoint file with its description beside it; return the file."""
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file, save_file

    sys.path.insert(0, str(TOOL))
    try:
        from tiny_export import unet_key
        from tiny_model import UNET
    finally:
        sys.path.pop(0)
    tensors = {
        name: tensor
        for name, tensor in load_file(TINY).items()
        if not name.startswith("model.diffusion_model.")
        and (not name.startswith(TEXT) or int(name.removeprefix(TEXT).split(".")[0]) < TEXT_LAYERS)
    }
    tensors[MARK] = load_file(TINY)[MARK]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNET | LEVELS)
    attended = {0}
    for name, tensor in unet.state_dict().items():
        key = "model.diffusion_model." + unet_key(name, LEVELS["layers_per_block"], attended)
        tensors[key] = tensor.half().contiguous()
    file = folder / TINY.name
    save_file(tensors, file, metadata={"format": "pt"})
    beside = shutil.copytree(TINY.with_suffix(""), file.with_suffix(""))
    unet.save_config(beside / "unet")
    text = beside / "text_encoder_2" / "config.json"
    changed = json.loads(text.read_text("utf-8")) | {"num_hidden_layers": TEXT_LAYERS}
    text.write_text(json.dumps(changed), "utf-8")
    return file
