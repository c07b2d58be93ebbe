"""Report how much memory an action freed."""

from __future__ import annotations

import logging
from typing import NamedTuple

_UNITS = ("B", "kB", "MB", "GB", "TB")


class Freed(NamedTuple):
    """How many bytes of what were freed; 0 bytes: there was nothing to free."""

    what: str
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.what}: {readable(self.bytes)}"


def log_freed(log: logging.Logger, *parts: Freed) -> None:
    """Log what was freed, if anything was."""
    if freed := [str(part) for part in parts if part.bytes]:
        log.info("Image Refinery freed %s", "; ".join(freed))


def readable(count: int) -> str:
    """
    >>> readable(0), readable(999), readable(4_520_000_000)
    ('0 B', '999 B', '4.52 GB')
    """
    size = float(count)
    for unit in _UNITS:
        if abs(size) < 1000 or unit == _UNITS[-1]:
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
