"""Whether the embedded engine can run here."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

from ..._program import install


def why_unavailable() -> str:
    """Return one sentence on why the engine cannot run and what to do, or "" when it can."""
    if importlib.util.find_spec("xllamacpp"):
        return ""
    return (
        "The embedded engine needs the package xllamacpp, which is not installed. Install it with: "
        f"{install('xllamacpp')}"
    )


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the engine can run here; looks for the package without importing it."""
    return not why_unavailable()
