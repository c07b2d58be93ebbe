"""Where the pack and the user keep files."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...llm.servers import CONFIG_NAME

PACK_FOLDER = Path(__file__).resolve().parents[2]


def config_file() -> Path:
    """image-refinery.toml beside the folders of ComfyUI's users, where no route serves it."""
    return Path(folder_paths.get_user_directory()) / CONFIG_NAME


def own_folder(name: str) -> Path:
    """A folder for the user's files of this pack, beside the folders of ComfyUI's users."""
    return Path(folder_paths.get_user_directory()) / "image-refinery" / name
