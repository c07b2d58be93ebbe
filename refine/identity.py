"""Tell checkpoints apart without reading all of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from .errors import CheckpointError
from .hugging_face import fetch, is_repo_id, not_a_model

_PARTS = 16
_PART_BYTES = 2**16
"""A digest reads this much at so many places of a file: finetunes differ in all their weights."""


def identify(model: str | Path) -> dict[str, str | int]:
    """Return what differs between two checkpoints, by names that begin with "checkpoint".

    A file or folder has its name, its bytes and a digest; its folder does not matter. A Hugging
    Face id has its revision, for which it is downloaded if it is missing.

    Raises:
        CheckpointError: there is no such model, or it cannot be read or downloaded.
    """
    path = Path(model).expanduser().absolute()
    try:
        if path.is_dir():
            files = [*path.glob("*.json"), *path.glob("*/*.json"), *path.glob("*/*.safetensors")]
        elif path.is_file():
            # JSON in a folder beside it overrides that of the package.
            beside = path.with_suffix("")
            files = [path, *beside.glob("*.json"), *beside.glob("*/*.json")]
        elif is_repo_id(str(model)):
            folder = fetch(str(model), local_files_only=False)
            return {"checkpoint": str(model), "checkpoint_revision": folder.name}
        else:
            raise not_a_model(model)
        return {
            "checkpoint": path.name,
            "checkpoint_bytes": sum(file.stat().st_size for file in files),
            "checkpoint_digest": _digest(sorted(files)),
        }
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error


def _digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        last = max(0, file.stat().st_size - _PART_BYTES)
        with file.open("rb") as opened:
            for part in range(_PARTS):
                opened.seek(last * part // (_PARTS - 1))
                found.update(opened.read(_PART_BYTES))
    return found.hexdigest()[:12]
