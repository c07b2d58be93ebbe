"""Refine images with checkpoints of the SDXL family: plain Python, no ComfyUI.

Importing this package imports neither torch nor diffusers; the names below are fetched on first
use, so that a node pack can be listed, or the command line can print its help, at no cost.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints import CheckpointInfo as CheckpointInfo
    from .checkpoints import read_checkpoint as read_checkpoint
    from .components import Components as Components
    from .errors import (
        CheckpointError as CheckpointError,
    )
    from .errors import (
        DeviceMemoryError as DeviceMemoryError,
    )
    from .errors import (
        HubError as HubError,
    )
    from .errors import (
        ImageError as ImageError,
    )
    from .errors import (
        NotFiniteError as NotFiniteError,
    )
    from .errors import (
        RefineCancelled as RefineCancelled,
    )
    from .errors import (
        RefineError as RefineError,
    )
    from .errors import (
        SettingsError as SettingsError,
    )
    from .errors import (
        VocabularyError as VocabularyError,
    )
    from .image_refiner import DEFAULT_MODEL as DEFAULT_MODEL
    from .image_refiner import ImageRefiner as ImageRefiner
    from .progress import Progress as Progress
    from .residency import LocalResidency as LocalResidency
    from .residency import Residency as Residency
    from .settings import RefineSettings as RefineSettings
    from .settings import count_steps as count_steps

_HOMES = {
    "CheckpointError": "errors",
    "CheckpointInfo": "checkpoints",
    "DEFAULT_MODEL": "image_refiner",
    "DeviceMemoryError": "errors",
    "HubError": "errors",
    "ImageError": "errors",
    "ImageRefiner": "image_refiner",
    "LocalResidency": "residency",
    "NotFiniteError": "errors",
    "Components": "components",
    "Progress": "progress",
    "RefineCancelled": "errors",
    "RefineError": "errors",
    "RefineSettings": "settings",
    "Residency": "residency",
    "SettingsError": "errors",
    "VocabularyError": "errors",
    "count_steps": "settings",
    "read_checkpoint": "checkpoints",
}

__all__ = [
    "DEFAULT_MODEL",
    "CheckpointError",
    "CheckpointInfo",
    "Components",
    "DeviceMemoryError",
    "HubError",
    "ImageError",
    "ImageRefiner",
    "LocalResidency",
    "NotFiniteError",
    "Progress",
    "RefineCancelled",
    "RefineError",
    "RefineSettings",
    "Residency",
    "SettingsError",
    "VocabularyError",
    "count_steps",
    "read_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
