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
"""So many float32 (a quarter of a MiB) fit into the second cache of any processor of today."""


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
        # Some rows at a time, in memory that stays in the processor's cache: four times quicker at
        # 2048 px than whole copies of the image for each step (docs/quality/performance.md).
        rows = max(1, BAND_VALUES * len(values) // max(1, values.size))
        scratch = np.empty((rows, *values.shape[1:]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what that is about is mended below
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


def rejoin(batches: list[torch.Tensor], singles: list[torch.Tensor]) -> list[torch.Tensor]:
    """Undo `single_images`: one batch for each of `batches`, of the images that became of them.

    Where nothing became of a whole batch, the very same object comes back.
    """
    import torch

    joined: list[torch.Tensor] = []
    first = 0
    for batch in batches:
        rows = singles[first : first + batch.shape[0]]
        first += batch.shape[0]
        untouched = all(
            row.data_ptr() == batch[index].data_ptr() and row.shape == batch[:1].shape
            for index, row in enumerate(rows)
        )
        joined.append(batch if untouched else rows[0] if len(rows) == 1 else torch.cat(rows))
    return joined


def single_masks(masks: list[torch.Tensor], batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return one mask (1, H, W) for each image of a list of batches, at the image's size.

    Args:
        masks: (H, W) or (M, H, W), 0 to 1: one mask for all images; or as many as there are images,
            in order; or one entry (of one mask, or of as many as the batch has images) for each
            batch, or for all batches.
        batches: (B, H, W, C) each.

    Raises:
        ValueError: masks and images cannot be paired; the message says how many there are.
    """
    singles = single_images(batches)
    given = [mask if mask.ndim == 3 else mask[None] for mask in masks]
    rows = [mask[i : i + 1] for mask in given for i in range(mask.shape[0])]
    if len(rows) == 1:
        rows = rows * len(singles)
    elif len(rows) != len(singles):
        each = given * len(batches) if len(given) == 1 else given
        pairs = list(zip(each, batches, strict=False))
        fits = all(mask.shape[0] in (1, batch.shape[0]) for mask, batch in pairs)
        if len(each) != len(batches) or not fits:
            raise ValueError(f"{len(rows)} masks came for {len(singles)} images.")
        rows = [mask[i % mask.shape[0]][None] for mask, b in pairs for i in range(b.shape[0])]
    return [_at_size(row, *single.shape[1:3]) for row, single in zip(rows, singles, strict=True)]


def empty_mask(batch: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, H, W) of zeros for a batch (B, H, W, C)."""
    import torch

    return torch.zeros(batch.shape[:3])


def _at_size(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks come in other sizes too: LoadImage gives 64 x 64 zeros for an opaque picture."""
    if tuple(mask.shape[1:]) == (height, width):
        return mask
    if 0 in (height, width, *mask.shape[1:]):
        return mask  # the refiner says what is wrong with the picture, or with the mask
    from torch.nn import functional

    return functional.interpolate(
        mask[None].float(), size=(height, width), mode="bilinear", align_corners=False
    )[0].clamp(0.0, 1.0)


def image_tensor(picture: Image.Image) -> torch.Tensor:
    """Return a picture as a batch of one (1, H, W, 3), float 0 to 1, without its transparency.

    16 bits a channel stay 16 bits (grey pictures; Pillow reads no others so).
    """
    import numpy as np
    import torch

    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.float32) / 65535.0
        values = np.repeat(grey[..., None], 3, axis=2)
    else:
        values = np.asarray(picture.convert("RGB")).astype(np.float32) / 255.0
    return torch.from_numpy(values)[None]
