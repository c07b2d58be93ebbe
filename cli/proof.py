"""A proof: what `image-refinery prove` knows so far, and the files that it writes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .._setup import scrub
from .._version import __version__
from ..files.whole import written_whole
from ..memory.timeline import Timeline, meter_of
from ..texts import ready_instructions
from ..texts.characters import whole_characters
from .prove_page import page_of, texts_of
from .prove_photos import DAMAGE, Photo

SCHEMA = 1
JSON_FILE, PAGE_FILE = "proof.json", "index.html"
INSTRUCTIONS = ready_instructions([Path(__file__).resolve().parent.parent / "instructions"])[
    "Prompt for refining"
]
_PACKAGES = ("torch", "diffusers", "transformers", "xllamacpp")


class Proof:
    """What is known so far: what `proof.json` holds, and the images of the page."""

    def __init__(self, folder: Path, photos: Sequence[Photo], device: str) -> None:
        self.folder = folder
        self.photos = photos
        self.device = device
        self.meter = meter_of(device)
        self.timeline = Timeline(self.meter.used)
        self.missing: list[str] = []
        self.models: dict[str, dict[str, Any]] = {}
        self.peaks: list[dict[str, Any]] = []
        self.images: dict[int, list[str]] = {}
        self.rows: list[dict[str, Any]] = [
            {"photo": scrub(photo.path.name), "license": photo.license, "errors": [], "seconds": {}}
            for photo in photos
        ]

    def miss(self, text: str) -> None:
        """Note what is missing, in one sentence, and print it; "" is nothing."""
        if text:
            self.missing.append(text)
            print(text, file=sys.stderr)

    def is_stand_in(self, part: str) -> bool:
        """Return whether a part ("vision", "text", "refiner") was done by a stand-in model."""
        return bool(self.models.get(part, {}).get("stand_in"))

    def summary(self) -> str:
        """Return how many photographs are done."""
        refined = sum("refined" in row or "refined_by_stand_in" in row for row in self.rows)
        described, rewritten = (
            sum(name in texts_of(row) for row in self.rows) for name in ("description", "rewrite")
        )
        return (
            f"{described} of {len(self.rows)} photographs described, {rewritten} rewritten, "
            f"{refined} refined."
        )

    def as_json(self) -> dict[str, Any]:
        """Return what is handed in: no path, no address, no name of a person or machine."""
        return {
            "schema": SCHEMA,
            "software": f"image-refinery {__version__}",
            "date": time.strftime("%Y-%m-%d"),
            "system": _system(),
            "gpu": _gpu(self.device),
            "missing": [scrub(text) for text in self.missing],
            "models": self.models,
            "instructions": INSTRUCTIONS,
            "damage": DAMAGE,
            "photos": self.rows,
            "memory": {"of": self.meter.of, "total_bytes": self.meter.total_bytes},
            "timeline": [vars(period) for period in self.timeline.periods],
            "samples": self.timeline.curve(),
            "peaks": self.peaks,
        }

    def write(self) -> None:
        """Write both files.

        Raises:
            OSError: they cannot be written.
        """
        proof = self.as_json()
        # A line for each part: an indented curve would have a thousand lines.
        lines = ",\n".join(
            f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
            for name, value in proof.items()
        )
        with written_whole(self.folder / JSON_FILE) as file:
            file.write(whole_characters(f"{{\n{lines}\n}}\n"))
        with written_whole(self.folder / PAGE_FILE) as file:
            file.write(page_of(proof, self.images))


def _system() -> dict[str, Any]:
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "os": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _gpu(device: str) -> dict[str, Any] | None:
    if device == "cpu":
        return None
    if device == "mps":
        return {"name": "Apple Metal", "memory_bytes": None}
    import torch

    properties = getattr(torch, device).get_device_properties(0)
    name = properties.name.encode("ascii", "ignore").decode()
    return {"name": scrub(name), "memory_bytes": int(properties.total_memory)}
