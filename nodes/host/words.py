"""The words of a run in what ComfyUI saves of it: images' metadata, and the node's properties."""

from __future__ import annotations

import json
import logging
from typing import Any, cast

from comfy_api.latest import io

from ...files.words import Words
from .running import node_id

log = logging.getLogger(__name__)

MAX_BYTES = 20_000
"""About 15 images. They are in a file twice, and EXIF, where some nodes put them, ends at 64 kB."""


def record_words(node: type[io.ComfyNode], words: Words) -> Words:
    """Put the words of a run where SaveImage writes them into its file; return them with `node`.

    A page that opens the file then has them in the node's properties. Words of many images are left
    out: each image of the run would have them all.
    """
    from ...files.words import KEY, find_node

    info, id = _saved(node), node_id(node)
    if len(json.dumps(words)) > MAX_BYTES:
        log.info("The words of this run are too many to be saved in its images.")
        words = {}
    words = {"node": [id], **words}
    if info is None or id is None:
        return words
    info.setdefault(KEY, {})[id] = words
    if (saved := find_node(info.get("workflow"), id)) is not None:
        saved.setdefault("properties", {})[KEY] = words
    return words


def recorded_words(node: type[io.ComfyNode]) -> Words:
    """Return the words in the node's properties; {} if there are none."""
    from ...files.words import KEY, as_words, find_node

    info, id = _saved(node), node_id(node)
    if info is None or id is None or (saved := find_node(info.get("workflow"), id)) is None:
        return {}
    words = as_words(saved.get("properties", {}).get(KEY))
    # All copies of a subgraph share the properties of its nodes: these may be of another copy.
    return {} if ":" in id and words.get("node") != [id] else words


def _saved(node: type[io.ComfyNode]) -> dict[str, Any] | None:
    """The metadata of all images of this run; None where the prompt came without any."""
    info = getattr(node.hidden, "extra_pnginfo", None)
    return cast("dict[str, Any]", info) if isinstance(info, dict) else None
