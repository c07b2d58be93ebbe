"""Layers that bring their weights to the device and type of their input for each call."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class _Casting(torch.nn.Module):
    weight: Tensor
    bias: Any

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.forward_comfy_cast_weights(*args, **kwargs)

    def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _cast(self, input: Tensor) -> tuple[Tensor, Any]:
        return self.weight.to(input), None if self.bias is None else self.bias.to(input)


class manual_cast:
    class Linear(_Casting, torch.nn.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            return functional.linear(input, *self._cast(input))

    class Conv2d(_Casting, torch.nn.Conv2d):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, *self._cast(input))

    class GroupNorm(_Casting, torch.nn.GroupNorm):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            return functional.group_norm(input, self.num_groups, *self._cast(input), self.eps)

    class LayerNorm(_Casting, torch.nn.LayerNorm):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            shape = self.normalized_shape
            return functional.layer_norm(input, shape, *self._cast(input), self.eps)

    class Embedding(_Casting, torch.nn.Embedding):
        def forward_comfy_cast_weights(
            self, input: Tensor, out_dtype: torch.dtype | None = None
        ) -> Tensor:
            found = functional.embedding(input, self.weight.to(input.device), self.padding_idx)
            return found if out_dtype is None else found.to(out_dtype)
