"""The words of a run in an image that ComfyUI saved, or in a workflow."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .images import UnreadableImage, opened

if TYPE_CHECKING:
    from PIL import Image

KEY = "image_refinery"
"""The entry of an image's metadata, and the property of a node, that has the words."""

Words = dict[str, list[str | None]]
"""Texts by the names of outputs, one per image (None: it failed); `vision_model` and `text_model`;
and `node`, the id of the node that wrote them."""


def read_words(path: Path) -> dict[str, Words]:
    """Return the words in a PNG or WebP image, or in a workflow file, by the ids of nodes.

    Raises:
        UnreadableImage: the file is neither, or cannot be read.
    """
    if path.suffix.lower() != ".json":
        with opened(path) as image:
            return words_of(_texts_in(image))
    try:
        return words_of({"workflow": path.read_text("utf-8")})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImage(f"{path} cannot be read ({reason}).") from error


def words_of(metadata: Mapping[str, Any]) -> dict[str, Words]:
    """Return the words in the texts of an image, by the ids of nodes."""
    found: dict[str, Words] = {}
    for node in _nodes(_json(metadata.get("workflow"))):
        words = as_words(_dict(node.get("properties")).get(KEY))
        if words:
            found[(words.get("node") or [None])[0] or str(node.get("id"))] = words
    # What the run itself left is newer than what the page sent with it.
    for id, value in _dict(_json(metadata.get(KEY))).items():
        if words := as_words(value):
            found[id] = words
    return found


def find_node(workflow: Any, id: str) -> dict[str, Any] | None:
    """Return the node of a workflow by its id; "12:5" is node 5 in the subgraph of node 12."""
    graph = _dict(workflow)
    definitions = _dicts(_dict(graph.get("definitions")).get("subgraphs"))
    found: dict[str, Any] | None = None
    for part in id.split(":"):
        nodes = _dicts(graph.get("nodes"))
        found = next((node for node in nodes if str(node.get("id")) == part), None)
        if found is None:
            return None
        kind = found.get("type")
        graph = next((one for one in definitions if one.get("id") == kind), {})
    return found


def as_words(value: Any) -> Words:
    """Return what is a list of texts in `value`, by its names."""
    return {
        name: texts
        for name, texts in _dict(value).items()
        if isinstance(texts, list)
        and all(text is None or isinstance(text, str) for text in cast("list[Any]", texts))
    }


def _nodes(workflow: Any) -> Iterator[Mapping[str, Any]]:
    graph = _dict(workflow)
    for one in (graph, *_dicts(_dict(graph.get("definitions")).get("subgraphs"))):
        yield from _dicts(one.get("nodes"))


def _texts_in(image: Image.Image) -> dict[str, Any]:
    texts: dict[str, Any] = dict(cast("dict[str, Any]", image.info))
    values: list[Any] = []
    # WebP and JPEG have no texts of any name; ComfyUI writes "name:text" into EXIF tags there.
    with contextlib.suppress(struct.error):  # a damaged EXIF block
        values = [*image.getexif().values()]
    for value in values:
        name, colon, text = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon:
            texts.setdefault(name.lower(), text)
    return texts


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _dict(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _dicts(value: Any) -> Sequence[dict[str, Any]]:
    entries = cast("list[Any]", value) if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]
