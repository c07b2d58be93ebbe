"""How many tokens a text has for ComfyUI's text encoders."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

CLIP_TOKENS = 75
"""Tokens of a prompt that CLIP reads at a time: its 77 positions without begin and end."""

Tokenizer = Callable[..., dict[str, Any]]


def token_line(texts: Sequence[str]) -> str:
    """Return how long texts are, as a line for the node; "" where no tokenizer can be had.

    CLIP's tokens do not count begin and end, T5's do not count the end.
    """
    counts: list[str] = []
    # Whatever a tokenizer of another release raises: the run's texts are more than their length.
    with contextlib.suppress(Exception):
        counts = _counts(texts)
    return f"Tokens: {', '.join(counts)}." if counts else ""


def _counts(texts: Sequence[str]) -> list[str]:
    counts: list[str] = []
    for model, tokenizer, marks in (("CLIP", _clip(), 2), ("T5", _t5(), 1)):
        if tokenizer is not None and texts:
            lengths = [len(tokenizer(text, verbose=False)["input_ids"]) - marks for text in texts]
            least, most = min(lengths), max(lengths)
            counts.append(f"{model} {most}" if least == most else f"{model} {least} to {most}")
            if model == "CLIP" and most > CLIP_TOKENS:
                counts[-1] += f" (it reads {CLIP_TOKENS} at a time)"
    return counts


@cache
def _clip() -> Tokenizer | None:
    try:
        from comfy.sd1_clip import SDTokenizer

        return SDTokenizer().tokenizer
    except Exception as error:  # noqa: BLE001 (another release, or without its files)
        log.info("CLIP's tokens are not counted (%s).", error)
        return None


@cache
def _t5() -> Tokenizer | None:
    try:
        from comfy.text_encoders.sd3_clip import T5XXLTokenizer

        return T5XXLTokenizer().tokenizer
    except Exception as error:  # noqa: BLE001 (as above)
        log.info("T5's tokens are not counted (%s).", error)
        return None
