"""Refine images with checkpoints of the SDXL family: plain Python, no ComfyUI.

Importing this package imports torch; diffusers and transformers are imported when a checkpoint is
loaded.
"""

from .batch import Batch
from .checkpoints import CheckpointInfo, read_checkpoint
from .components import Components
from .errors import (
    CheckpointError,
    DeviceMemoryError,
    HubError,
    ImageError,
    NotFiniteError,
    RefineCancelled,
    RefineError,
    SettingsError,
    SplatError,
    VocabularyError,
)
from .image_refiner import DEFAULT_MODEL, ImageRefiner, enlarge_items
from .plan import TilePrompts, plan_tiles
from .progress import Progress
from .residency import LocalResidency, Residency
from .settings import RefineSettings, count_steps

__all__ = [
    "DEFAULT_MODEL",
    "Batch",
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
    "SplatError",
    "TilePrompts",
    "VocabularyError",
    "count_steps",
    "enlarge_items",
    "plan_tiles",
    "read_checkpoint",
]
