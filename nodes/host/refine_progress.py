"""A refinement shown on its node: a bar over all steps, words, and previews of the image."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import comfy.utils

from . import convert, show

if TYPE_CHECKING:
    import torch

    from ...refine.progress import Progress

PREVIEW_SIDE_PX = 512


class NodeProgress:
    """Shows the refiner's events on the node; ComfyUI's bar also ends the work on a cancel.

    Args:
        node_id: The running node's id; None outside a graph.
        images: How many images the whole run has.
    """

    def __init__(self, node_id: str | None, images: int) -> None:
        self._node_id = node_id
        self._images = images
        self._began = time.monotonic()
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def __call__(self, event: Progress) -> None:
        """Show one event."""
        self.say(event.text)
        if event.stage != "refine":
            return
        preview = event.preview() if event.step else None
        shown = None if preview is None else ("JPEG", preview, PREVIEW_SIDE_PX)
        self._bar.update_absolute(event.done, event.total, shown)

    def finished(self, last: torch.Tensor | None) -> None:
        """Show the time taken, and the last result in place of a preview.

        Args:
            last: an image (1, H, W, C), float 0 to 1; None: there is none.
        """
        from PIL import Image

        if last is not None:
            shown = Image.fromarray(convert.pixels(last[..., :3].expand(-1, -1, -1, 3))())
            self._bar.update_absolute(self._bar.total, preview=("JPEG", shown, PREVIEW_SIDE_PX))
        images = "the image" if self._images == 1 else f"{self._images} images"
        self.say(f"refined {images} in {time.monotonic() - self._began:.1f} s")

    def say(self, text: str) -> None:
        """Show a text on the node."""
        show(self._node_id, text)
