"""Schemas for every supported ComfyUI."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """Return a Schema of those fields that this ComfyUI knows (0.3.64 lacks `search_aliases`)."""
    return io.Schema(**{key: value for key, value in fields.items() if key in _FIELDS})
