"""Identify a checkpoint file from its header alone, without reading weights or importing torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from ..files.folders import PICKLE_SUFFIXES
from .errors import CheckpointError

Family = Literal["refiner", "base", "ssd-1b"]
Variant = Literal["", "turbo", "lightning"]

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = "conditioner.embedders."
_SUPPORTED = "the SDXL refiner, SDXL base and its finetunes, and SSD-1B"

# Tried in this order: a key that only this kind of model has, and the name of the kind.
_FOREIGN_KINDS = (
    (r"lora_(unet|te|up|down)|\.lora_[AB]\.|lora\.(up|down)\.", "a LoRA"),
    (r"(^|\.)double_blocks\.", "a FLUX model"),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"^(control_model\.|controlnet_|input_hint_block\.)", "a ControlNet"),
    (r"^cond_stage_model\.transformer\.", "a Stable Diffusion 1.x model"),
    (r"^cond_stage_model\.model\.", "a Stable Diffusion 2.x model"),
)
_PART_KINDS = (
    (r"^(down_blocks|up_blocks|mid_block)\.", "a UNet in diffusers' layout"),
    (r"^(encoder|decoder)\.(conv_in|down|up|mid)", "a VAE"),
    (r"^(text_model|transformer\.text_model)\.", "a text encoder"),
)


class TensorInfo(NamedTuple):
    """A tensor's dtype, as safetensors writes it ("F16"), and its shape."""

    dtype: str
    shape: list[int]


Header = dict[str, TensorInfo]
"""The tensors of a checkpoint file, by name."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The properties of a checkpoint file.

    Attributes:
        path: The file.
        family: The member of the SDXL family.
        variant: "turbo" or "lightning" if the file's name has the word (the header does not).
        dtype: The weights' stored type, as safetensors writes it: "F16", "BF16", "F32", "F8_E4M3".
        size_bytes: The file's size.
    """

    path: Path
    family: Family
    variant: Variant
    dtype: str
    size_bytes: int

    @property
    def advice(self) -> str:
        """One sentence on the settings that this checkpoint needs, or ""."""
        if not self.variant:
            return ""
        return (
            f"{self.path.name} is an SDXL {self.variant.capitalize()} checkpoint: use "
            "guidance_scale 1 or less and few steps, for example num_inference_steps 8 with "
            "strength 0.3."
        )


def read_checkpoint(path: str | Path) -> CheckpointInfo:
    """Return the properties of a single checkpoint file, from its header.

    Raises:
        CheckpointError: the file is missing, pickled, damaged, or not a model that can refine.
    """
    path = Path(path)
    header = read_header(path)
    family = _family_of(path, header)
    return CheckpointInfo(
        path=path,
        family=family,
        variant=_variant_of(path),
        dtype=stored_dtype(header, _UNET),
        size_bytes=path.stat().st_size,
    )


def read_header(path: Path) -> Header:
    """Return the types and shapes of the tensors in a safetensors file.

    Raises:
        CheckpointError: the file is missing, pickled, truncated, or not a safetensors file.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{path} is a pickled checkpoint, which can run code when it is opened: "
            "use the .safetensors file of the same model."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: TensorInfo(s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint file at {path}: check the path.") from error
    except SafetensorError as error:
        why = "it has no safetensors header"
        if re.search("small|length|incomplete", str(error), re.IGNORECASE):
            why = f"its {path.stat().st_size} bytes are not as many as its header says"
        raise CheckpointError(
            f"{path} is damaged or not fully downloaded ({why}): download it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error


def stored_dtype(header: Header, prefix: str = "") -> str:
    """Return the dtype of most of the weights under `prefix`, as safetensors writes it."""
    counts: Counter[str] = Counter()
    for name, tensor in header.items():
        if name.startswith(prefix):
            counts[tensor.dtype] += math.prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else "F16"


def _family_of(path: Path, header: Header) -> Family:
    for pattern, kind in _FOREIGN_KINDS:
        if any(re.search(pattern, name) for name in header):
            raise CheckpointError(_wrong_kind(path, kind))
    prefixes = {
        prefix for prefix in (_UNET, _VAE, _TEXT) if any(n.startswith(prefix) for n in header)
    }
    if _UNET not in prefixes:
        kind = "a VAE" if prefixes == {_VAE} else _part_kind(header)
        raise CheckpointError(_wrong_kind(path, kind))
    for prefix, part in ((_TEXT, "text encoder"), (_VAE, "VAE")):
        if prefix not in prefixes:
            raise CheckpointError(
                f"{path} holds no {part}: use a full checkpoint of the same model."
            )
    first_convolution = header.get(f"{_UNET}input_blocks.0.0.weight")
    if first_convolution and first_convolution.shape[1:2] != [4]:
        raise CheckpointError(_wrong_kind(path, "an inpainting or editing model"))
    if f"{_TEXT}1.model.token_embedding.weight" not in header:
        return "refiner"
    # SSD-1B is SDXL without, among other blocks, the attention in the middle of the UNet.
    has_middle_attention = any(name.startswith(f"{_UNET}middle_block.1.") for name in header)
    return "base" if has_middle_attention else "ssd-1b"


def _part_kind(header: Header) -> str:
    for pattern, kind in _PART_KINDS:
        if any(re.search(pattern, name) for name in header):
            return kind
    return "an unknown kind of model"


def _variant_of(path: Path) -> Variant:
    name = path.stem.lower()
    if "lightning" in name:
        return "lightning"
    return "turbo" if "turbo" in name else ""


def _wrong_kind(path: Path, kind: str) -> str:
    return f"{path} is {kind}, which cannot refine images: choose a checkpoint of {_SUPPORTED}."
