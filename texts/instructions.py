"""Ready instructions: text files that one can pick from and add to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .wildcard_files import decode, text_files

_LONGEST_BYTES = 100_000


def ready_instructions(folders: Sequence[Path]) -> dict[str, str]:
    """Return the texts by their files' names; of two with one name the first folder's counts.

    Empty files, very long ones and those that cannot be read are left out.
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
    except OSError:  # gone, or not ours to read: the list shows what can be used
        return ""
    return decode(data).strip() if len(data) <= _LONGEST_BYTES else ""
