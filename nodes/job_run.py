"""What nodes that run a job over a folder share. Imported when a node runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .. import jobs
from ..files import NoFolder, NoImages, find_images
from . import host

_SHOWN_LINES = 6


def job_directory(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Return the directory of a job: the same for the same folder and settings."""
    key = [str(folder), dict(settings)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass"))
    return host.own_folder("jobs") / f"{folder.name}-{digest.hexdigest()[:8]}"


def items_of(folder: Path, recursive: bool, pattern: str) -> list[jobs.Item]:
    """Return the images of a folder, each with its path in the folder as its id.

    Raises:
        NoFolder, NoImages: there is nothing to work on.
    """
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


def summary(
    verb: str, counts: Mapping[str, Any], state: jobs.Progress | None, seconds: float
) -> list[str]:
    """Return what became of a run, the most important line first.

    Args:
        verb: such as "captioned".
        counts: of the job's report.
        state: of the run; None: there was nothing to do.
    """
    this_run = sum(state.counts.values()) if state else 0
    lines = [
        f"{counts['done']} of {counts['images']} images {verb}, {this_run} of them in "
        f"{seconds:.1f} s."
    ]
    if counts["failed"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["errors"].items())
        lines.append(f"{counts['failed']} failed ({reasons}): turn retry failed on to try again.")
    if counts["flags"]:
        flags = ", ".join(f"{count} {flag}" for flag, count in counts["flags"].items())
        lines.append(f"Look at: {flags}.")
    return [*lines, *(state.unwritten if state else ())]


def finish(
    node: type[io.ComfyNode],
    directory: Path,
    lines: Sequence[str],
    *,
    failed: bool,
    cancelled: BaseException | None = None,
    error: Exception | None = None,
) -> str:
    """Show what became of a run on its node; return its report.

    Args:
        lines: of `summary`, and notes.
        failed: whether the node should run again although no input changes.
        cancelled: raised after that is shown.
        error: what ended the run, raised with the first line.
    """
    if cancelled:
        host.show(host.node_id(node), f"cancelled: {lines[0]} Queue again to continue.")
        raise cancelled
    if error:
        error.args = (f"{error} {lines[0]} Queue again to continue.",)
        raise error
    if failed:
        host.count_failed_run(node)
    host.show(host.node_id(node), *lines[:_SHOWN_LINES])
    # As users of ComfyUI know it: user/image-refinery/...
    base = Path(folder_paths.get_user_directory()).parent
    return "\n".join([*lines, f"Report: {(directory / jobs.REPORT).relative_to(base).as_posix()}"])
