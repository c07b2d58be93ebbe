"""A refinement shown on its node: a bar over all steps, words, and previews of the picture."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import comfy.utils

from . import convert, show

if TYPE_CHECKING:
    import torch

    from ...refine.progress import Progress

_PREVIEW_SIDE = 512


class NodeProgress:
    """What `ImageRefiner` tells, on the node; ComfyUI's bar also ends the work on a cancel.

    Args:
        node_id: The running node's id; None outside a graph.
        images: How many images the whole run has.
    """

    def __init__(self, node_id: str | None, images: int) -> None:
        self._node_id = node_id
        self._images = images
        self._first = 0
        self._began = time.monotonic()
        self._bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def start_at(self, index: int) -> None:
        """Count the images of the call that follows from `index` (from 0)."""
        self._first = index

    def __call__(self, event: Progress) -> None:
        """Show one event; ComfyUI's InterruptProcessingException passes through."""
        if self._images > event.images:
            event = replace(event, image=event.image + self._first, images=self._images)
            # Images that come one by one are taken to be of one size.
            before, total = self._first * event.total, self._images * event.total
        else:
            before, total = 0, event.total
        self.say(event.text)
        if event.stage != "refine":
            return
        preview = event.preview() if event.step else None
        shown = None if preview is None else ("JPEG", preview, _PREVIEW_SIDE)
        self._bar.update_absolute(before + event.done, total, shown)

    def finished(self, last: torch.Tensor | None) -> None:
        """Leave a last word on the node, and a picture: the last result, no longer a preview.

        Args:
            last: an image (1, H, W, C), float 0 to 1; None: there is none.
        """
        from PIL import Image

        if last is not None:
            picture = Image.fromarray(convert.pixels(last[..., :3].expand(-1, -1, -1, 3))())
            self._bar.update_absolute(self._bar.total, preview=("JPEG", picture, _PREVIEW_SIDE))
        images = "the image" if self._images == 1 else f"{self._images} images"
        self.say(f"refined {images} in {time.monotonic() - self._began:.1f} s")

    def say(self, text: str) -> None:
        """Show a text on the node."""
        show(self._node_id, text)
