"""What a caller is told while an image is refined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

Stage = Literal["load", "prompt", "encode", "refine", "decode"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One event; sent at the start of every stage and after every step.

    Attributes:
        stage: "load" (weights), "prompt" (text encoder), "encode" (VAE), "refine" (UNet) or
            "decode" (VAE).
        image: Which image is being worked on, counted from 1.
        images: How many images there are.
        tile: Which of its tiles, counted from 1.
        tiles: How many tiles the image has; 1 unless it is large.
        step: How many steps of this tile are done; 0 at the start of a stage.
        steps: How many steps each tile takes.
        done: How many steps are done in the whole call.
        total: How many steps the whole call takes.
        formula: Where `steps` comes from, for instance "20 x 0.3".
        render_preview: Makes the preview; called by `preview()` only.
    """

    stage: Stage
    image: int = 1
    images: int = 1
    tile: int = 1
    tiles: int = 1
    step: int = 0
    steps: int = 0
    done: int = 0
    total: int = 0
    formula: str = ""
    render_preview: Callable[[], Image.Image] | None = field(
        default=None, repr=False, compare=False
    )

    def preview(self) -> Image.Image | None:
        """Return a small image of the work so far, or None where there is none yet.

        It is made when asked for (a millisecond or two), one pixel for eight.
        """
        return None if self.render_preview is None else self.render_preview()

    @property
    def text(self) -> str:
        """The event in words, for instance "image 1 of 3, step 2 of 6 (20 x 0.3)"."""
        words = {
            "load": "loading the checkpoint",
            "prompt": "reading the prompt",
            "encode": "encoding",
            "refine": f"step {self.step} of {self.steps} ({self.formula})",
            "decode": "decoding",
        }[self.stage]
        if self.tiles > 1 and self.stage == "refine":
            words = f"tile {self.tile} of {self.tiles}, {words}"
        if self.images > 1 and self.stage != "load":
            words = f"image {self.image} of {self.images}, {words}"
        return words


ProgressCallback = Callable[[Progress], None]
"""Called with every event; an exception that it raises ends the work and reaches the caller."""
