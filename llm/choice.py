"""Choose a model where nobody named one, and name others where one is missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backend import Model

AUTO = "auto"
"""In place of a model's name: choose one."""
ROOM_FACTOR = 1.25
"""What a model needs beside its weights (context, compute buffers), as a factor. An estimate."""

_VISION_NAME = re.compile(
    r"vl|vision|llava|moondream|minicpm-?v|pixtral|gemma-?[34]|internvl|molmo", re.IGNORECASE
)
"""Names of vision models, for servers that do not tell what a model can: llama-swap, vLLM."""

_last_used: dict[tuple[str, str], str] = {}
"""The model that answered last in this process, by the server's URL and the capability."""


def choose(
    models: Sequence[Model],
    capability: str,
    *,
    loaded: Collection[str] = (),
    last: str = "",
    room_bytes: int | None = None,
) -> Model | None:
    """Return a loaded model with a capability, else `last`, else the largest that fits.

    Models of which the server does not tell what they can come after those that are known to have
    the capability, first those that are named like vision models. Stand-in models come last. Where
    the room is not known, or nothing fits, it is the smallest; a cloud model needs no room, and
    comes after those that run here.

    Args:
        capability: "vision" or "completion", in Ollama's words.
        loaded: names, as in `models`.
        last: the name of the model that was used last.
        room_bytes: memory that models may take, in bytes; None: not known.
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
    """Return the models that are not known to lack a capability, without stand-ins that write."""
    writes = capability == "completion"
    return [m for m in models if not m.lacks(capability) and not (writes and m.note)]


def instead_of(models: Sequence[Model], capability: str) -> list[str]:
    """Return the names of up to three models that would do, the best known first."""
    known = sorted(able(models, capability), key=lambda m: (bool(m.note), m.capabilities is None))
    return [model.name for model in known[:3]]


def last_used(url: str, capability: str) -> str:
    """Return the name of the model that was used last, or ""."""
    return _last_used.get((url, capability), "")


def remember(url: str, capability: str, model: str) -> None:
    """Remember that a model answered."""
    _last_used[url, capability] = model
