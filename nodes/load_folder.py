"""Load Images From Folder: the images of a folder inside ComfyUI's input folder, as lists."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths
from comfy_api.latest import io

from .._advice import with_code
from ..files import (
    NoFolder,
    NoImages,
    UnreadableImage,
    count_links_out,
    find_images,
    inside,
    open_image,
    subfolders,
)
from . import host
from .host import convert

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_INPUT_FOLDER = "(input folder)"


class LoadImagesFromFolder(io.ComfyNode):
    """(images, names): lists, one entry for each image that could be read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A folder, and which of its images to load."""
        folders = [_INPUT_FOLDER, *subfolders(_input_folder())]
        folder = io.Combo.Input("folder", options=folders, default=_INPUT_FOLDER)
        return host.schema(
            node_id="RefineryLoadFolder",
            display_name="Load Images From Folder",
            category="Image Refinery/Image",
            description=(
                "Loads the images of a folder inside ComfyUI's input folder as a list, each in "
                "its own size. Nodes of this pack load their model once for the whole list."
            ),
            search_aliases=[
                *("load images", "batch images", "batch folder", "batch loader", "image list"),
                *("directory", "dataset", "folder", "image_load_cap", "include_subfolders"),
            ],
            inputs=[
                io.MultiType.Input(
                    folder,
                    types=[io.String],
                    tooltip="Folder inside ComfyUI's input folder. Press R after adding one, or "
                    "connect a String.",
                ),
                io.Boolean.Input(
                    "recursive",
                    display_name="include subfolders",
                    default=False,
                    optional=True,
                    tooltip="Load the images of subfolders too.",
                ),
                io.String.Input(
                    "pattern",
                    default="*",
                    optional=True,
                    tooltip="Load only files whose names match, such as cat*.png. * matches any "
                    "text.",
                ),
                io.Int.Input(
                    "start",
                    display_name="skip first",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Skip this many images at the beginning. Numbers in names are sorted "
                    "by value: 2.png before 10.png.",
                ),
                io.Int.Input(
                    "limit",
                    display_name="max images (0 = all)",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Load at most this many images. Each needs 12 bytes of memory per "
                    "pixel.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="Images, upright, each in its own size.",
                ),
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="Name of each image inside the input folder, for Save Caption.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: Any = "") -> bool:
        """Accept any name: the run says clearly that a folder is missing."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **inputs: Any) -> float:
        """Changes when the chosen files do; a linked folder is read in every run."""
        if folder is None:
            return float("nan")
        try:
            chosen = _chosen(folder, **inputs)
            states = [(str(path), (state := path.stat()).st_mtime_ns, state.st_size)
                      for path in chosen]  # fmt: skip
        except (OSError, ValueError):
            return float("nan")  # the run reports what is wrong
        return float(hash(tuple(states)))

    @classmethod
    @host.shows_errors
    def execute(
        cls,
        folder: str,
        recursive: bool = False,
        pattern: str = "*",
        start: int = 0,
        limit: int = 0,
    ) -> io.NodeOutput:
        """Load the images; report and skip files that cannot be read."""
        found = _found(folder, recursive, pattern)
        chosen = _slice(found, start, limit)
        images: list[torch.Tensor] = []
        names: list[str] = []
        problems: list[str] = []
        bar = comfy.utils.ProgressBar(len(chosen), node_id=host.node_id(cls))
        for path in chosen:
            if host.interrupted():
                host.stop()
            try:
                images.append(convert.image_tensor(open_image(path)))
                names.append(path.relative_to(_input_folder()).as_posix())
            except UnreadableImage as error:
                log.warning("Load Images From Folder skipped a file: %s", error)
                problems.append(with_code(error))
            bar.update(1)
        if not images:
            which = f"none of {len(problems)} could be read" if problems else "no file matches"
            raise NoImages(
                f'No image was loaded from "{folder}" in {_input_folder()}: {which}. Check folder, '
                "pattern and skip first."
            )
        summary = _summary(
            len(images),
            {
                "by skip first": min(start, len(found)),
                "by max images": len(found) - len(chosen) - min(start, len(found)),
                "unreadable": len(problems),
                "links that lead out of the input folder": count_links_out(
                    _path(folder), pattern=pattern, recursive=recursive
                ),
            },
        )
        host.show(host.node_id(cls), summary, *problems[:5])
        ui = {"text": names, "problems": problems, "summary": [summary]}
        return io.NodeOutput(images, names, ui=ui)


def _input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def _path(folder: str) -> Path:
    """Return the folder of the widget; in workflows of version 0.1, "." is the input folder."""
    return inside(_input_folder(), "." if folder == _INPUT_FOLDER else folder)


def _chosen(
    folder: str, recursive: bool = False, pattern: str = "*", start: int = 0, limit: int = 0
) -> list[Path]:
    return _slice(_found(folder, recursive, pattern), start, limit)


def _found(folder: str, recursive: bool = False, pattern: str = "*") -> list[Path]:
    try:
        return find_images(_path(folder), pattern=pattern, recursive=recursive)
    except NoFolder:
        raise NoFolder(
            f'There is no folder "{folder}" in ComfyUI\'s input folder {_input_folder()}. Put your '
            "images into a folder there, press R, and choose it."
        ) from None


def _slice(found: list[Path], start: int = 0, limit: int = 0) -> list[Path]:
    return found[start : start + limit if limit else None]


def _summary(loaded: int, left_out: dict[str, int]) -> str:
    """
    >>> _summary(10, {"by max images": 190, "unreadable": 0})
    'loaded 10 images, left out 190 by max images.'
    """
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    what = "loaded 1 image" if loaded == 1 else f"loaded {loaded} images"
    return f"{what}, left out {', '.join(reasons)}." if reasons else f"{what}."
