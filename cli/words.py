"""`image-refinery words`: the words that ComfyUI saved in an image."""

from __future__ import annotations

import argparse
import json
import sys

from ..files.images import UnreadableImage
from ..files.words import Words, read_words
from .terminal import failed

_MODELS = {"description": "vision_model", "refined_output": "text_model", "text": "text_model"}


def words(options: argparse.Namespace) -> int:
    """Print the words in each file; return 1 if a file has none, or cannot be read."""
    wrong = False
    for path in options.images:
        try:
            found = read_words(path)
        except UnreadableImage as error:
            failed(error)
            wrong = True
            continue
        if not found:
            print(f"{path} has no words of this pack.", file=sys.stderr)
            wrong = True
        if options.json:
            print(json.dumps({"image": str(path), "nodes": found}, ensure_ascii=False))
            continue
        if len(options.images) > 1:
            print(f"== {path}")
        for id, entry in found.items():
            _print(id, entry)
    return 1 if wrong else 0


def _print(id: str, words: Words) -> None:
    for output, model in _MODELS.items():
        texts = words.get(output, [])
        by = ", ".join(name for name in words.get(model, []) if name)
        for index, text in enumerate(texts):
            number = f" {index + 1} of {len(texts)}" if len(texts) > 1 else ""
            print(f"[node {id}, {output}{number}{f', {by}' if by else ''}]")
            print(text or "(missing: it failed)", end="\n\n")
