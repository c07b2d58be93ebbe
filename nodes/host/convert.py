"""The only place where ComfyUI's IMAGE tensors change form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

BAND_VALUES = 65536
"""256 KiB of float32: fits in L2."""


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
        import numpy as np
        import torch

        values = image[0].detach().to(device="cpu", dtype=torch.float32).numpy()
        result = np.empty(values.shape, np.uint8)
        # Some rows at a time, in memory that stays in the processor's cache: four times faster at
        # 2048 px than whole copies of the image for each step (docs/quality/performance-tables.md).
        rows = max(1, BAND_VALUES * len(values) // max(1, values.size))
        scratch = np.empty((rows, *values.shape[1:]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # such values are replaced below
            for first in range(0, len(values), rows):
                band = values[first : first + rows]
                scaled = np.multiply(band, 255.0, out=scratch[: len(band)])
                scaled += 0.5
                if not np.isfinite(scaled.sum()):
                    np.nan_to_num(scaled, copy=False)
                np.clip(scaled, 0.0, 255.0, out=scaled)
                np.copyto(result[first : first + rows], scaled, casting="unsafe")
        return result

    return convert


def empty_mask(batch: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, H, W) of zeros for a batch (B, H, W, C)."""
    import torch

    return torch.zeros(batch.shape[:3])


def image_tensor(image: Image.Image) -> torch.Tensor:
    """Return a Pillow image as a batch of one (1, H, W, 3), float 0 to 1, without transparency.

    16 bits per channel stay 16 bits (gray images only: Pillow reads no others so).
    """
    import numpy as np
    import torch

    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.float32) / 65535.0
        values = np.repeat(gray[..., None], 3, axis=2)
    else:
        values = np.asarray(image.convert("RGB")).astype(np.float32) / 255.0
    return torch.from_numpy(values)[None]
