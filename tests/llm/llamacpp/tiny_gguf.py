"""Writes GGUF models that llama.cpp loads in milliseconds: random weights from a seed.

They say nonsense in printable ASCII and never end an answer of their own accord (the rows of the
special tokens in the output matrix are zero).
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# llama.cpp finds out from the template how thinking is marked, so it must show it in history too.
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and m['reasoning_content'] %}"
    "<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# GPT-2's alphabet writes space and newline as these two letters.
_LETTERS = [chr(code) for code in range(0x21, 0x7F)] + [chr(0x120), chr(0x10A)]


class _Weights:
    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def normal(self, name: str, *shape: int, scale: float | None = None) -> None:
        self.add(name, self.draw(*shape, scale=scale))

    def draw(self, *shape: int, scale: float | None = None) -> np.ndarray:
        values = self._random.standard_normal(shape, dtype=np.float32)
        return values * np.float32(scale if scale else shape[-1] ** -0.5)

    def add(self, name: str, values: np.ndarray) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))

    def linear(self, name: str, out: int, into: int) -> None:
        self.normal(f"{name}.weight", out, into)
        self.normal(f"{name}.bias", out, scale=0.1)

    def layer_norm(self, name: str, width: int) -> None:
        self.add(f"{name}.weight", np.ones(width))
        self.add(f"{name}.bias", np.zeros(width))


def write_text_model(
    path: Path,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 4096,
    seed: int = 1,
    template: str = TEMPLATE,
) -> None:
    """Write a llama of about 100,000 weights (by default) with one token per ASCII character."""
    tokens = [*_SPECIAL, *_LETTERS, "th"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control] * len(_SPECIAL) + [normal] * (len(_LETTERS) + 1))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(template)
    weights = _Weights(writer, seed)
    weights.normal("token_embd.weight", len(tokens), width, scale=1.0)
    output = weights.draw(len(tokens), width, scale=3 * width**-0.5)
    output[: len(_SPECIAL)] = 0
    weights.add("output.weight", output)
    weights.add("output_norm.weight", np.ones(width))
    for layer in range(layers):
        block = f"blk.{layer}."
        weights.add(f"{block}attn_norm.weight", np.ones(width))
        weights.add(f"{block}ffn_norm.weight", np.ones(width))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights.normal(f"{block}{name}.weight", width, width)
        weights.normal(f"{block}ffn_gate.weight", 2 * width, width)
        weights.normal(f"{block}ffn_up.weight", 2 * width, width)
        weights.normal(f"{block}ffn_down.weight", width, 2 * width)
    _finish(writer)


def write_projector(
    path: Path, *, into: int = 64, width: int = 32, side: int = 64, patch: int = 16, seed: int = 2
) -> None:
    """Write an image tower of one layer: `side` pixels square, (side / patch)^2 tokens."""
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    for key, value in {
        "image_size": side,
        "patch_size": patch,
        "embedding_length": width,
        "feed_forward_length": 2 * width,
        "block_count": 1,
        "projection_dim": into,
        "attention.head_count": 2,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    weights = _Weights(writer, seed)
    weights.normal("v.patch_embd.weight", width, 3, patch, patch, scale=0.05)
    weights.normal("v.class_embd", width)
    weights.normal("v.position_embd.weight", (side // patch) ** 2 + 1, width)
    for name in ("v.pre_ln", "v.post_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        weights.layer_norm(name, width)
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        weights.linear(f"v.blk.0.{name}", width, width)
    weights.linear("v.blk.0.ffn_up", 2 * width, width)
    weights.linear("v.blk.0.ffn_down", width, 2 * width)
    weights.linear("mm.0", into, width)
    weights.linear("mm.2", into, into)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
