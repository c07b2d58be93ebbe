"""Write a trained checkpoint as the two GGUF files that llama.cpp reads.

    python tools/toy_vision/export.py CHECKPOINT [--folder FOLDER]

Needs torch, safetensors and gguf. The files are toy-vision.gguf (the text part, architecture
llama) and mmproj-toy-vision.gguf (image tower and projector, architecture clip), matrices in half
precision.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import vocabulary
from gguf import GGUFWriter, TokenType
from model import LAYER_NORM_EPS, MEAN, RMS_EPS, ROPE_BASE, STD, Shape, ToyVision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

MODELS = Path(__file__).resolve().parents[2] / "llm" / "llamacpp" / "models"
TEXT_FILE, VISION_FILE = "toy-vision.gguf", "mmproj-toy-vision.gguf"

# Servers sample at a temperature of 0.7 or 0.8 by default. Logits three times as large make the
# most likely word come nearly always, which tests rely on.
SHARPNESS = 3.0

# The model answers only to the image: of every message the template keeps the media marks that
# the server put there (as parts, or inside the text as <__media...__>) and drops all words.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is string -%}"
    "{%- for piece in message.content.split('<__media') -%}"
    "{%- if not loop.first and '__>' in piece -%}"
    "{{- '<__media' + piece.split('__>')[0] + '__>' -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- elif message.content -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'media_marker' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{{- '" + vocabulary.SCENE + "' -}}"
)


def load(checkpoint: Path) -> ToyVision:
    """Return the model that a checkpoint of train.py holds (its averaged weights)."""
    with safe_open(checkpoint, "pt") as file:
        shape = Shape(**json.loads(file.metadata()["shape"]))
    model = ToyVision(shape)
    averaged = "averaged."
    tensors = load_file(checkpoint).items()
    kept = {name.removeprefix(averaged): t for name, t in tensors if name.startswith(averaged)}
    model.load_state_dict(kept)
    return model


def write_text_part(model: ToyVision, path: Path) -> None:
    """Write the decoder, its tokenizer and its chat template."""
    shape = model.shape
    writer = GGUFWriter(path, "llama")
    writer.add_name("toy-vision")
    writer.add_license("mit")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.text_layers)
    writer.add_feed_forward_length(shape.text_ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(vocabulary.SIZE)
    _add_tokenizer(writer)
    weights = model.state_dict()
    _add(writer, "token_embd.weight", weights["embed.weight"])
    _add(writer, "output_norm.weight", weights["norm.weight"])
    _add(writer, "output.weight", SHARPNESS * weights["output.weight"])
    for i in range(shape.text_layers):
        query, key, value = weights[f"text.{i}.qkv.weight"].chunk(3)
        gate, up = weights[f"text.{i}.gate_up.weight"].chunk(2)
        for name, tensor in {
            "attn_norm": weights[f"text.{i}.attn_norm.weight"],
            "attn_q": query,
            "attn_k": key,
            "attn_v": value,
            "attn_output": weights[f"text.{i}.out.weight"],
            "ffn_norm": weights[f"text.{i}.ffn_norm.weight"],
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": weights[f"text.{i}.down.weight"],
        }.items():
            _add(writer, f"blk.{i}.{name}.weight", tensor)
    _finish(writer)


def write_vision_part(model: ToyVision, path: Path) -> None:
    """Write the image tower and the projector."""
    shape = model.shape
    writer = GGUFWriter(path, "clip")
    writer.add_name("toy-vision")
    writer.add_license("mit")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "embedding_length": shape.width,
        "feed_forward_length": shape.vision_ff,
        "block_count": shape.vision_layers,
        "attention.head_count": shape.heads,
        "projection_dim": shape.width,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    # Without this llama.cpp leaves out the last block, as LLaVA's towers need it.
    writer.add_array("clip.vision.feature_layer", [shape.vision_layers])
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", LAYER_NORM_EPS)
    writer.add_array("clip.vision.image_mean", [MEAN] * 3)
    writer.add_array("clip.vision.image_std", [STD] * 3)
    weights = model.state_dict()
    kernel = (shape.width, 3, shape.patch_size, shape.patch_size)
    _add(writer, "v.patch_embd.weight", weights["patch.weight"].view(kernel))
    writer.add_tensor("v.position_embd.weight", _float32(weights["position"]))
    for name, ours in {
        "v.pre_ln": "pre_ln",
        "v.post_ln": "post_ln",
        "mm.0": "project_in",
        "mm.2": "project_out",
    }.items():
        _add_layer(writer, name, weights, ours)
    for i in range(shape.vision_layers):
        for name, ours in {
            "ln1": "ln1",
            "ln2": "ln2",
            "attn_out": "out",
            "ffn_up": "up",
            "ffn_down": "down",
        }.items():
            _add_layer(writer, f"v.blk.{i}.{name}", weights, f"vision.{i}.{ours}")
        for kind in ("weight", "bias"):
            parts = weights[f"vision.{i}.qkv.{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                _add(writer, f"v.blk.{i}.attn_{letter}.{kind}", part)
    _finish(writer)


def _add_tokenizer(writer: GGUFWriter) -> None:
    marks = len(vocabulary.MARKS)
    kinds = [TokenType.CONTROL] * marks + [TokenType.NORMAL] * (vocabulary.SIZE - marks)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary.token_texts())
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(vocabulary.MERGED)])
    writer.add_bos_token_id(vocabulary.BOS_ID)
    writer.add_eos_token_id(vocabulary.EOS_ID)
    writer.add_pad_token_id(vocabulary.PAD_ID)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _float32(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()


def _add(writer: GGUFWriter, name: str, tensor: Tensor) -> None:
    """Matrices in half precision, vectors in full: llama.cpp adds and scales by the latter."""
    array = _float32(tensor)
    writer.add_tensor(name, array.astype(np.float16) if array.ndim > 1 else array)


def _add_layer(writer: GGUFWriter, name: str, weights: dict[str, Tensor], ours: str) -> None:
    for kind in ("weight", "bias"):
        _add(writer, f"{name}.{kind}", weights[f"{ours}.{kind}"])


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint as GGUF files.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--folder", type=Path, default=MODELS)
    arguments = parser.parse_args()
    model = load(arguments.checkpoint)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_text_part(model, arguments.folder / TEXT_FILE)
    write_vision_part(model, arguments.folder / VISION_FILE)
    for name in (TEXT_FILE, VISION_FILE):
        print(f"{arguments.folder / name}: {(arguments.folder / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
