"""Models in the words of Ollama's lists."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from .engine import Loaded
from .library import Model


def timestamp(when: datetime) -> str:
    """Return a moment the way Go writes it, in UTC."""
    return when.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def identity(model: Model) -> dict[str, Any]:
    """Return what /api/tags and /api/ps say alike."""
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def tag_entry(model: Model) -> dict[str, Any]:
    """Return the model's entry in /api/tags."""
    modified = datetime.fromtimestamp(model.modified, timezone.utc)
    return {
        **identity(model),
        "modified_at": timestamp(modified),
        "capabilities": model.capabilities,
    }


def loaded_entry(loaded: Loaded) -> dict[str, Any]:
    """Return the model's entry in /api/ps."""
    return {
        **identity(loaded.model),
        "size": loaded.size,
        "expires_at": timestamp(loaded.expires_at),
        "size_vram": loaded.size_vram,
        "context_length": loaded.context_length,
    }


def shown_model(model: Model) -> dict[str, Any]:
    """Return the answer of /api/show."""
    tag = tag_entry(model)
    shown: dict[str, Any] = {key: tag[key] for key in ("details", "modified_at", "capabilities")}
    info = {**model.header.metadata, "general.parameter_count": model.header.parameters}
    template = info.pop("tokenizer.chat_template", "")
    shown |= {"parameters": "", "template": template, "model_info": info}
    if model.projector:
        shown["projector_info"] = model.projector.metadata
    return shown
