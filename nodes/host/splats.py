"""ComfyUI's SPLAT, a padded batch, as single splats and back. Imported when a node runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...memory import comfyui
from ...refine.errors import SplatError
from ...refine.splats import Splat

_PARTS = ("positions", "scales", "rotations", "opacities", "sh")


def single_splats(batch: Any) -> list[Splat]:
    """Return the splats of a SPLAT: tensors (B, N, ...), of which `counts` (B,) holds the lengths.

    Raises:
        SplatError: one of them is empty or has NaN; the message says which if there are several.
    """
    found: list[Splat] = []
    count = len(batch.positions)
    if count == 0:
        raise SplatError("The batch of splats is empty: check the node that made it.")
    for index in range(count):
        end = None if batch.counts is None else int(batch.counts[index])
        parts: dict[str, Tensor] = {
            name: getattr(batch, name)[index, :end].to(_device(), torch.float32) for name in _PARTS
        }
        parts["opacities"] = parts["opacities"].reshape(-1)
        try:
            found.append(Splat(**parts))
        except SplatError as error:
            if count == 1:
                raise
            raise SplatError(f"Splat {index + 1} of {count}: {error}") from None
    return found


def with_colors_of(batch: Any, splats: Sequence[Splat]) -> Any:
    """Return a SPLAT like `batch`, with the colors of `splats`; all else is the very same.

    Args:
        batch: The SPLAT that `splats` came from.
        splats: As many as `batch` has, in its order.
    """
    sh = pad_sequence([splat.sh for splat in splats], batch_first=True).to(batch.sh)
    rest = batch.sh[:, sh.shape[1] :]  # what is longer than every splat of the batch
    new = torch.cat([sh, rest], dim=1)
    return type(batch)(
        batch.positions, batch.scales, batch.rotations, batch.opacities, new, batch.counts
    )


def _device() -> torch.device:
    """Where splats are rendered: it needs float64, which MPS and DirectML lack."""
    device: torch.device = comfyui.compute_device()
    return device if device.type == "cuda" else torch.device("cpu")
