"""The checkpoints that the SDXL Refiner can choose: ComfyUI's files, and one download."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ...files.folders import CHECKPOINT_SUFFIXES

DOWNLOADED_MODEL = "stabilityai/stable-diffusion-xl-refiner-1.0"
"""`DEFAULT_MODEL` of refine, which ComfyUI's start need not import."""
DOWNLOAD = f"{DOWNLOADED_MODEL} (download)"


def checkpoints_to_choose() -> list[str]:
    """Return the names for the checkpoint widget: refiners first, the download last."""
    files = [
        name
        for name in folder_paths.get_filename_list("checkpoints")
        if name.lower().endswith(CHECKPOINT_SUFFIXES)
    ]
    return [*sorted(files, key=lambda name: ("refiner" not in name.lower(), name)), DOWNLOAD]


def find_checkpoint(name: str) -> Path | str:
    """Return the file that the checkpoint widget names, or the id of the download.

    Raises:
        CheckpointError: there is no such file here.
    """
    from ...refine import CheckpointError

    if name in (DOWNLOAD, DOWNLOADED_MODEL):
        return DOWNLOADED_MODEL
    # A workflow saved on Windows names files in sub-folders with a backslash.
    for candidate in (name, name.replace("\\", os.sep)):
        path = folder_paths.get_full_path("checkpoints", candidate)
        if path is not None:
            return Path(path)
    raise CheckpointError(
        f'There is no checkpoint "{name}" in ComfyUI\'s checkpoints folder. Choose another one, '
        "or put the file there."
    )
