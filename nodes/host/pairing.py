"""Prompts and masks of a node's input lists, one for each batch of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ...refine import SettingsError, TilePrompts


def prompts_for(
    prompts: Sequence[str], batches: Sequence[torch.Tensor]
) -> list[str | Sequence[str]]:
    """Return the prompts of each batch: one text, or one for each of its images.

    Args:
        prompts: One for all images, one for each image, or one for each batch. None: empty.
        batches: (B, H, W, C) each.

    Raises:
        SettingsError: they cannot be paired.
    """
    count = sum(len(batch) for batch in batches)
    if len(prompts) <= 1:
        return [prompts[0] if prompts else ""] * len(batches)
    if len(prompts) == count:
        rest = iter(prompts)
        return [[next(rest) for _ in batch] for batch in batches]
    if len(prompts) == len(batches):
        return list(prompts)
    raise SettingsError(
        f"{len(prompts)} prompts are connected, but there are {count} images. "
        "Connect one prompt, or one for each image."
    )


def tile_prompts_for(
    given: Sequence[TilePrompts], batches: Sequence[torch.Tensor]
) -> list[TilePrompts | Sequence[TilePrompts] | None] | None:
    """Return the tile prompts of each batch; None without any.

    Args:
        given: One for all images, or one for each image.
        batches: (B, H, W, C) each.

    Raises:
        SettingsError: they cannot be paired.
    """
    if not given:
        return None
    if len(given) == 1:
        return [given[0] for _ in batches]
    count = sum(len(batch) for batch in batches)
    if len(given) != count:
        raise SettingsError(
            f"The tile prompts of {len(given)} images are connected, but there are {count} images. "
            "Give Describe Tiles and the refiner the same images."
        )
    rest = iter(given)
    return [[next(rest) for _ in batch] for batch in batches]


def masks_for(
    masks: Sequence[torch.Tensor], batches: Sequence[torch.Tensor]
) -> list[torch.Tensor] | None:
    """Return one mask (1, H, W) or (B, H, W) for each batch, at its size; None without masks.

    Args:
        masks: (H, W) or (M, H, W), 0 to 1: one mask for all images; or as many as there are images,
            in order; or one entry (of one mask, or of as many as the batch has images) for each
            batch, or for all batches.
        batches: (B, H, W, C) each.

    Raises:
        SettingsError: they cannot be paired.
    """
    if not masks:
        return None
    entries = [mask if mask.ndim == 3 else mask[None] for mask in masks]
    singles = [single for entry in entries for single in entry.split(1)]
    count = sum(len(batch) for batch in batches)
    if len(singles) == 1:
        paired = singles * len(batches)
    elif len(singles) == count:
        rest = iter(singles)
        paired = [_joined([next(rest) for _ in batch], batch) for batch in batches]
    else:
        paired = entries * len(batches) if len(entries) == 1 else entries
        both = list(zip(paired, batches, strict=False))
        if len(paired) != len(batches) or any(len(m) not in (1, len(b)) for m, b in both):
            raise SettingsError(
                f"{len(singles)} masks are connected, but there are {count} images. "
                "Connect one mask, or one for each image."
            )
    return [_at_size(mask, batch) for mask, batch in zip(paired, batches, strict=True)]


def _joined(singles: list[torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Return a batch's masks as one tensor; only the first of them if it has no pixels."""
    resized = [_at_size(single, batch) for single in singles]
    if not resized:
        return torch.zeros(batch.shape[:3])
    empty = [mask for mask in resized if mask.numel() == 0]
    return empty[0] if empty else torch.cat(resized)


def _at_size(mask: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    """Resize masks: LoadImage gives 64 x 64 zeros for an opaque image of any size."""
    size = batch.shape[1:3]
    if mask.shape[1:] == size or 0 in (*size, *mask.shape[1:]):
        return mask  # the refiner reports what has no pixels
    resized = functional.interpolate(
        mask[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False
    )
    return resized[:, 0].clamp(0.0, 1.0)
