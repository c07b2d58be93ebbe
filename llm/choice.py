"""Choose a model for "auto", and suggest other models if one is missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import Model

AUTO = "auto"
"""The model name that means: choose one."""
ROOM_FACTOR = 1.25
"""A model's memory divided by its weights; the rest is context and compute buffers. An estimate."""

_VISION_NAME = re.compile(
    r"vl|vision|llava|moondream|minicpm-?v|pixtral|gemma-?[34]|internvl|molmo", re.IGNORECASE
)
"""Names of vision models, for servers that do not report capabilities: llama-swap, vLLM."""

_last_used: dict[tuple[str, str], str] = {}
"""The model that answered last in this process, by server URL and capability."""


def choose(
    models: Sequence[Model],
    capability: str,
    *,
    loaded: Collection[str] = (),
    last: str = "",
    room_bytes: int | None = None,
) -> Model | None:
    """Return a loaded model with a capability, else `last`, else the largest that fits.

    Models of unknown capabilities come after those that are known to have the capability; among
    them, names of vision models come first. Stand-in models come last. If the available memory is
    not known, or nothing fits, the smallest model wins. A cloud model needs no memory, and comes
    after the models that run here.

    Args:
        capability: "vision" or "completion", by Ollama's names.
        loaded: names, as in `models`.
        last: the name of the model that was used last.
        room_bytes: memory that models may use, in bytes; None: not known.
    """

    def order(model: Model) -> tuple[object, ...]:
        size = model.size_bytes or 0
        fits = room_bytes is not None and size * ROOM_FACTOR <= room_bytes
        return (
            bool(model.note),
            model.capabilities is None,
            model.capabilities is None and capability == "vision" and not _names_vision(model),
            model.name not in loaded,
            model.name != last,
            bool(model.remote_host),
            not fits,
            -size if fits else size,
            model.name,
        )

    return min(able(models, capability), key=order, default=None)


def _names_vision(model: Model) -> bool:
    return _VISION_NAME.search(model.name) is not None


def able(models: Sequence[Model], capability: str) -> list[Model]:
    """Return models that are not known to lack a capability; stand-in models only for vision."""
    writes = capability == "completion"
    return [m for m in models if not m.lacks(capability) and not (writes and m.note)]


def instead_of(models: Sequence[Model], capability: str) -> list[str]:
    """Return the names of up to three suitable models, those with known capabilities first."""
    known = sorted(able(models, capability), key=lambda m: (bool(m.note), m.capabilities is None))
    return [model.name for model in known[:3]]


def last_used(url: str, capability: str) -> str:
    """Return the name of the model that was used last, or ""."""
    return _last_used.get((url, capability), "")


def remember(url: str, capability: str, model: str) -> None:
    """Remember that a model answered."""
    _last_used[url, capability] = model
