"""Where training starts: networks that already do something sensible.

An hour of CPU is too short for a small VAE to find colors by itself: a group norm takes absolute
values away, and for thousands of steps the VAE reproduces brightness only. So the VAE starts as an
image pyramid: its residual branches are silent, three channels carry red, green and blue, halved
three times on the way in and doubled three times, smoothly, on the way out. Two constant channels
outweigh all others in the norms, which so hardly change a thing.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

COLORS = 3
CONSTANT = 6.0
# SiLU is almost the identity around 6.
LINEAR_POINT = 6.0


@torch.no_grad()
def start_as_pyramid(vae: AutoencoderKL) -> None:
    """Set the weights of a VAE so that it halves and doubles images."""
    _silence_branches(vae)
    halving = torch.zeros(3, 3)
    halving[:2, :2] = 1 / 4
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    doubling = line[:, None] * line[None, :]
    for half, kernel in ((vae.encoder, halving), (vae.decoder, doubling)):
        _carry(half.conv_in, _center(3))
        for name, module in half.named_modules():
            if name.endswith("conv_shortcut"):
                _carry(module, _center(1))
            elif name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
                _carry(module, kernel)
        _finish(half.conv_norm_out, half.conv_out)
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        convolution.weight.copy_(torch.eye(convolution.weight.shape[0])[..., None, None])
        convolution.bias.zero_()
    latents = vae.config.latent_channels
    vae.encoder.conv_out.weight[latents:] = 0
    vae.encoder.conv_out.bias[latents:] = -6  # the logarithm of a small variance


@torch.no_grad()
def silence(unet: UNet2DConditionModel) -> None:
    """Set the weights of a UNet so that it starts as a plain linear network that says nothing.

    Prompt and scores start with little influence: guidance will multiply it by 7.5.
    """
    _silence_branches(unet)
    unet.conv_out.weight.zero_()
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_out.0", "add_embedding.linear_2")):
            module.weight *= 0.05
            module.bias.zero_()


def _silence_branches(model: nn.Module) -> None:
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        is_vae_attention = name.endswith("mid_block.attentions.0.to_out.0")
        if last in ("conv2", "proj_out") or is_vae_attention:
            module.weight.zero_()
            module.bias.zero_()


def _carry(convolution: nn.Conv2d, kernel: Tensor) -> None:
    """Let the first eight channels carry the colors, two constants, and the colors negated.

    So their mean is zero, and norms have nothing to subtract.
    """
    own = 2 * COLORS + 2
    convolution.weight[:own] = 0
    convolution.bias[:own] = 0
    for channel in range(COLORS):
        convolution.weight[channel, channel] = kernel
        convolution.weight[channel + COLORS + 2, channel] = -kernel
    convolution.bias[COLORS] = CONSTANT
    convolution.bias[COLORS + 1] = -CONSTANT
    # The other channels start at random, but not from the constants.
    if convolution.in_channels >= own:
        convolution.weight[own:, COLORS : COLORS + 2] = 0


def _finish(norm: nn.GroupNorm, convolution: nn.Conv2d) -> None:
    """Undo the last norm and pass the colors on."""
    channels = norm.num_channels
    deviation = (2 * CONSTANT**2 / channels) ** 0.5
    norm.weight[:COLORS] = deviation
    norm.bias[:COLORS] = LINEAR_POINT
    convolution.weight[:COLORS] = 0
    for channel in range(COLORS):
        convolution.weight[channel, channel] = _center(3)
        convolution.bias[channel] = -LINEAR_POINT


def _center(side: int) -> Tensor:
    kernel = torch.zeros(side, side)
    kernel[side // 2, side // 2] = 1
    return kernel
