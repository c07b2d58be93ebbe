"""Where the CLIP vocabulary is: a checkpoint file holds the text encoder, but not its words."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import VocabularyError

_FILES = ("vocab.json", "merges.txt")
_HUB_COPIES = (
    ("stabilityai/stable-diffusion-xl-refiner-1.0", "tokenizer_2"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer_2"),
    ("openai/clip-vit-large-patch14", ""),
)


def find_tokenizer_files(checkpoint: Path, given: Path | None = None) -> Path:
    """Return a folder that holds vocab.json and merges.txt; nothing is asked of the network.

    Looked at in this order: the folder that the caller names, the folder beside the checkpoint
    that bears its name, ComfyUI's own copy, the model hub's cache.

    Args:
        checkpoint: The single checkpoint file that needs the vocabulary.
        given: A folder that the caller knows to hold it.

    Raises:
        VocabularyError: none of these places holds both files.
    """
    beside = checkpoint.with_suffix("")
    places = [
        given,
        beside / "tokenizer_2",
        beside / "tokenizer",
        beside,
        *_comfyui_copies(),
    ]
    for place in places:
        if place is not None and holds_tokenizer_files(place):
            return place
        if place is not None and place == given:
            raise VocabularyError(f"{given} holds no vocab.json and merges.txt: check the folder.")
    cached = _hub_copy()
    if cached is not None:
        return cached
    raise VocabularyError(
        f"No CLIP vocabulary was found for {checkpoint.name}: put vocab.json and merges.txt "
        f"(ComfyUI has both in comfy/sd1_tokenizer) into {beside / 'tokenizer_2'}."
    )


def holds_tokenizer_files(folder: Path) -> bool:
    """Say whether a folder holds both files of the vocabulary."""
    return all((folder / name).is_file() for name in _FILES)


def _comfyui_copies() -> list[Path]:
    """Folders where ComfyUI keeps the vocabulary: the running one's, then an installed one's."""
    places = []
    comfy = sys.modules.get("comfy")
    # comfy is a namespace package: it has a __path__, but no __file__.
    places += [Path(entry) for entry in getattr(comfy, "__path__", ())]
    root = os.environ.get("COMFYUI_PATH")
    places += [Path(root) / "comfy"] if root else []
    places.append(Path.home() / "comfy" / "ComfyUI" / "comfy")
    return [place / "sd1_tokenizer" for place in places]


def _hub_copy() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo_id, folder in _HUB_COPIES:
        found = try_to_load_from_cache(repo_id, f"{folder}/vocab.json".lstrip("/"))
        if isinstance(found, str) and holds_tokenizer_files(Path(found).parent):
            return Path(found).parent
    return None
