"""The inputs and outputs of the nodes that work on a folder, and where its images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from .inputs import switch, widget
from .running import failed_runs

INPUT, OUTPUT = "(input folder)", "(output folder)"
_IN_OUTPUT = " [output]"
"""ComfyUI's own mark for a file of its output folder."""


class WorksOnFolder(io.ComfyNode):
    """Base of the nodes that run a job over a folder."""

    @classmethod
    def fingerprint_inputs(
        cls, folder: Any = None, include_subfolders: Any = None, pattern: Any = None, **_: Any
    ) -> Any:
        """Changes with the list of images, and after each run that ended in a message."""
        return listing(folder, include_subfolders, pattern), failed_runs(cls)


def folder(tooltip: str) -> Any:
    """A folder in ComfyUI's input or output folder."""

    def make(id: str) -> Any:
        from ...files import subfolders

        options = [
            INPUT,
            *subfolders(_input()),
            OUTPUT,
            *(f"{name}{_IN_OUTPUT}" for name in subfolders(_output())),
        ]
        combo = io.Combo.Input(id, options=options, default=INPUT)
        more = ". Press R after adding one, or connect a String."
        return io.MultiType.Input(combo, types=[io.String], tooltip=tooltip + more)

    return widget(make, default=INPUT)


def include_subfolders() -> Any:
    """Whether the images of subfolders count."""
    return switch(False, "Include the images of subfolders.", label="include subfolders")


def pattern() -> Any:
    """Which files of a folder count."""
    tooltip = "Use only files whose names match, such as cat*.png. * matches any text."
    return widget(
        lambda id: io.String.Input(id, default="*", optional=True, tooltip=tooltip), default="*"
    )


def retry_failed() -> Any:
    """Whether failures of earlier runs are tried again."""
    return switch(
        False, "Try images again that failed in an earlier run.", label="retry failed", hide=True
    )


def outputs() -> list[Any]:
    """The images' names."""
    return [
        io.String.Output(
            display_name="names",
            is_output_list=True,
            tooltip="Name of each image inside ComfyUI's input or output folder.",
        )
    ]


def report_output() -> Any:
    """What became of the job."""
    return io.String.Output(
        display_name="report",
        tooltip="How many images are done, failed and left, and where the full report is.",
    )


def path_of(name: str) -> Path:
    """Return the folder that the widget names.

    Raises:
        OutsideFolder: the name leads out of ComfyUI's input or output folder.
    """
    from ...files import inside

    if name == OUTPUT:
        return _output()
    if name.endswith(_IN_OUTPUT):
        return inside(_output(), name.removesuffix(_IN_OUTPUT))
    return inside(_input(), "." if name == INPUT else name)


def refined(name: str) -> Path:
    """Return the folder for the refined images of a job."""
    return _output().absolute() / "refined" / name


def choice_of(folder: Path) -> str:
    """Return how the folder widget names a folder of ComfyUI's output folder."""
    return f"{folder.relative_to(_output().absolute()).as_posix()}{_IN_OUTPUT}"


def name_of(image: Path) -> str:
    """Return an image's name inside ComfyUI's input or output folder, as other nodes take it."""
    folder = _output() if image.is_relative_to(_output()) else _input()
    return image.relative_to(folder.absolute()).as_posix()


def listing(
    folder: Sequence[Any] | None, recursive: Sequence[Any] | None, pattern: Sequence[Any] | None
) -> float:
    """Return a value that changes with the list of images; for `fingerprint_inputs`."""
    from ...files import find_images

    try:
        assert folder
        found = find_images(
            path_of(str(folder[0])),
            recursive=bool(recursive and recursive[0]),
            pattern=str(pattern[0]) if pattern else "*",
        )
    except (AssertionError, OSError, ValueError):
        return float("nan")  # linked, or the run reports what is wrong
    return float(hash(tuple(map(str, found))))


def _input() -> Path:
    return Path(folder_paths.get_input_directory())


def _output() -> Path:
    return Path(folder_paths.get_output_directory())
