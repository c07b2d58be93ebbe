"""Find the CLIP vocabulary: a checkpoint file has the text encoder, but not its vocabulary."""

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
    """Return a folder with vocab.json and merges.txt, without using the network.

    Searches in this order: the caller's folder, the folder beside the checkpoint with the same
    name, ComfyUI's own copy, the Hugging Face cache.

    Args:
        checkpoint: The single checkpoint file that needs the vocabulary.
        given: The caller's folder with both files, or None.

    Raises:
        VocabularyError: none of these folders has both files.
    """
    beside = checkpoint.with_suffix("")
    folders = [
        given,
        beside / "tokenizer_2",
        beside / "tokenizer",
        beside,
        *_comfyui_copies(),
    ]
    for folder in folders:
        if folder is not None and has_tokenizer_files(folder):
            return folder
        if folder is not None and folder == given:
            raise VocabularyError(
                f"{given} does not have vocab.json and merges.txt: check the folder."
            )
    cached = _hub_copy()
    if cached is not None:
        return cached
    raise VocabularyError(
        f"No CLIP vocabulary was found for {checkpoint.name}: put vocab.json and merges.txt "
        f"(ComfyUI has both in comfy/sd1_tokenizer) into {beside / 'tokenizer_2'}."
    )


def has_tokenizer_files(folder: Path) -> bool:
    """Return whether a folder has both files of the vocabulary."""
    return all((folder / name).is_file() for name in _FILES)


def _comfyui_copies() -> list[Path]:
    """Return ComfyUI's folders with the vocabulary: the running one's, then an installed one's."""
    folders = []
    comfy = sys.modules.get("comfy")
    # comfy is a namespace package: it has a __path__, but no __file__.
    folders += [Path(entry) for entry in getattr(comfy, "__path__", ())]
    root = os.environ.get("COMFYUI_PATH")
    folders += [Path(root) / "comfy"] if root else []
    folders.append(Path.home() / "comfy" / "ComfyUI" / "comfy")
    return [folder / "sd1_tokenizer" for folder in folders]


def _hub_copy() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo_id, folder in _HUB_COPIES:
        found = try_to_load_from_cache(repo_id, f"{folder}/vocab.json".lstrip("/"))
        if isinstance(found, str) and has_tokenizer_files(Path(found).parent):
            return Path(found).parent
    return None
