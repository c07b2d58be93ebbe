"""The only place where ComfyUI's IMAGE tensors change form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def single_images(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return each image of a list of batches (B, H, W, C) as a batch of one.

    A batch of one stays the very same object; larger ones become views, never copies.
    """
    return [
        batch if batch.shape[0] == 1 else batch[index : index + 1]
        for batch in batches
        for index in range(batch.shape[0])
    ]


def pixels(image: torch.Tensor) -> Callable[[], NDArray[np.uint8]]:
    """Return a source of the uint8 pixels (H, W, C) of a batch of one, float 0 to 1.

    Nothing is converted until the source is called. Values outside 0 to 1 are cut off as every
    viewer does; NaN becomes black.
    """

    def convert() -> NDArray[np.uint8]:
        import torch

        scaled = image[0].detach().to(device="cpu", dtype=torch.float32) * 255.0
        return scaled.nan_to_num_(0.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8).numpy()

    return convert
