"""The committed workflows fit the nodes' schemas, without ComfyUI.

tests/comfyui/test_workflows.py queues them in a real one, tests/browser/test_workflows.py opens
them in a page.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests  # noqa: F401 (its first import must not be that of a thread)
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "example_workflows").glob("*.json"))
APIS = sorted((ROOT / "tests" / "workflows" / "api").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
NAMES = [path.stem for path in PAGES]
NOTE = "MarkdownNote"
TITLE_PX = 30


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """tools/make_workflows.py, loaded by path."""
    path, modules = list(sys.path), set(sys.modules)
    spec = importlib.util.spec_from_file_location(
        "make_workflows", ROOT / "tools" / "make_workflows.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_workflows"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    for name in {"make_workflows", "workflow_graph", "comfy_stub_path"} - modules:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def types(tool: ModuleType) -> dict[str, Any]:
    """Every node type that may stand in a workflow."""
    return tool.core_types() | tool.pack_types()


def page(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict[str, Any]:
    file = ROOT / "tests" / "workflows" / "api" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def subgraphs(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The definition of each node that is a subgraph, by the node's type."""
    return {one["id"]: one for one in graph.get("definitions", {}).get("subgraphs", ())}


def nodes_of(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every node that runs, by its id in the API's form."""
    found = {}
    inner = subgraphs(graph)
    for node in graph["nodes"]:
        if node["type"] in inner:
            for one in inner[node["type"]]["nodes"]:
                found[f"{node['id']}:{one['id']}"] = one
        elif node["type"] != NOTE:
            found[str(node["id"])] = node
    return found


def test_the_files_are_what_the_script_writes_today(tool: ModuleType) -> None:
    written = tool.files()
    assert {path for path in written if path.suffix == ".json"} == {*PAGES, *APIS, *BLUEPRINTS}
    for path, text in written.items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is not what tools/make_workflows.py writes: run it and look at the change"
        )


def test_the_spec_s_workflows_and_every_node_of_the_pack_are_there(tool: ModuleType) -> None:
    assert len(NAMES) >= 8
    used = {node["type"] for name in NAMES for node in nodes_of(page(name)).values()}
    # It runs alone: one node is the workflow.
    assert set(tool.pack_types()) - used == {"RefineryCheckSetup"}


@pytest.mark.parametrize("name", NAMES)
def test_widget_values_are_in_the_order_and_range_of_the_schema(
    name: str, types: dict[str, Any], tool: ModuleType
) -> None:
    for node in nodes_of(page(name)).values():
        values = iter(node["widgets_values"])
        for one in types[node["type"]].inputs:
            if not one.widget:
                continue
            value = next(values)
            where = f"{name}: {node['type']}.{one.name} = {value!r}"
            kind = one.type.split(",")[0]
            good = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool}.get(kind, str)
            assert isinstance(value, good), where
            for extra in one.extra:
                assert next(values) == extra, where
        assert list(values) == [], f"{name}: {node['type']} has values for no widget"


def test_widgets_of_ours_hold_values_that_their_schema_allows(tool: ModuleType) -> None:
    stub = sys.modules["comfy_stub_path"]
    with stub.installed():
        import asyncio

        from image_refinery.nodes import ImageRefineryExtension

        nodes = asyncio.run(ImageRefineryExtension().get_node_list())
        infos = {one.GET_SCHEMA().node_id: one.INPUT_TYPES() for one in nodes}
    checked = 0
    for name in NAMES:
        for entry in api(name).values():
            info = infos.get(entry["class_type"], {})
            specs = {**info.get("required", {}), **info.get("optional", {})}
            for id, value in entry["inputs"].items():
                options = specs[id][1] if id in specs else {}
                if isinstance(value, list):
                    continue
                if "min" in options:
                    assert options["min"] <= value <= options["max"], (name, id, value)
                    checked += 1
                names_things = id in {"vision_model", "text_model", "checkpoint", "folder"}
                if options.get("options") and not names_things:
                    assert value in options["options"], (name, id, value)
                    checked += 1
    assert checked > 100


