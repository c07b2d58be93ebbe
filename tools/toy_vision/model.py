"""The toy vision model in torch: the computation that llama.cpp does with the exported files.

Image tower as llama.cpp's `mlp` projector runs it (file clip, LLaVA's kind): patches, learned
positions, layer norm, blocks of attention and a GELU layer (tanh form), layer norm, and a
projector of two layers. No class token. Text part as its `llama`: RMS norm, rotary positions on
neighboring pairs, SwiGLU, causal attention over [BOS][image tokens][SCENE][sentence][EOS].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import vocabulary
from torch import Tensor, nn
from torch.nn import Embedding, LayerNorm, Linear

# Pixels are mapped from 0..255 to about -2..2, the same for all three channels.
MEAN, STD = 0.5, 0.25
LAYER_NORM_EPS = 1e-5
RMS_EPS = 1e-5
ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Shape:
    """The model's measures; both parts share width and heads."""

    image_size: int = 128
    patch_size: int = 16
    width: int = 128
    heads: int = 4
    vision_layers: int = 3
    vision_ff: int = 512
    text_layers: int = 2
    text_ff: int = 384
    context: int = 512

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class VisionBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.ln1 = LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.qkv = Linear(shape.width, 3 * shape.width)
        self.out = Linear(shape.width, shape.width)
        self.ln2 = LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.up = Linear(shape.width, shape.vision_ff)
        self.down = Linear(shape.vision_ff, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _split_heads(self.qkv(self.ln1(x)), self.heads)
        x = x + self.out(_join_heads(attend(q, k, v)))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class TextBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(shape.width, eps=RMS_EPS)
        self.qkv = Linear(shape.width, 3 * shape.width, bias=False)
        self.out = Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=RMS_EPS)
        self.gate_up = Linear(shape.width, 2 * shape.text_ff, bias=False)
        self.down = Linear(shape.text_ff, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = _split_heads(self.qkv(self.attn_norm(x)), self.heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = x + self.out(_join_heads(attend(q, k, v, causal=True)))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class ToyVision(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        pixels = 3 * shape.patch_size**2
        # Rows of `patch` are (channel, y, x), as a convolution's weight lies in memory.
        self.patch = Linear(pixels, shape.width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(shape.patches, shape.width))
        self.pre_ln = LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.vision = nn.ModuleList(VisionBlock(shape) for _ in range(shape.vision_layers))
        self.post_ln = LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.project_in = Linear(shape.width, shape.width)
        self.project_out = Linear(shape.width, shape.width)
        self.embed = Embedding(vocabulary.SIZE, shape.width)
        self.text = nn.ModuleList(TextBlock(shape) for _ in range(shape.text_layers))
        self.norm = nn.RMSNorm(shape.width, eps=RMS_EPS)
        self.output = Linear(shape.width, vocabulary.SIZE, bias=False)
        cos, sin = rotary(shape.context, shape.width // shape.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Turn uint8 images (batch, side, side, 3) into image tokens (batch, patches, width)."""
        x = self.patch(to_patches(pixels, self.shape.patch_size)) + self.position
        x = self.pre_ln(x)
        for block in self.vision:
            x = block(x)
        x = self.project_in(self.post_ln(x))
        return self.project_out(F.gelu(x, approximate="tanh"))

    def logits(self, image: Tensor | None, ids: Tensor) -> Tensor:
        """Return logits for each of `ids` (batch, n): SCENE and what follows it.

        `image` holds image tokens (batch, patches, width); None where no image was given.
        """
        start = self.embed(torch.full_like(ids[:, :1], vocabulary.BOS_ID))
        parts = [start, self.embed(ids)] if image is None else [start, image, self.embed(ids)]
        x = torch.cat(parts, dim=1)
        cos, sin = self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        for block in self.text:
            x = block(x, cos, sin)
        return self.output(self.norm(x[:, -ids.shape[1] :]))

    @torch.no_grad()
    def write(self, pixels: Tensor, limit: int = 32) -> list[str]:
        """Describe uint8 images (batch, height, width, 3), the most likely token each time."""
        image = self.encode_image(pixels)
        ids = torch.full((len(pixels), 1), vocabulary.SCENE_ID)
        for _ in range(limit):
            ids = torch.cat([ids, self.logits(image, ids)[:, -1:].argmax(-1)], dim=1)
            if bool((ids == vocabulary.EOS_ID).any(dim=1).all()):
                break
        return [vocabulary.decode(row[1:]) for row in ids.tolist()]


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """Cut uint8 (batch, height, width, 3) into normalized rows (batch, patches, 3 * patch ** 2)."""
    batch, height, width, _ = pixels.shape
    x = (pixels.float() / 255 - MEAN) / STD
    x = x.view(batch, height // patch, patch, width // patch, patch, 3)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, 3 * patch * patch)


def rotary(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, head_width / 2) of the rotary positions."""
    rates = ROPE_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighboring pairs of the last axis (llama.cpp's `normal` rotary kind)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention written out: on a CPU the backward pass of torch's fused one takes half a step."""
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def _split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
