"""What the model manager asks of a model: where its weights are, and to move them."""

from typing import Any

import torch


class ModelPatcher:
    """Loads a model whole, or nothing of it where the budget is below its size."""

    def __init__(
        self,
        model: Any,
        load_device: torch.device,
        offload_device: torch.device,
        size: int = 0,
        weight_inplace_update: bool = False,
    ) -> None:
        self.model = model
        self.load_device = load_device
        self.offload_device = offload_device
        self.size = size or sum(tensor.nbytes for tensor in model.state_dict().values())
        self.model.device = offload_device
        self._loaded = 0

    def model_size(self) -> int:
        return self.size

    def loaded_size(self) -> int:
        return self._loaded

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> int:
        before = self._loaded
        if before + extra_memory >= self.size:
            self.model.to(device_to)
            self.model.device = device_to
            self._loaded = self.size
        return self._loaded - before

    def detach(self, unpatch_all: bool = True) -> Any:
        self.model.to(self.offload_device)
        self.model.device = self.offload_device
        self._loaded = 0
        return self.model
