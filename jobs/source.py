"""Where images are that are no files on a disk."""

from __future__ import annotations

from typing import Protocol

MAX_IMAGE_BYTES = 2**30
"""Read at most: a file of this size is no image that a model could use."""


class BadInputList(Exception):
    """An input of a job cannot be read, or two of its images have the same id."""

    code = "R510"


class Source(Protocol):
    """Reads images that are no files on a disk."""

    def read(self, id: str) -> bytes:
        """Return the image file.

        Raises:
            UnreadableImage: it cannot be read.
        """
        ...

    def caption(self, id: str) -> bytes:
        """Return the caption file beside it; b"" if there is none."""
        ...
