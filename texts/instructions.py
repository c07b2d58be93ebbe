"""Ready instructions: text files to choose from, to which users can add their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .wildcard_files import decode, text_files

_LONGEST_BYTES = 100_000


def ready_instructions(folders: Sequence[Path]) -> dict[str, str]:
    """Return the texts by their files' names; if names are equal, the first folder wins.

    Empty, very long and unreadable files are left out.
    """
    found: dict[str, str] = {}
    for folder in folders:
        for name, path in text_files(folder):
            if name not in found and (text := _read(path)):
                found[name] = text
    return dict(sorted(found.items(), key=lambda entry: entry[0].lower()))


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:  # deleted, or no permission: list only usable files
        return ""
    return decode(data).strip() if len(data) <= _LONGEST_BYTES else ""