@pytest.mark.parametrize("name", NAMES)
def test_links_are_known_to_both_ends_and_join_equal_types(name: str) -> None:
    graph = page(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    assert len(links) == len(graph["links"]) and links
    for id, source, slot, target, place, kind in graph["links"]:
        output, taker = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert id in output["links"] and taker["link"] == id
        assert kind == output["type"]
        assert "*" in (kind, taker["type"]) or kind in taker["type"].split(","), (name, id)
    ends = {link for node in graph["nodes"] for out in node["outputs"] for link in out["links"]}
    starts = {put["link"] for node in graph["nodes"] for put in node["inputs"]} - {None}
    assert ends == starts == set(links)
    assert graph["last_link_id"] == max(links)
    all_nodes = [node["id"] for one in subgraphs(graph).values() for node in one["nodes"]]
    all_nodes += nodes
    assert graph["last_node_id"] == max(all_nodes) and len(set(all_nodes)) == len(all_nodes)


SUBGRAPHS = [
    (path, definition)
    for path in [*PAGES, *BLUEPRINTS]
    for definition in subgraphs(json.loads(path.read_text(encoding="utf-8"))).values()
]


@pytest.mark.parametrize(("path", "graph"), SUBGRAPHS, ids=lambda one: getattr(one, "stem", ""))
def test_links_in_a_subgraph_are_known_to_both_ends(path: Path, graph: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["links"]
    for link in graph["links"]:
        source, target = nodes.get(link["origin_id"]), nodes.get(link["target_id"])
        if source:
            begin = source["outputs"][link["origin_slot"]]
            assert link["id"] in begin["links"]
        else:
            begin = graph["inputs"][link["origin_slot"]]
            assert link["id"] in begin["linkIds"]
        if target:
            end = target["inputs"][link["target_slot"]]
            assert link["id"] == end["link"]
        else:
            end = graph["outputs"][link["target_slot"]]
            assert link["id"] in end["linkIds"]
        assert link["type"] == begin["type"]
        assert "*" in (link["type"], end["type"]) or link["type"] in (
            end["type"],
            *end["type"].split(","),
        )
    ends = [link for node in nodes.values() for out in node["outputs"] for link in out["links"]]
    ends += [link for put in graph["inputs"] for link in put["linkIds"]]
    assert sorted(ends) == sorted(link["id"] for link in graph["links"])


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_that_can_be_found(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    (node,) = graph["nodes"]
    (inner,) = graph["definitions"]["subgraphs"]
    assert node["type"] == inner["id"] and inner["name"] == path.stem and graph["links"] == []
    assert inner["category"] == "Image Refinery" and inner["description"].endswith(".")
    assert len(graph["extra"]["BlueprintSearchAliases"]) >= 5
    assert [put["name"] for put in node["inputs"]] == [put["name"] for put in inner["inputs"]]
    assert [out["name"] for out in node["outputs"]] == [out["name"] for out in inner["outputs"]]
    nodes_are_apart(path.stem, inner["nodes"])


CANVAS_PX = (1440, 900)
LEAST_HEIGHT_PX = 860  # ComfyUI 0.3.64 takes the rest for its bars
FILLED = 0.75  # ComfyUI fills this part of the window with a template
EDGE_PX = 10
CARD_PX = (960, 225)
"""The card about a missing file lies to the right of the first and above the second."""


@pytest.mark.parametrize("name", NAMES)
def test_a_laptop_shows_all_text_and_no_node_is_below_the_error_card(name: str) -> None:
    nodes = page(name)["nodes"]
    left = min(node["pos"][0] for node in nodes) - EDGE_PX
    top = min(node["pos"][1] for node in nodes) - TITLE_PX - EDGE_PX
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + EDGE_PX
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes) + EDGE_PX
    width, height = CANVAS_PX
    least = FILLED * min(width / (right - left), LEAST_HEIGHT_PX / (bottom - top))
    assert least >= 0.6, "the classic renderer draws no text below 57 %"
    zoom = FILLED * min(width / (right - left), height / (bottom - top))
    if not any(node["properties"].get("models") for node in nodes_of(page(name)).values()):
        return  # then there is no card
    for node in nodes:
        end = (node["pos"][0] + node["size"][0] - (left + right) / 2) * zoom + width / 2
        begin = (node["pos"][1] - TITLE_PX - (top + bottom) / 2) * zoom + height / 2
        assert end <= CARD_PX[0] or begin >= CARD_PX[1], (name, node["type"])


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name: str) -> None:
    graph = page(name)
    for one in (graph, *subgraphs(graph).values()):
        nodes_are_apart(name, one["nodes"])


def nodes_are_apart(name: str, nodes: list[dict[str, Any]]) -> None:
    boxes = [
        (node["pos"][0], node["pos"][1] - TITLE_PX, *node["size"], node["id"]) for node in nodes
    ]
    for one, other in combinations(boxes, 2):
        apart = (
            one[0] + one[2] <= other[0]
            or other[0] + other[2] <= one[0]
            or one[1] + one[3] + TITLE_PX <= other[1]
            or other[1] + other[3] + TITLE_PX <= one[1]
        )
        assert apart, f"{name}: nodes {one[4]} and {other[4]}"


@pytest.mark.parametrize("name", NAMES)
def test_a_note_names_what_to_fetch_and_the_oldest_comfyui(name: str) -> None:
    notes = [node for node in page(name)["nodes"] if node["type"] == NOTE]
    assert len(notes) == 1
    text = notes[0]["widgets_values"][0]
    assert re.search(r"Needs ComfyUI \d+\.\d+\.\d+ or newer", text)
    for entry in api(name).values():
        for id, value in entry["inputs"].items():
            if id == "checkpoint":
                assert value == "sd_xl_refiner_1.0.safetensors"  # what the page offers to download
            if id in {"vision_model", "text_model"}:
                assert value == "auto", "a template runs with the models that there are"
                model = {"vision_model": "llava", "text_model": "llama3.2"}[id]
                assert f"ollama pull {model}" in text
            if isinstance(value, str) and value.endswith(".safetensors"):
                assert value in text
    for node in nodes_of(page(name)).values():
        offered = [one["name"] for one in node["properties"].get("models", ())]
        files = [value for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        assert offered == files


@pytest.mark.parametrize("name", NAMES)
def test_the_first_step_of_a_note_is_to_choose_pictures(name: str) -> None:
    nodes = page(name)["nodes"]
    (note,) = [node for node in nodes if node["type"] == NOTE]
    first = note["widgets_values"][0].splitlines()[1]
    loaders = {
        "LoadImage": "*Load Image*",
        "RefineryLoadFolder": "*Load Images From Folder*",
        "RefineryCaptionFolder": "*Caption Folder*",
        "RefineryRefineFolder": "*Refine Folder*",
    }
    (there,) = [node["type"] for node in nodes if node["type"] in loaders]
    assert first.startswith("1. ") and loaders[there] in first


@pytest.mark.parametrize("name", NAMES)
def test_the_api_s_form_is_the_same_graph(name: str, types: dict[str, Any]) -> None:
    graph, prompt = page(name), api(name)
    shown = {id: node["type"] for id, node in nodes_of(graph).items()}
    assert shown == {id: entry["class_type"] for id, entry in prompt.items()}
    linked = 0
    for id, entry in prompt.items():
        kind = types[entry["class_type"]]
        assert set(entry["inputs"]) <= {one.name for one in kind.inputs}
        for one in kind.inputs:
            value = entry["inputs"].get(one.name)
            if isinstance(value, list):
                source, slot = value
                output = types[prompt[source]["class_type"]].outputs[slot]
                assert "*" in (one.type, output[1]) or output[1] in one.type.split(",")
                linked += 1
            elif one.widget:
                assert value is not None, (name, id, one.name)
    inner = subgraphs(graph)
    hosts = [node["id"] for node in graph["nodes"] if node["type"] in inner]
    within = [link for one in inner.values() for link in one["links"]]
    # Links into a subgraph are counted inside. Those of widgets that it shows hold no value.
    outside = [link for link in graph["links"] if link[3] not in hosts]
    shown_widgets = sum(len(node["properties"].get("proxyWidgets", ())) for node in graph["nodes"])
    ends = [link for link in within if link["target_id"] < 0]
    assert linked == len(outside) + len(within) - len(ends) - shown_widgets


def test_workflows_carry_no_address_but_those_of_models(tool: ModuleType) -> None:
    known = (tool.HUGGING_FACE, "https://ollama.com", "http://192.168.1.20:1234")
    for path in [*PAGES, *APIS]:
        for address in re.findall(r"https?://[^\s\"\\)]+", path.read_text(encoding="utf-8")):
            assert address.startswith(known), (path.name, address)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_lies_beside_each(name: str) -> None:
    file = ROOT / "example_workflows" / f"{name}.jpg"
    with Image.open(file) as picture:
        assert picture.format == "JPEG"
        assert picture.width >= 600
    assert file.stat().st_size < 200_000
