"""How a command ends, and what a person at a terminal can do about an error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .._advice import Edge, with_advice, with_code
from ..files.folders import IMAGE_SUFFIXES
from ..llm.errors import LLMError

TERMINAL = Edge(again="run the command again")
DESCRIBE = Edge(again=TERMINAL.again, flags=("num_predict",))
FAILED, WRONG_ARGUMENTS, CANCELLED = 1, 2, 130
"""Exit codes."""
FILES_READ = f"Files that are read: {', '.join(sorted(IMAGE_SUFFIXES))}."


def message(error: LLMError, edge: Edge = TERMINAL) -> str:
    """Return an error's sentence, what to do about it at a terminal, and its code."""
    return with_advice(error, edge)


def failed(error: Exception, text: str = "") -> int:
    """Print an error's message, or `text`, and its code; return the exit code."""
    print(f"Error: {with_code(error, text)}", file=sys.stderr)
    return FAILED


def about_existing(files: Sequence[Path]) -> str:
    """Return that a command would replace these files, and what to do."""
    more = len(files) - 1
    exist = f"and {more} more exist" if more else "exists"
    return (
        f"{files[0]} {exist} already. Add --skip-existing to leave out such images, or "
        "--overwrite to replace the files."
    )


def cancelled(done: str = "") -> int:
    """Print that Ctrl-C ended the command, and what was done before; return the exit code."""
    print(f"Cancelled: {done}" if done else "Cancelled.", file=sys.stderr)
    return CANCELLED
