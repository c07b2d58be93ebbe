"""Load Images From Folder: the pictures of a folder of ComfyUI's input folder, as lists."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..files import (
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

_ITSELF = "."
"""Stands for the input folder in the list of folders."""


class LoadImagesFromFolder(io.ComfyNode):
    """(images, names): lists, one entry for each picture that could be read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A folder, and which of its pictures."""
        folders = [_ITSELF, *subfolders(_input_folder())]
        folder = io.Combo.Input("folder", options=folders, default=_ITSELF)
        return host.schema(
            node_id="RefineryLoadFolder",
            display_name="Load Images From Folder",
            category="refinery",
            description=(
                "Loads the pictures of a folder inside ComfyUI's input folder, each in its own "
                "size. Nodes behind it run once for each picture; those of this pack take the "
                "whole list at once."
            ),
            search_aliases=["batch images", "image list", "directory", "dataset", "folder"],
            inputs=[
                io.MultiType.Input(
                    folder,
                    types=[io.String],
                    tooltip="A folder inside ComfyUI's input folder; a dot is that folder itself. "
                    "Press R after adding one. Link a text to use any name.",
                ),
                io.Boolean.Input(
                    "recursive",
                    default=False,
                    optional=True,
                    tooltip="The folders inside this folder as well.",
                ),
                io.String.Input(
                    "pattern",
                    default="*",
                    optional=True,
                    tooltip="Only files whose name fits, such as cat*.png. * stands for anything.",
                ),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="How many pictures to leave out at the beginning. They are sorted as "
                    "a person counts: 2.png before 10.png.",
                ),
                io.Int.Input(
                    "limit",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="At most this many pictures; 0: all. Each needs 12 bytes of memory "
                    "for each pixel.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The pictures, upright, one by one, each in its own size.",
                ),
                io.String.Output(
                    display_name="names",
                    is_output_list=True,
                    tooltip="Each picture's name inside the input folder, for Save Caption.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder: Any = "") -> bool:
        """Accept any name here: a missing folder is one clear sentence when the node runs."""
        return True

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **inputs: Any) -> float:
        """Changes when the chosen files do; a linked folder is looked at in every run."""
        if folder is None:
            return float("nan")
        try:
            chosen = _chosen(folder, **inputs)
            states = [(str(path), (state := path.stat()).st_mtime_ns, state.st_size)
                      for path in chosen]  # fmt: skip
        except (OSError, ValueError):
            return float("nan")  # the run itself says what is wrong
        return float(hash(tuple(states)))

    @classmethod
    def execute(
        cls,
        folder: str,
        recursive: bool = False,
        pattern: str = "*",
        start: int = 0,
        limit: int = 0,
    ) -> io.NodeOutput:
        """Load; a file that cannot be read is reported and left out."""
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
                log.warning("Load Images From Folder left out a file: %s", error)
                problems.append(str(error))
            bar.update(1)
        if not images:
            which = f"none of {len(problems)} could be read" if problems else "none fits"
            raise ValueError(
                f'No picture was loaded from "{folder}" of {_input_folder()}: {which}. Check '
                "folder, pattern and start."
            )
        summary = _summary(
            len(images),
            {
                "before start": min(start, len(found)),
                "beyond limit": len(found) - len(chosen) - min(start, len(found)),
                "unreadable": len(problems),
                "links that lead out of the input folder": count_links_out(
                    inside(_input_folder(), folder), pattern=pattern, recursive=recursive
                ),
            },
        )
        host.show(host.node_id(cls), summary, *problems[:5])
        ui = {"text": names, "problems": problems, "summary": [summary]}
        return io.NodeOutput(images, names, ui=ui)


def _input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def _chosen(
    folder: str, recursive: bool = False, pattern: str = "*", start: int = 0, limit: int = 0
) -> list[Path]:
    return _slice(_found(folder, recursive, pattern), start, limit)


def _found(folder: str, recursive: bool = False, pattern: str = "*") -> list[Path]:
    try:
        return find_images(inside(_input_folder(), folder), pattern=pattern, recursive=recursive)
    except NotADirectoryError:
        raise NotADirectoryError(
            f'There is no folder "{folder}" in ComfyUI\'s input folder {_input_folder()}. Put your '
            "images into a folder there, press R, and choose it."
        ) from None


def _slice(found: list[Path], start: int = 0, limit: int = 0) -> list[Path]:
    return found[start : start + limit if limit else None]


def _summary(loaded: int, left_out: dict[str, int]) -> str:
    """
    >>> _summary(10, {"beyond limit": 190, "unreadable": 0})
    'loaded 10 images, left out 190 beyond limit.'
    """
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if count]
    what = "loaded 1 image" if loaded == 1 else f"loaded {loaded} images"
    return f"{what}, left out {', '.join(reasons)}." if reasons else f"{what}."
