"""The components of a loaded checkpoint, and moving their weights without copying them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

COMPONENT_NAMES = ("text_encoder", "text_encoder_2", "unet", "vae")


@dataclass(kw_only=True)
class Components:
    """The components of a checkpoint of the SDXL family.

    Attributes:
        unet: diffusers' UNet2DConditionModel.
        vae: diffusers' AutoencoderKL.
        text_encoder: The first text encoder; None in a refiner.
        text_encoder_2: The second text encoder (OpenCLIP's).
        tokenizer: The first text encoder's tokenizer; None in a refiner.
        tokenizer_2: The second one's.
        scheduler: The sampler in the checkpoint's configuration.
        requires_aesthetics_score: True for a refiner.
        force_zeros_for_empty_prompt: True for SDXL base: no negative prompt means zeros.
        origin: The file, folder or id of the checkpoint, for messages.
        advice: One sentence on the settings that this checkpoint needs, or "".
        dtypes: The type in which each component computes, by name; set by `choose_dtypes`.
        fp32_advice: For messages: how to compute "unet" or "vae" in fp32, if that differs from
            use_fp16=False.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    scheduler: Any
    requires_aesthetics_score: bool
    force_zeros_for_empty_prompt: bool
    origin: str
    advice: str = ""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    fp32_advice: dict[str, str] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Return the components that have weights, by name (of COMPONENT_NAMES)."""
        named = {name: getattr(self, name) for name in COMPONENT_NAMES}
        return {name: module for name, module in named.items() if module is not None}

    def choose_dtypes(self, device: torch.device, use_fp16: bool) -> None:
        """Set the type in which each component computes.

        Half precision for everything except the VAE, which overflows in fp16: it computes in bf16
        if the device supports it, else in fp32. A CPU computes in fp32: fp16 is slower there.
        """
        half = use_fp16 and device.type != "cpu"
        self.dtypes = dict.fromkeys(COMPONENT_NAMES, torch.float16 if half else torch.float32)
        self.dtypes["vae"] = torch.bfloat16 if half and has_bf16(device) else torch.float32

    def weight_bytes(self) -> dict[str, int]:
        """Return the bytes that each component's weights take in the type in which it computes."""
        return {
            name: sum(p.numel() for p in module.parameters()) * self.dtypes[name].itemsize
            for name, module in self.modules().items()
        }


def has_bf16(device: torch.device) -> bool:
    """Return whether a device supports bf16 natively (emulation would be slower than fp32)."""
    if device.type == "cuda":
        if torch.version.hip:
            return torch.cuda.is_bf16_supported()
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "xpu"


def has_fused_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's attention never holds the matrix of all pairs of tokens."""
    if device.type != "cuda":
        return device.type in ("cpu", "xpu")
    if not torch.version.hip:
        return True
    # ROCm has the fused kernels only for some cards, and only in some builds.
    some = torch.empty(1, 1, 64, 64, dtype=dtype, device=device)
    try:
        call = torch.backends.cuda.SDPAParams(some, some, some, None, 0.0, False, False)
    except (AttributeError, TypeError):  # before torch 2.5
        return False
    return torch.backends.cuda.can_use_flash_attention(
        call
    ) or torch.backends.cuda.can_use_efficient_attention(call)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own parameters and buffers, without those of its children."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


class Weights:
    """The resting weights of one module, and their copy on the device.

    The resting tensors are usually mapped from the checkpoint file. To free the device, they
    replace the copy again: nothing is copied back, and the copy is dropped.
    """

    def __init__(self, module: nn.Module) -> None:
        self._resting = [(tensor, tensor.data) for _, tensor in own_tensors(module)]

    def move(self, device: torch.device, dtype: torch.dtype) -> int:
        """Copy to a device, floats as `dtype`; return the bytes copied (0: no copy was needed)."""
        copied = 0
        # ComfyUI runs nodes under inference_mode; its tensors could not be replaced again.
        with torch.inference_mode(False):
            for tensor, resting in self._resting:
                wanted = dtype if resting.is_floating_point() else resting.dtype
                moved = resting.to(device, wanted)
                tensor.data = moved
                copied += moved.nbytes if moved is not resting else 0
        return copied

    def restore(self) -> None:
        """Use the resting tensors again and drop the copies."""
        with torch.inference_mode(False):
            for tensor, resting in self._resting:
                tensor.data = resting

    def held_bytes(self) -> int:
        """Return the bytes of the copies."""
        return sum(t.nbytes for t, r in self._resting if t.data_ptr() != r.data_ptr())

    def resting_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that copies of type `dtype` would take."""
        return sum(resting.numel() for _, resting in self._resting) * dtype.itemsize
