"""What an action gave back."""

from __future__ import annotations

from dataclasses import dataclass

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Freed:
    """How many bytes were given back, and by what; 0 bytes: there was nothing to give back."""

    what: str
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.what}: {readable(self.bytes)}"


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
