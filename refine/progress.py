"""Progress events of a refinement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL import Image

from .errors import RefineCancelled

Stage = Literal["load", "prompt", "enlarge", "encode", "refine", "decode", "render", "fit"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One event; sent at the start of every stage and after every step.

    Attributes:
        stage: "load" (weights), "prompt" (text encoder), "enlarge" (upscale model), "encode" (VAE),
            "refine" (UNet) or "decode" (VAE); for splats also "render" (a view) and "fit" (the
            colors to the views).
        image: The current image, counted from 1.
        images: The number of images.
        region: The current region of the image, counted from 1.
        regions: The number of regions; 1 unless a mask has several parts.
        tile: The current tile of the region, counted from 1.
        tiles: The number of tiles of the region; 1 unless it is large.
        step: The steps of this tile done so far; 0 at the start of a stage.
        steps: The steps of each tile.
        done: The steps of the whole call done so far.
        total: The steps of the whole call.
        formula: The origin of `steps`, such as "20 x 0.3".
        render_preview: Makes the preview; called only by `preview()`.
    """

    stage: Stage
    image: int = 1
    images: int = 1
    region: int = 1
    regions: int = 1
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
        """Return a preview at an eighth of the size, or None if there is none yet.

        Each call renders it, in a millisecond or two.
        """
        return None if self.render_preview is None else self.render_preview()

    def part_of(self, number: int, count: int) -> Progress:
        """Return the event with the steps of `count` equal calls, of which this is `number`."""
        return replace(self, done=number * self.total + self.done, total=count * self.total)

    @property
    def text(self) -> str:
        """The event in words, such as "image 1 of 3, step 2 of 6 (20 x 0.3)"."""
        words = {
            "load": "loading the checkpoint",
            "prompt": "encoding the prompt",
            "enlarge": "enlarging",
            "encode": "encoding",
            "refine": f"step {self.step} of {self.steps} ({self.formula})",
            "decode": "decoding",
            "render": "rendering",
            "fit": "fitting the colors",
        }[self.stage]
        if self.tiles > 1 and self.stage == "refine":
            words = f"tile {self.tile} of {self.tiles}, {words}"
        if self.regions > 1 and self.stage == "refine":
            words = f"region {self.region} of {self.regions}, {words}"
        if self.images > 1 and self.stage != "load":
            words = f"image {self.image} of {self.images}, {words}"
        return words


ProgressCallback = Callable[[Progress], None]
"""Called with every event. If it raises, the work ends and the exception reaches the caller."""


def raise_if(should_stop: Callable[[], bool] | None) -> Callable[[], None]:
    """Return a function that raises RefineCancelled once `should_stop` returns True."""

    def check() -> None:
        if should_stop is not None and should_stop():
            raise RefineCancelled("The refinement was cancelled; nothing is left running.")

    return check


def ignore(_: Progress) -> None:
    """A ProgressCallback that does nothing."""
