"""The running node: its id, the user's cancel, and how often it failed."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

import comfy.model_management
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context


def interrupted() -> bool:
    """Whether the user pressed cancel; leaves the flag for `stop`."""
    return comfy.model_management.processing_interrupted()


def stop() -> NoReturn:
    """End the node as a cancelled one, and clear the flag."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    raise comfy.model_management.InterruptProcessingException


def node_id(node: type[io.ComfyNode]) -> str | None:
    """The id of the running node in its graph; None outside a graph."""
    return None if node.hidden is None else node.hidden.unique_id


_failed_runs: Counter[tuple[str, str | None]] = Counter()
"""Runs that ended in a message, since ComfyUI started, by node class and node id."""


def count_failed_run(node: type[io.ComfyNode]) -> None:
    """The running node ended in a message."""
    _failed_runs[_failure_key(node)] += 1


def failed_runs(node: type[io.ComfyNode]) -> int:
    """How often this node of the graph ended in a message.

    ComfyUI puts it into the cache key of the node and of all that follow it, so a count that nodes
    shared would make one failure run every other node again.
    """
    return _failed_runs[_failure_key(node)]


def _failure_key(node: type[io.ComfyNode]) -> tuple[str, str | None]:
    # Not `hidden.unique_id`: ComfyUI 0.3.64 has none when it asks for a fingerprint.
    context = get_executing_context()
    return node.__name__, None if context is None else context.node_id
