"""Errors that a user sees: with their code, and the last ten for Check Setup."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from comfy_api.latest import io

from ..._advice import with_code
from .progress import show
from .running import node_id

T = TypeVar("T")


class RecentError(NamedTuple):
    """What is kept of an error: no message, which may quote a prompt, a path or an address.

    Attributes:
        at: seconds since 1970.
        node: the node's class.
    """

    at: float
    node: str
    code: str
    name: str


recent_errors: deque[RecentError] = deque(maxlen=10)
"""The last errors that nodes of this pack showed, oldest first."""


def note_error(node: type[io.ComfyNode], error: Exception) -> None:
    """Keep the code of an error that `node` shows; errors without a code are not the pack's."""
    if code := getattr(error, "code", ""):
        name = node.__name__.removesuffix("Clone")  # ComfyUI runs a class derived from the node's
        recent_errors.append(RecentError(time.time(), name, code, type(error).__name__))


def shows_errors(method: Callable[..., T]) -> Callable[..., T]:
    """Let errors of the pack that leave a node's method end with their code, and note them."""

    @functools.wraps(method)
    def run(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> T:
        try:
            return method(cls, *args, **inputs)
        except Exception as error:
            if getattr(error, "code", ""):
                error.args = (with_code(error),)
                note_error(cls, error)
                show(node_id(cls), f"Error: {error}")
            raise

    return run
