"""What nodes that run a job over a folder share. Imported when a node runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import folder_paths

from .. import jobs
from ..captioning.job import Job
from ..files import NoFolder, NoImages, find_images
from . import host


def job_directory(folder: Path, job: Job, settings: dict[str, Any]) -> Path:
    """Return the directory of a job: the same for the same folder and settings."""
    key = [str(folder), jobs.fingerprint(job, (), **settings)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass"))
    return host.own_folder("jobs") / f"{folder.name}-{digest.hexdigest()[:8]}"


def items_of(folder: Path, recursive: bool, pattern: str) -> list[jobs.Item]:
    try:
        found = find_images(folder, pattern=pattern, recursive=recursive)
    except NoFolder:
        raise NoFolder(
            f"There is no folder {folder}. Put your images into a folder inside ComfyUI's input "
            "folder, press R, and choose it."
        ) from None
    if not found:
        raise NoImages(
            f"No image in {folder} matches. Check folder, pattern and include subfolders."
        )
    root = folder.absolute()
    return [jobs.Item(path.absolute().relative_to(root).as_posix(), str(root)) for path in found]


def shown(file: Path) -> str:
    """A file's path as users of ComfyUI know it: user/image-refinery/..."""
    base = Path(folder_paths.get_user_directory()).parent
    return file.relative_to(base).as_posix()


def summary(counts: dict[str, Any], state: jobs.Progress | None, seconds: float) -> list[str]:
    this_run = sum(state.counts.values()) if state else 0
    lines = [
        f"{counts['done']} of {counts['images']} images captioned, {this_run} of them in "
        f"{seconds:.1f} s."
    ]
    if counts["failed"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["errors"].items())
        lines.append(f"{counts['failed']} failed ({reasons}): turn retry failed on to try again.")
    if counts["flags"]:
        flags = ", ".join(f"{count} {flag}" for flag, count in counts["flags"].items())
        lines.append(f"Look at: {flags}.")
    return [*lines, *(state.unwritten if state else ())]
