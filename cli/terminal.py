"""What a person at a terminal can do about an error."""

from __future__ import annotations

from .._advice import Edge, with_advice
from ..llm.errors import LLMError

TERMINAL = Edge(again="run the command again")


def message(error: LLMError) -> str:
    """Return an error's sentence, and what to do about it at a terminal."""
    return with_advice(error, TERMINAL)
