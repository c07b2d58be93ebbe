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
NOTE_COLOR = {"color": "#432", "bgcolor": "#653"}  # ComfyUI's own yellow
GROUP_COLORS = ("#3f789e", "#88aa88", "#b58b2a")
TITLE_PX = 30
ROW_GAP_PX, COLUMN_GAP_PX = 40, 60
GROUP_EDGE_PX, GROUP_TITLE_PX = 14, 34
INSIDE, OUTSIDE = -10, -20
"""ComfyUI's ids of the two ends of a subgraph: its inputs and its outputs."""
ROW_PX = 24
MULTILINE_PX = 110
IMAGE_PX = 260
SHOWS_IMAGES = {"LoadImage", "SaveImage", "PreviewImage"}
TEXT_PX = 30
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
    # The page gives this widget to any number of that name, unless its node says no.
    if options.get("control_after_generate", kind == "INT" and name == "seed"):
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
    group: str
    collapsed: bool = False
    models: list[dict[str, str]] = field(default_factory=list)
    inner: Subgraph | None = None

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
    """Nodes in columns from left to right; each column is filled from top to bottom.

    Args:
        first_id: the id of the first node. Ids of subgraphs' nodes must differ from all others.
    """

    def __init__(self, types: Mapping[str, NodeType], first_id: int = 1) -> None:
        self.types = types
        self._first_id = first_id
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.note = ""
        self.app: tuple[list[tuple[Node, str]], list[Node]] | None = None
        self._group = ""
        self._x, self._y, self._width = 0, 0, 0

    def column(self, width: int, group: str = "", down: int = 0) -> None:
        """Begin a new column to the right.

        Args:
            width: in pixels, of its nodes.
            group: title of a new group. Without it, nodes belong to the group before.
            down: where the first node begins, so that links can pass above it.
        """
        self._x += self._width + (COLUMN_GAP_PX if self._width else 0)
        self._y, self._width = down, width
        self._group = group or self._group

    def add_note(self, text: str, tall: int) -> None:
        """Add a note to the column; the API format leaves it out."""
        self.note = text
        kind = NodeType(NOTE, (Input("text", "STRING", True, "", True, ()),), ())
        self._place(kind, {"text": text}, "Read me", tall)
        self._y += GROUP_TITLE_PX  # a group may begin below

    def show_in_app(self, inputs: list[tuple[Node, str]], outputs: list[Node]) -> None:
        """Open the workflow in App mode, with these widgets and results."""
        self.app = inputs, outputs

    def add(
        self,
        type: str,
        *,
        title: str | None = None,
        tall: int | None = None,
        collapsed: bool = False,
        models: list[dict[str, str]] | None = None,
        **inputs: Any,
    ) -> Node:
        """Add a node below the last one of the column.

        Args:
            tall: height in pixels without the title; None: estimated from the widgets.
            collapsed: show only the title.
            models: files that the page offers to download: {"name", "url", "directory"}.
            inputs: values of widgets, and outputs of other nodes to connect.
        """
        kind = self.types[type]
        for name in inputs:
            kind.input(name)
        values = {name: value for name, value in inputs.items() if not isinstance(value, Output)}
        node = self._place(kind, values, title, 0 if collapsed else tall)
        node.collapsed = collapsed
        node.models = models or []
        self._connect(node, inputs)
        return node

    def add_subgraph(self, inner: Subgraph, tall: int | None = None, **inputs: Output) -> Node:
        """Add another graph as one node."""
        node = self._place(inner.as_type(), {}, inner.name, tall)
        node.inner = inner
        self._connect(node, inputs)
        return node

    def _connect(self, node: Node, inputs: Mapping[str, Any]) -> None:
        for one in node.type.inputs:
            if isinstance(source := inputs.get(one.name), Output):
                self.links.append(Link(len(self.links) + 1, source, node, one.name))

    def _place(
        self, kind: NodeType, values: dict[str, Any], title: str | None, tall: int | None
    ) -> Node:
        tall = _height(kind) if tall is None else tall
        place = (self._x, self._y, self._width, tall)
        id = self._first_id + len(self.nodes)
        node = Node(id, kind, values, title, *place, group=self._group)
        self.nodes.append(node)
        self._y += tall + TITLE_PX + ROW_GAP_PX
        return node

    # Workflow file

    def page(self, name: str, origins: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
        """Return the workflow file, in version 0.4 of the format, which ComfyUI 0.3.64 reads.

        Args:
            name: the workflow's name; its id is derived from it.
            origins: for each type the registry id and version of its pack, so that a manager can
                name missing packs.
        """
        extra: dict[str, Any] = {}
        if self.app:
            inputs, outputs = self.app
            shown = [[node.id, widget] for node, widget in inputs]
            extra["linearData"] = {"inputs": shown, "outputs": [node.id for node in outputs]}
            extra["linearMode"] = True
        inner = [node.inner for node in self.nodes if node.inner]
        page = {
            "id": _uuid(name),
            "revision": 0,
            "last_node_id": max(node.id for one in (self, *inner) for node in one.nodes),
            "last_link_id": len(self.links),
            "nodes": self._page_nodes(origins),
            "links": [self._page_link(link) for link in self.links],
            "groups": self._page_groups(),
            "config": {},
            "extra": extra,
            "version": 0.4,
        }
        if inner:
            page["definitions"] = {"subgraphs": [one.definition(origins) for one in inner]}
        return page

    def _page_nodes(self, origins: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
        return [self._page_node(order, node, origins) for order, node in enumerate(self.nodes)]

    def _page_groups(self) -> list[dict[str, Any]]:
        groups: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.group and node.type.id != NOTE:
                groups.setdefault(node.group, []).append(node)
        written = []
        for index, (title, nodes) in enumerate(groups.items()):
            left = min(node.x for node in nodes) - GROUP_EDGE_PX
            top = min(node.y for node in nodes) - TITLE_PX - GROUP_TITLE_PX - GROUP_EDGE_PX
            right = max(node.x + node.width for node in nodes) + GROUP_EDGE_PX
            bottom = max(node.y + node.height for node in nodes) + GROUP_EDGE_PX
            written.append(
                {
                    "id": index + 1,
                    "title": title,
                    "bounding": [left, top, right - left, bottom - top],
                    "color": GROUP_COLORS[index % len(GROUP_COLORS)],
                    "font_size": 24,
                    "flags": {},
                }
            )
        return written

    def _page_node(
        self, order: int, node: Node, origins: Mapping[str, tuple[str, str]]
    ) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        if node.inner:
            properties = {"proxyWidgets": [[str(one.id), name] for one, name in node.inner.shown]}
        elif node.type.id != NOTE:
            pack, version = origins[node.type.id]
            properties = {"Node name for S&R": node.type.id, "cnr_id": pack, "ver": version}
        if node.models:
            properties["models"] = node.models
        written: dict[str, Any] = {
            "id": node.id,
            "type": node.type.id,
            "pos": [node.x, node.y],
            "size": [node.width, node.height],
            "flags": {"collapsed": True} if node.collapsed else {},
            "order": order,
            "mode": 0,
            "inputs": [] if node.type.id == NOTE else self._page_inputs(node),
            "outputs": [
                {"name": name, "type": kind, "links": self._leaving(node, slot)}
                for slot, (name, kind) in enumerate(node.type.outputs)
            ],
            "properties": properties,
            "widgets_values": [] if node.inner else _widgets(node),
        }
        if node.type.id == NOTE:
            written |= NOTE_COLOR
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
        """Return the graph in the format of POST /prompt, with the nodes of subgraphs."""
        entries: dict[str, Any] = {}
        for node in self.nodes:
            if node.inner:
                given = {
                    link.input: self._api_link(link.source)
                    for link in self.links
                    if link.target is node
                }
                entries |= node.inner.api_within(f"{node.id}:", given)
            elif node.type.id != NOTE:
                entries[self._api_id(node)] = {
                    "class_type": node.type.id,
                    "inputs": self._api_inputs(node),
                    "_meta": {"title": node.title or node.type.id},
                }
        return entries

    def _api_inputs(self, node: Node) -> dict[str, Any]:
        values: dict[str, Any] = {
            one.name: node.values.get(one.name, one.default)
            for one in node.type.inputs
            if one.widget
        }
        for link in self.links:
            if link.target is node and (source := self._api_link(link.source)):
                values[link.input] = source
        return values

    def _api_id(self, node: Node) -> str:
        return str(node.id)

    def _api_link(self, source: Output) -> list[Any] | None:
        """Return [node id, slot] of an output; of a subgraph, the node in it."""
        if source.node.inner:
            _, inside = source.node.inner.results[source.slot]
            return [f"{source.node.id}:{inside.node.id}", inside.slot]
        return [self._api_id(source.node), source.slot]


class Subgraph(Graph):
    """A graph that is one node in another graph.

    Args:
        inputs: (name, type) of each; `given` holds them as outputs to connect inside.
    """

    def __init__(
        self,
        types: Mapping[str, NodeType],
        name: str,
        inputs: list[tuple[str, str]],
        *,
        first_id: int = 101,
        category: str = "",
        description: str = "",
    ) -> None:
        super().__init__(types, first_id)
        self.name, self.category, self.description = name, category, description
        begin = NodeType("inputs", (), tuple(inputs))
        self._begin = Node(INSIDE, begin, {}, None, 0, 0, 0, 0, "")
        self.given = [self._begin[slot] for slot in range(len(inputs))]
        self.shown: list[tuple[Node, str]] = []
        self.results: list[tuple[str, Output]] = []
        self._within, self._given = "", dict[str, Any]()

    def show(self, node: Node, *widgets: str) -> None:
        """Show widgets of a node on the outside too."""
        self.shown += [(node, widget) for widget in widgets]

    def result(self, name: str, source: Output) -> None:
        """Add an output."""
        self.results.append((name, source))

    def as_type(self) -> NodeType:
        """Return the node that stands for this graph."""
        sockets = [Input(name, kind, False, None, False, ()) for name, kind in self._sockets()]
        widgets = [node.type.input(name) for node, name in self.shown]
        outputs = tuple((name, _kind(source)) for name, source in self.results)
        return NodeType(_uuid(self.name), (*sockets, *widgets), outputs)

    def _sockets(self) -> tuple[tuple[str, str], ...]:
        return self._begin.type.outputs

    def definition(self, origins: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
        """Return the entry of `definitions.subgraphs` in a workflow file."""
        right = max(node.x + node.width for node in self.nodes) + COLUMN_GAP_PX
        outer = list(self.links)
        inputs = [(name, kind) for name, kind in self._sockets()]
        inputs += [(name, node.type.input(name).type) for node, name in self.shown]
        for slot, (node, name) in enumerate(self.shown, len(self._sockets())):
            source = Output(self._begin, slot)
            self.links.append(Link(len(self.links) + 1, source, node, name))
        links = [self._inner_link(link, inputs) for link in self.links]
        ends = [
            {
                "id": len(links) + slot + 1,
                "origin_id": source.node.id,
                "origin_slot": source.slot,
                "target_id": OUTSIDE,
                "target_slot": slot,
                "type": _kind(source),
            }
            for slot, (_, source) in enumerate(self.results)
        ]
        nodes = self._page_nodes(origins)
        for end in ends:
            (origin,) = [node for node in nodes if node["id"] == end["origin_id"]]
            origin["outputs"][end["origin_slot"]]["links"].append(end["id"])
        self.links = outer
        written: dict[str, Any] = {
            "id": _uuid(self.name),
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": max(node.id for node in self.nodes),
                "lastLinkId": len(links) + len(ends),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INSIDE, "bounding": [-220, 0, 120, 40 + 20 * len(inputs)]},
            "outputNode": {"id": OUTSIDE, "bounding": [right, 0, 120, 40 + 20 * len(ends)]},
            "inputs": [
                self._end("in", slot, name, kind, links, "origin")
                for slot, (name, kind) in enumerate(inputs)
            ],
            "outputs": [
                self._end("out", slot, name, _kind(source), ends, "target")
                for slot, (name, source) in enumerate(self.results)
            ],
            "widgets": [],
            "nodes": nodes,
            "groups": self._page_groups(),
            "links": links + ends,
            "extra": {},
        }
        for key in ("category", "description"):
            if value := getattr(self, key):
                written[key] = value
        return written

    def _inner_link(self, link: Link, inputs: list[tuple[str, str]]) -> dict[str, Any]:
        source, slot = link.source, link.source.slot
        names = [one.name for one in _slots(link.target.type)]
        return {
            "id": link.id,
            "origin_id": source.node.id,
            "origin_slot": slot,
            "target_id": link.target.id,
            "target_slot": names.index(link.input),
            "type": inputs[slot][1] if source.node is self._begin else _kind(source),
        }

    def _end(
        self, side: str, slot: int, name: str, kind: str, links: list[dict[str, Any]], key: str
    ) -> dict[str, Any]:
        end = INSIDE if key == "origin" else OUTSIDE
        ids = [
            link["id"] for link in links if (link[f"{key}_id"], link[f"{key}_slot"]) == (end, slot)
        ]
        id = _uuid(f"{self.name}/{side}/{name}")
        return {"id": id, "name": name, "type": kind, "linkIds": ids, "label": name}

    def api_within(self, within: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of this graph's nodes, with ids that begin with `within`."""
        self._within, self._given = within, dict(given)
        return self.api()

    def _api_id(self, node: Node) -> str:
        return f"{self._within}{node.id}"

    def _api_link(self, source: Output) -> list[Any] | None:
        if source.node is self._begin:
            return self._given.get(self._sockets()[source.slot][0])
        return super()._api_link(source)


def _kind(source: Output) -> str:
    return source.node.type.outputs[source.slot][1]


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"image-refinery/{name}"))


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
