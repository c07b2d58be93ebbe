"""A graph of ComfyUI nodes that can be written as a workflow file and in API format.

Callers pass node types in the format of ComfyUI's /object_info, so that the order of widgets and
their defaults are those of the nodes themselves.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
NOTE = "MarkdownNote"
TITLE_PX = 30
GAP_PX = 40
ROW_PX = 24
MULTILINE_PX = 110
IMAGE_PX = 260
SHOWS_IMAGES = {"LoadImage", "SaveImage", "PreviewImage"}
TEXT_PX = 200
SHOWS_TEXT = {"RefineryDisplayAnything"}
LIVE_PX = 80
SHOWS_LIVE_TEXT = {
    *("RefineryLLMImageRefine", "RefineryLLMDescribe", "RefineryOllamaProcess"),
    "RefinerySaveCaption",
}
"""The page shows their output below their widgets while they run."""


class UnknownInput(KeyError):
    """A workflow sets an input that the node does not have."""


@dataclass(frozen=True)
class Input:
    """One input: a socket, or a widget that can also be connected."""

    name: str
    type: str
    widget: bool
    default: Any
    multiline: bool
    extra: tuple[Any, ...]
    """Values of widgets that the page appends after this one."""


@dataclass(frozen=True)
class NodeType:
    """The inputs and outputs of one kind of node."""

    id: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    """(name, type) of each."""

    def input(self, name: str) -> Input:
        """Return the input of that name, or raise UnknownInput."""
        for one in self.inputs:
            if one.name == name:
                return one
        raise UnknownInput(f"{self.id} has no input {name}")


def node_type(id: str, info: Mapping[str, Any]) -> NodeType:
    """Return the type in an entry of /object_info: required inputs first, then optional ones."""
    given = info["input"]
    named = {**given.get("required", {}), **given.get("optional", {})}
    outputs = tuple(zip(info["output_name"], info["output"], strict=True))
    return NodeType(id, tuple(_input(name, spec) for name, spec in named.items()), outputs)


def _input(name: str, spec: Any) -> Input:
    kind = spec[0]
    options: Mapping[str, Any] = spec[1] if len(spec) > 1 else {}
    choices = options.get("options")
    if isinstance(kind, list):
        choices, kind = kind, "COMBO"
    widget = kind.split(",")[0] in WIDGET_TYPES and not options.get("forceInput")
    default = options.get("default")
    if default is None and choices:
        default = choices[0]
    if default is None and kind == "STRING":
        default = ""
    extra: tuple[Any, ...] = ()
    if options.get("control_after_generate"):
        extra = ("fixed",)
    if options.get("image_upload"):
        extra = ("image",)
    return Input(name, kind, widget, default, bool(options.get("multiline")), extra)


@dataclass(frozen=True)
class Output:
    """An output of a node in a graph, written as `node[0]`, to be connected."""

    node: Node
    slot: int


@dataclass(eq=False)
class Node:
    """A node in a graph."""

    id: int
    type: NodeType
    values: dict[str, Any]
    title: str | None
    x: int
    y: int
    width: int
    height: int
    models: list[dict[str, str]] = field(default_factory=list)

    def __getitem__(self, slot: int) -> Output:
        if slot >= len(self.type.outputs):
            raise UnknownInput(f"{self.type.id} has no output {slot}")
        return Output(self, slot)


@dataclass(frozen=True)
class Link:
    """A connection between two nodes."""

    id: int
    source: Output
    target: Node
    input: str


class Graph:
    """Nodes in columns from left to right; each column is filled from top to bottom."""

    def __init__(self, types: Mapping[str, NodeType]) -> None:
        self._types = types
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.note = ""
        self._x, self._y, self._width = 0, 0, 0

    def column(self, width: int) -> None:
        """Begin a new column to the right."""
        self._x += self._width + (GAP_PX if self._width else 0)
        self._y, self._width = 0, width

    def add_note(self, text: str, tall: int) -> None:
        """Add a note to the column; the API format leaves it out."""
        self.note = text
        kind = NodeType(NOTE, (Input("text", "STRING", True, "", True, ()),), ())
        self._place(kind, {"text": text}, "Read me", tall)

    def add(
        self,
        type: str,
        *,
        title: str | None = None,
        tall: int | None = None,
        models: list[dict[str, str]] | None = None,
        **inputs: Any,
    ) -> Node:
        """Add a node below the last one of the column.

        Args:
            tall: height in pixels without the title; None: estimated from the widgets.
            models: files that the page offers to download: {"name", "url", "directory"}.
            inputs: values of widgets, and outputs of other nodes to connect.
        """
        kind = self._types[type]
        for name in inputs:
            kind.input(name)
        values = {name: value for name, value in inputs.items() if not isinstance(value, Output)}
        node = self._place(kind, values, title, tall)
        node.models = models or []
        for one in kind.inputs:
            if isinstance(source := inputs.get(one.name), Output):
                self.links.append(Link(len(self.links) + 1, source, node, one.name))
        return node

    def _place(
        self, kind: NodeType, values: dict[str, Any], title: str | None, tall: int | None
    ) -> Node:
        tall = tall or _height(kind)
        node = Node(len(self.nodes) + 1, kind, values, title, self._x, self._y, self._width, tall)
        self.nodes.append(node)
        self._y += tall + TITLE_PX + GAP_PX
        return node

    # Workflow file

    def page(self, name: str, origins: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
        """Return the workflow file, in version 0.4 of the format, which ComfyUI 0.3.64 reads.

        Args:
            name: the workflow's name; its id is derived from it.
            origins: for each type the registry id and version of its pack, so that a manager can
                name missing packs.
        """
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"image-refinery/{name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": [
                self._page_node(order, node, origins) for order, node in enumerate(self.nodes)
            ],
            "links": [self._page_link(link) for link in self.links],
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _page_node(
        self, order: int, node: Node, origins: Mapping[str, tuple[str, str]]
    ) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        if node.type.id != NOTE:
            pack, version = origins[node.type.id]
            properties = {"Node name for S&R": node.type.id, "cnr_id": pack, "ver": version}
        if node.models:
            properties["models"] = node.models
        written: dict[str, Any] = {
            "id": node.id,
            "type": node.type.id,
            "pos": [node.x, node.y],
            "size": [node.width, node.height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [] if node.type.id == NOTE else self._page_inputs(node),
            "outputs": [
                {"name": name, "type": kind, "links": self._leaving(node, slot)}
                for slot, (name, kind) in enumerate(node.type.outputs)
            ],
            "properties": properties,
            "widgets_values": _widgets(node),
        }
        if node.title:
            written["title"] = node.title
        return written

    def _page_inputs(self, node: Node) -> list[dict[str, Any]]:
        sockets = []
        for one in _slots(node.type):
            socket: dict[str, Any] = {
                "name": one.name,
                "type": one.type,
                "link": self._arriving(node, one.name),
            }
            if one.widget:
                socket["widget"] = {"name": one.name}
            sockets.append(socket)
        return sockets

    def _page_link(self, link: Link) -> list[Any]:
        names = [one.name for one in _slots(link.target.type)]
        kind = link.source.node.type.outputs[link.source.slot][1]
        source = link.source
        return [link.id, source.node.id, source.slot, link.target.id, names.index(link.input), kind]

    def _arriving(self, node: Node, name: str) -> int | None:
        ids = [link.id for link in self.links if link.target is node and link.input == name]
        return ids[0] if ids else None

    def _leaving(self, node: Node, slot: int) -> list[int]:
        return [
            link.id for link in self.links if link.source.node is node and link.source.slot == slot
        ]

    # API format

    def api(self) -> dict[str, Any]:
        """Return the graph in the format of POST /prompt."""
        return {
            str(node.id): {
                "class_type": node.type.id,
                "inputs": self._api_inputs(node),
                "_meta": {"title": node.title or node.type.id},
            }
            for node in self.nodes
            if node.type.id != NOTE
        }

    def _api_inputs(self, node: Node) -> dict[str, Any]:
        values: dict[str, Any] = {
            one.name: node.values.get(one.name, one.default)
            for one in node.type.inputs
            if one.widget
        }
        for link in self.links:
            if link.target is node:
                values[link.input] = [str(link.source.node.id), link.source.slot]
        return values


def _slots(kind: NodeType) -> list[Input]:
    """Return the inputs in the order of a workflow file: sockets, then widgets."""
    return sorted(kind.inputs, key=lambda one: one.widget)


def _widgets(node: Node) -> list[Any]:
    values: list[Any] = []
    for one in node.type.inputs:
        if one.widget:
            values += [node.values.get(one.name, one.default), *one.extra]
    return values


def _height(kind: NodeType) -> int:
    rows = max(sum(not one.widget for one in kind.inputs), len(kind.outputs))
    height = 20 * rows + 16
    for one in kind.inputs:
        if one.widget:
            height += (MULTILINE_PX if one.multiline else ROW_PX) + ROW_PX * len(one.extra)
    height += IMAGE_PX if kind.id in SHOWS_IMAGES else 0
    height += LIVE_PX if kind.id in SHOWS_LIVE_TEXT else 0
    return height + (TEXT_PX if kind.id in SHOWS_TEXT else 0)
