"""Where the pack and the user keep files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from ...llm.servers import CONFIG_NAME

if TYPE_CHECKING:
    from ...captioning.kept import KeptAnswers
    from ...llm.llamacpp.places import Place

PACK_FOLDER = Path(__file__).resolve().parents[2]


def config_file() -> Path:
    """image-refinery.toml beside the folders of ComfyUI's users, where no route serves it."""
    return Path(folder_paths.get_user_directory()) / CONFIG_NAME


def gguf_places() -> list[Place]:
    """Where node packs keep language models as GGUF files, extra_model_paths.yaml included."""
    from ...llm.llamacpp.places import Place, comfyui_places, read_folder

    places = {place.path: place for place in comfyui_places(Path(folder_paths.models_dir))}
    for kind in ("LLM", "llm_gguf", "text_encoders"):
        paths: list[str] = folder_paths.folder_names_and_paths.get(kind, ([], set()))[0]
        for path in map(Path, paths):
            places.setdefault(path, Place(path, f"ComfyUI {kind}", read_folder))
    return list(places.values())


def own_folder(name: str) -> Path:
    """A folder or file of the user's for this pack, beside the folders of ComfyUI's users."""
    return Path(folder_paths.get_user_directory()) / "image-refinery" / name


def kept_answers() -> AbstractContextManager[KeptAnswers | None]:
    """The answers of earlier runs; None if the user does not want them kept."""
    from ...captioning.kept import FILE_NAME, open_answers

    return open_answers(own_folder(FILE_NAME), config=config_file())
