"""Write a pipeline as the two things people have: a diffusers folder, and one checkpoint file.

The file has the layout of the SDXL checkpoints (UNet under model.diffusion_model, VAE under
first_stage_model, text encoders under conditioner.embedders), fp16, and beside it a folder of
its own name with the JSON and the tokenizer, since it is smaller than what the real JSON says.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import save_file
from tiny_model import build_tokenizer
from torch import Tensor

# Renames of the last part of a key, from diffusers to the checkpoint's layout.
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_checkpoint(pipeline: StableDiffusionXLImg2ImgPipeline, path: Path) -> None:
    """Write one .safetensors file (fp16) and, beside it, the folder that describes it."""
    tensors: dict[str, Tensor] = {}
    unet = pipeline.unet.state_dict()
    attended = {int(n.split(".")[1]) for n in unet if re.match(r"up_blocks\.\d+\.attentions", n)}
    for name, tensor in unet.items():
        key = unet_key(name, pipeline.unet.config.layers_per_block, attended)
        tensors["model.diffusion_model." + key] = tensor
    levels = len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.vae.state_dict().items():
        key = vae_key(name, levels)
        # The checkpoint keeps this attention's projections as 1 x 1 convolutions.
        is_projection = ".attn_1." in key and tensor.ndim == 2
        tensors["first_stage_model." + key] = tensor[..., None, None] if is_projection else tensor
    has_two = pipeline.text_encoder is not None
    tensors |= open_clip_tensors(pipeline.text_encoder_2.state_dict(), 1 if has_two else 0)
    if has_two:
        for name, tensor in pipeline.text_encoder.state_dict().items():
            bare = name.removeprefix("text_model.")
            tensors[f"conditioner.embedders.0.transformer.text_model.{bare}"] = tensor
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, path, metadata={"format": "pt"})
    save_description(pipeline, path.with_suffix(""))


def save_folder(pipeline: StableDiffusionXLImg2ImgPipeline, folder: Path) -> None:
    """Write a diffusers folder with fp16 weights; the pipeline itself stays as it is."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(pipeline, name)
        if part is not None:
            part.half()
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(pipeline, name)
        if part is not None:
            part.float()


def save_description(pipeline: StableDiffusionXLImg2ImgPipeline, folder: Path) -> None:
    """Write everything of a diffusers folder except the weights."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if part is None:
            continue
        if hasattr(part, "config") and hasattr(part.config, "save_pretrained"):
            part.config.save_pretrained(folder / name)  # a transformers model
        elif hasattr(part, "save_config"):
            part.save_config(folder / name)  # a diffusers model or scheduler
        else:
            # Written here, since transformers 5 would save a form that transformers 4 cannot read.
            build_tokenizer(folder / name)


def unet_key(name: str, layers: int, attended: set[int]) -> str:
    """Return the checkpoint's name of a UNet tensor.

    Args:
        name: diffusers' name.
        layers: layers_per_block.
        attended: The up blocks that have attention.
    """
    stem, _, last = name.rpartition(".")
    if stem in _UNET_TOP:
        return f"{_UNET_TOP[stem]}.{last}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if found:
        kind, index, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_resnet_key(rest)}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        raise ValueError(f"There is no place for the UNet's tensor {name}.")
    side, level, kind, index, rest = found.groups()
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        # It follows the level's last resnet, and its attention where there is one.
        return f"output_blocks.{first + layers}.{2 if int(level) in attended else 1}.{rest}"
    place = first + int(index) + (1 if side == "down" else 0)
    blocks = "input_blocks" if side == "down" else "output_blocks"
    return f"{blocks}.{place}.{1 if kind == 'attentions' else 0}.{_resnet_key(rest)}"


def _resnet_key(rest: str) -> str:
    first, dot, last = rest.partition(".")
    return _UNET_RESNET.get(first, first) + dot + last


def vae_key(name: str, levels: int) -> str:
    """Return the checkpoint's name of a VAE tensor; `levels` is the number of its blocks."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    for old, new in ((r"resnets\.(\d+)", "block.{}"), (r"upsamplers\.0", "upsample")):
        found = re.search(rf"up_blocks\.(\d+)\.{old}", name)
        if found:
            level = levels - 1 - int(found.group(1))
            index = new.format(*found.groups()[1:])
            name = name.replace(found.group(0), f"up.{level}.{index}")
    found = re.search(r"mid_block\.resnets\.(\d+)", name)
    if found:
        name = name.replace(found.group(0), f"mid.block_{int(found.group(1)) + 1}")
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for old, new in _VAE_ATTENTION.items():
        name = name.replace(f"mid.attn_1.{old}.", f"mid.attn_1.{new}.")
    return name


def open_clip_tensors(state: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return a CLIP text encoder's tensors under OpenCLIP's names, as embedder `index`."""
    prefix = f"conditioner.embedders.{index}.model."
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    out = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        # OpenCLIP multiplies from the other side.
        "text_projection": state["text_projection.weight"].T,
    }
    for name, tensor in state.items():
        found = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            continue
        layer, part, kind = found.groups()
        if part in _OPEN_CLIP_LAYER:
            out[f"transformer.resblocks.{layer}.{_OPEN_CLIP_LAYER[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            three = [
                state[name.replace("q_proj", other)] for other in ("q_proj", "k_proj", "v_proj")
            ]
            out[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(three)
    return {prefix + name: tensor for name, tensor in out.items()}
