"""The refiner's weights in the hands of ComfyUI's model manager.

Here ComfyUI decides how much of a component is on the device, as it does for its own models. That
is possible because every layer with weights becomes ComfyUI's kind, which computes wherever its
weights lie. When a layer leaves the device its weights go back to where they rest (usually the
mapped checkpoint file) instead of being copied back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...memory import comfyui
from ...refine.components import Components
from ...refine.residency import LOW_VRAM_BYTES

log = logging.getLogger(__name__)

_LEAVES = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
_CPU = torch.device("cpu")


class ManagedResidency:
    """The refine package's `Residency`, over ComfyUI's model manager.

    To be made outside torch's inference mode, whose tensors could not be moved outside it.

    Args:
        components: The loaded checkpoint. Its layers are changed in place, and the types in which
            they compute become ComfyUI's.
        device: ComfyUI's compute device.
        mode: "auto" leaves everything to ComfyUI; "gpu" loads components whole; "offload" does
            too, and unloads each after its stage; "low_vram" keeps at most 1.5 GiB of each there.
    """

    def __init__(self, components: Components, device: torch.device, mode: str = "auto") -> None:
        self.device = device
        self._asked_mode = self._mode = mode
        _choose_dtypes(components, device)
        self._components = {
            name: _Managed(name, module, components.dtypes[name], device)
            for name, module in components.modules().items()
        }

    @contextlib.contextmanager
    def use(self, component: str, working_bytes: int) -> Iterator[None]:
        """Have a component loaded; see Residency."""
        ours = self._components[component]
        ours.patcher.limit_bytes = LOW_VRAM_BYTES if self._mode == "low_vram" else None
        whole = self._mode in ("gpu", "offload") or not ours.can_be_partial
        comfyui.load_patcher(ours.patcher, working_bytes, whole=whole)
        ours.place_buffers(self.device)
        try:
            yield
        finally:
            if self._mode in ("offload", "low_vram"):
                comfyui.unload_patchers([ours.patcher])

    def has_room(self, working_bytes: int) -> bool:
        """Return whether a stage may take so much in one piece; see Residency."""
        if self._mode == "low_vram":
            return working_bytes <= LOW_VRAM_BYTES
        return comfyui.has_room(self.device, working_bytes)

    def shrink(self) -> bool:
        """After an out-of-memory error: clear the device, and continue in low_vram mode."""
        comfyui.free_comfyui()
        if self._mode != "auto":
            return False
        self._mode = "low_vram"
        log.warning("Out of memory: the refiner continues in memory mode low_vram.")
        return True

    def release(self) -> int:
        """Unload our components from the device, and no others. Return the bytes freed."""
        self._mode = self._asked_mode
        return comfyui.unload_patchers(
            [component.patcher for component in self._components.values()]
        )


class _Managed:
    """One component, and the patcher by which ComfyUI knows it.

    The models of diffusers and transformers do not let ComfyUI set their `device`, so a plain
    module is put between.
    """

    def __init__(
        self, name: str, module: nn.Module, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.can_be_partial = _adopt(module, dtype, must_match=name == "vae")
        self._with_buffers = [m for m in module.modules() if any(m.named_buffers(recurse=False))]
        # Named for ComfyUI's log, which says "Requested to load RefinerUnet".
        holder = type(f"Refiner{name.title().replace('_', '')}", (_Holder,), {})(module, dtype)
        self.patcher = comfyui.new_patcher(holder, device, _CPU, None)

    def place_buffers(self, device: torch.device) -> None:
        """Move the buffers, which ComfyUI leaves behind where it loads a component partially."""
        for owner in self._with_buffers:
            for name, buffer in list(owner.named_buffers(recurse=False)):
                if buffer.device != device:
                    setattr(owner, name, buffer.to(device))


class _Holder(nn.Module):
    """What ComfyUI manages: it sets `device` and reads the type in which to compute."""

    def __init__(self, component: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.component = component
        self.device: Any = _CPU
        self.manual_cast_dtype: Any = dtype


def _choose_dtypes(components: Components, device: torch.device) -> None:
    """Set the types in which ComfyUI would compute, by its flags and the device."""
    size = sum(parameter.numel() for parameter in components.unet.parameters())
    chosen = comfyui.compute_dtypes(device, size)
    components.dtypes = chosen | {"text_encoder_2": chosen["text_encoder"]}
    components.fp32_advice = {name: f"start ComfyUI with --fp32-{name}" for name in ("unet", "vae")}
    if chosen["vae"] == torch.float16:  # only by this flag, which excludes the other
        components.fp32_advice["vae"] += " instead of --fp16-vae"


def _adopt(module: nn.Module, dtype: torch.dtype, *, must_match: bool) -> bool:
    """Make ComfyUI's kind of every layer; say whether all could be.

    Args:
        module: One component of the checkpoint.
        dtype: The type in which it computes.
        must_match: Convert all weights to it now. The VAE reads the type in which to compute from
            its weights; it is small. Otherwise only wider weights are converted; narrower ones
            (fp16 on a CPU) are widened for each call, and stay mapped from the file.
    """
    complete = True
    for leaf in module.modules():
        own = dict(leaf.named_parameters(recurse=False))
        if not own:
            continue
        for parameter in own.values():
            if must_match or parameter.dtype.itemsize > dtype.itemsize:
                parameter.data = parameter.data.to(dtype)
        name = type(leaf).__name__
        if name not in _LEAVES or type(leaf) is not getattr(nn, name):
            complete = False
            continue
        leaf.__class__ = _leaf_class(comfyui.casting_leaf(name))
        assert isinstance(leaf, _Leaf)
        leaf.resting = {key: parameter.data for key, parameter in own.items()}
        if isinstance(leaf, _EmbeddingLeaf):
            leaf.register_parameter("bias", None)  # ComfyUI's kind asks for one
            leaf.computes_in = dtype
    return complete


@functools.lru_cache(maxsize=2 * len(_LEAVES))
def _leaf_class(base: type) -> type:
    mixin = _EmbeddingLeaf if issubclass(base, nn.Embedding) else _Leaf
    return type(base.__name__, (mixin, base), {})


class _Leaf(nn.Module):
    """A layer whose weights return to where they rest when they are moved there."""

    resting: Any  # dict[str, Tensor]: by the names of its weights

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Leaf:
        # Nodes run under inference mode; a weight made there could not be moved by "Unload
        # models", which runs outside it.
        with torch.inference_mode(False):
            for name, resting in self.resting.items():
                parameter = self._parameters[name]
                assert parameter is not None
                probe = fn(parameter.data.new_empty(0))
                if probe.device == resting.device and probe.dtype == resting.dtype:
                    parameter.data = resting
                else:
                    parameter.data = fn(parameter.data)
        return self


class _EmbeddingLeaf(_Leaf):
    """An embedding, which alone has no floats to take its type from."""

    computes_in: Any  # torch.dtype

    def forward(self, input: Tensor, **_: Any) -> Tensor:
        return super().forward(input, out_dtype=self.computes_in)
