"""`image-refinery refine --describe-tiles`: a text for each tile, before the refiner loads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .. import memory
from .._backends import open_backends
from ..captioning.job import Job, Stage
from ..captioning.kept import open_answers
from ..captioning.options import VISION_SAMPLING, StageOptions, vision_options
from ..captioning.prompts import TILE_REQUEST
from ..captioning.run import run
from ..files import open_image, with_8_bits
from ..llm.servers import split_model
from ..refine import RefineSettings, TilePrompts
from ..refine.geometry import Box
from .progress import watching
from .terminal import DESCRIBE, message


@dataclass(frozen=True, kw_only=True)
class _Tile:
    path: Path
    box: Box

    def open(self) -> Image.Image:
        """Return what the tile shows."""
        box = self.box
        return with_8_bits(open_image(self.path)).crop((box.left, box.top, box.right, box.bottom))


def describe_tiles(
    paths: Sequence[Path],
    settings: RefineSettings,
    mask: Image.Image | None,
    *,
    model: str,
    server: str,
) -> list[TilePrompts]:
    """Return the texts of each image's tiles, described with one load of the model.

    A tile that fails has no text, and its error is printed.

    Raises:
        LLMError: no tile could be described.
        Cancelled: Ctrl-C.
    """
    planned = [_planned(path, settings, mask) for path in paths]
    tiles = [
        _Tile(path=path, box=box)
        for path, one in zip(paths, planned, strict=True)
        for region in one.boxes
        for box in region
    ]
    options = vision_options(VISION_SAMPLING, settings.seed, StageOptions())
    job = Job(
        vision=Stage(model=split_model(model)[0], options=options), custom_prompts=[TILE_REQUEST]
    )
    opens: list[Callable[[], Image.Image]] = [tile.open for tile in tiles]
    with (
        open_answers() as kept,
        watching() as watcher,
        open_backends(server, model, cancelled=watcher.cancelled) as backends,
    ):
        captions = run(
            backends[0], opens, job, memory=memory.StageMemory(), watcher=watcher, kept=kept
        )
    errors = [caption.final.error for caption in captions]
    if errors and all(errors):
        raise next(filter(None, errors))
    for tile, error in zip(tiles, errors, strict=True):
        if error:
            place = f"{tile.path}, tile at {tile.box.left}, {tile.box.top}"
            print(f"Error: {place}: {message(error, DESCRIBE)}", file=sys.stderr)
    texts = iter([caption.final.text if not caption.final.error else "" for caption in captions])
    return [one.with_texts(texts) for one in planned]


def _planned(path: Path, settings: RefineSettings, mask: Image.Image | None) -> TilePrompts:
    image = open_image(path)
    return TilePrompts.planned((image.height, image.width), settings, mask)
