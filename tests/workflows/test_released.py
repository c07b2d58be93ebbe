"""Workflows of every release load with today's nodes: ids, order, values and defaults stay."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RELEASED = Path(__file__).resolve().parents[1] / "released"
VERSIONS = sorted(file.stem for file in RELEASED.glob("*.json"))
WORKFLOWS = sorted(RELEASED.glob("*/*.json"))
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
CONTROL = "control_after_generate"
LISTS = {("RefinerySaveCaption", "text"), ("RefinerySaveCaption", "file")}
"""Outputs that became lists: a node that was called once for each entry gave a list as well."""


@pytest.fixture(scope="module")
def today(comfy: None) -> Iterator[dict[str, Any]]:
    """Every node of the pack by its id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")  # nobody is asked for models
        nodes = importlib.import_module("image_refinery.nodes")
        listed = asyncio.run(nodes.ImageRefineryExtension().get_node_list())
        yield {node.define_schema().node_id: node for node in listed}


def inputs_of(node: Any) -> list[tuple[str, str, dict[str, Any], bool]]:
    """(id, type, settings, optional) in the order of ComfyUI: required inputs first."""
    found = [
        (one.id, one.get_io_type(), one.as_dict(), bool(one.optional))
        for one in node.define_schema().inputs
    ]
    return sorted(found, key=lambda one: one[3])


def released_inputs(info: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool]]:
    return [
        (id, spec[0], spec[1] if len(spec) > 1 else {}, group == "optional")
        for group in ("required", "optional")
        for id, spec in info["input"].get(group, {}).items()
    ]


def looks_at(node: Any, id: str) -> bool:
    """Whether the node checks a value itself, and ComfyUI does not."""
    check = getattr(node, "validate_inputs", None)
    return check is not None and id in inspect.signature(check).parameters


def accepts(node: Any, id: str, kind: str, settings: dict[str, Any], value: Any) -> bool:
    """Whether ComfyUI would queue a widget with this value."""
    if looks_at(node, id):
        listed = node.define_schema().is_input_list
        return kind != "COMBO" or node.validate_inputs(**{id: [value] if listed else value}) is True
    if "COMBO" in kind.split(","):
        return value in settings["options"]
    if kind in ("INT", "FLOAT"):
        return settings["min"] <= value <= settings["max"]
    return True


@pytest.mark.parametrize("version", VERSIONS)
def test_nodes_of_a_release_are_here_with_their_inputs_in_order(
    today: dict[str, Any], version: str
) -> None:
    released = json.loads((RELEASED / f"{version}.json").read_text("utf-8"))
    assert len(released) >= 12
    for name, info in released.items():
        current = inputs_of(today[name])
        for group in (False, True):
            before = [one for one in released_inputs(info) if one[3] is group]
            now = [one for one in current if one[3] is group]
            assert [one[:2] for one in now[: len(before)]] == [one[:2] for one in before], name
            if not group:
                assert len(now) == len(before), f"{name}: a new input must be optional"


@pytest.mark.parametrize("version", VERSIONS)
def test_values_and_defaults_of_a_release_are_accepted(today: dict[str, Any], version: str) -> None:
    released = json.loads((RELEASED / f"{version}.json").read_text("utf-8"))
    for name, info in released.items():
        current = {id: (kind, settings) for id, kind, settings, _ in inputs_of(today[name])}
        for id, _, before, _ in released_inputs(info):
            kind, now = current[id]
            values = [
                *before.get("options", ()),
                *(before[k] for k in ("min", "max") if k in before),
            ]
            values += [before["default"]] if "default" in before else []
            refused = [v for v in values if not accepts(today[name], id, kind, now, v)]
            assert refused == [], (name, id)
            if "options" not in before or not looks_at(today[name], id):  # a list of models varies
                assert now.get("default") == before.get("default"), (name, id)


@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_of_a_release_stay(today: dict[str, Any], version: str) -> None:
    released = json.loads((RELEASED / f"{version}.json").read_text("utf-8"))
    for name, info in released.items():
        outputs = today[name].define_schema().outputs
        now = [(one.get_io_type(), one.display_name) for one in outputs]
        before = list(zip(info["output"], info["output_name"], strict=True))
        assert now[: len(before)] == before, name
        for one, is_list in zip(outputs, info["output_is_list"], strict=False):
            if (name, one.display_name) not in LISTS:
                assert bool(one.is_output_list) == is_list, (name, one.display_name)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_workflow_of_a_release_finds_every_value_in_its_place(
    today: dict[str, Any], file: Path
) -> None:
    """`widgets_values` is by position: what a page of ComfyUI does with it."""
    found = 0
    for entry in json.loads(file.read_text("utf-8"))["nodes"]:
        if entry["type"] not in today:
            assert not entry["type"].startswith("Refinery"), f"{entry['type']} is gone"
            continue
        node = today[entry["type"]]
        places: list[tuple[str, str, dict[str, Any]]] = []
        for id, kind, settings, _ in inputs_of(node):
            if WIDGETS & set(kind.split(",")):
                places.append((id, kind, settings))
                if settings.get(CONTROL):
                    places.append((CONTROL, "COMBO", {"options": ["fixed", "increment"]}))
        values = entry["widgets_values"]
        assert len(values) <= len(places)
        for (id, kind, settings), value in zip(places, values, strict=False):
            types = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool}.get(kind, str)
            assert isinstance(value, types), (entry["type"], id, value)
            assert accepts(node, id, kind, settings, value), (entry["type"], id, value)
        found += 1
    assert found
