"""The errors of a refinement.

RefineError
  SettingsError        a setting is out of range, or the settings leave nothing to do
  ImageError           the image or the mask cannot be refined as it is
  CheckpointError      the weights are missing, damaged, or of a kind that cannot refine
    VocabularyError    no CLIP vocabulary was found
    HubError           Hugging Face could not be reached, or refuses the download
  DeviceMemoryError    memory ran out after every fallback
  NotFiniteError       the model produced NaN or infinity
  SplatError           the splat, or its file, cannot be read or used

RefineCancelled is not a RefineError: the caller asked to stop.

Each class has a code from R401 on, which docs/errors.md explains. Nodes and commands show it.
Every message is one sentence that says what failed, why, and what to do.
"""

from __future__ import annotations


class RefineError(Exception):
    """Base of everything that the refiner raises on purpose."""

    code = ""


class SettingsError(RefineError, ValueError):
    """A setting is out of range, or the settings leave no step to run."""

    code = "R401"


class ImageError(RefineError, ValueError):
    """The image or the mask is of a kind, shape or range that cannot be refined."""

    code = "R402"


class CheckpointError(RefineError):
    """The weights are missing, damaged, or belong to a model that cannot refine images."""

    code = "R403"


class VocabularyError(CheckpointError):
    """The CLIP vocabulary, which a single checkpoint file lacks, was not found."""

    code = "R404"


class HubError(CheckpointError):
    """Hugging Face could not be reached, or it refuses the download."""

    code = "R405"


class DeviceMemoryError(RefineError):
    """Memory ran out even in the mode that needs the least."""

    code = "R406"


class NotFiniteError(RefineError):
    """The model produced NaN or infinity instead of an image."""

    code = "R407"


class SplatError(RefineError, ValueError):
    """A splat is damaged, empty, or no splat at all."""

    code = "R408"


class RefineCancelled(Exception):
    """The caller asked to stop; nothing is left running."""


PER_IMAGE_ERRORS = (ImageError, NotFiniteError, DeviceMemoryError)
"""Errors that may affect only one image of a call."""
