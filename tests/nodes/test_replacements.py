"""The table of replacements fits the schemas of our nodes; hosts without the API stay quiet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "coming-from-other-packs.md"
PAGE_ONLY = {"control_after_generate"}
SOCKETS = {"image", "images", "value"}
"""Inputs of the old nodes that are no widgets."""
OLD = [
    *("BasifyImageRefine", "BasifyDescribeImage", "BasifyDisplayAnythingAsText"),
    *("BasifyWildcardProcessor", "OllamaVision", "OllamaGenerate", "OllamaGenerateAdvance"),
]


def row(old: str) -> Any:
    from image_refinery.nodes.replacements import REPLACEMENTS

    (found,) = [one for one in REPLACEMENTS if one.old == old]
    return found


def new_node(old: str) -> Any:
    from image_refinery.nodes import ImageRefineryExtension

    nodes = asyncio.run(ImageRefineryExtension().get_node_list())
    (found,) = [node for node in nodes if node.GET_SCHEMA().node_id == row(old).new]
    return found


def inputs_of(node: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    types = node.INPUT_TYPES()
    return types["required"] | types.get("optional", {})


def test_each_node_is_replaced_once() -> None:
    from image_refinery.nodes.replacements import REPLACEMENTS

    assert sorted(one.old for one in REPLACEMENTS) == sorted(OLD)


@pytest.mark.parametrize("old", OLD)
def test_every_input_and_output_exists_on_both_sides(old: str) -> None:
    entry, node = row(old), new_node(old)
    ours = inputs_of(node)
    assert (entry.inputs.keys() | entry.values.keys()) - PAGE_ONLY <= ours.keys()
    assert not entry.inputs.keys() & entry.values.keys()
    assert set(entry.inputs.values()) <= {*entry.widgets, *SOCKETS}
    assert len(set(entry.widgets)) == len(entry.widgets)
    assert all(new < len(node.GET_SCHEMA().outputs) for new in entry.outputs.values())


@pytest.mark.parametrize("old", OLD)
def test_nothing_that_the_new_node_requires_is_left_out(old: str) -> None:
    entry = row(old)
    required = new_node(old).INPUT_TYPES()["required"]
    assert required.keys() <= entry.inputs.keys() | entry.values.keys()


@pytest.mark.parametrize("old", OLD)
def test_fixed_values_are_ones_that_the_widgets_take(old: str) -> None:
    entry, ours = row(old), inputs_of(new_node(old))
    for id, value in entry.values.items():
        if id in PAGE_ONLY:
            assert ours["seed"][1]["control_after_generate"]
            continue
        kind, options = ours[id]
        choices = kind if isinstance(kind, list) else options.get("options")
        if choices:
            assert value in choices, id
        elif isinstance(value, bool):
            assert kind == "BOOLEAN", id
        elif isinstance(value, str):
            assert kind == "STRING", id
        else:
            assert options["min"] <= value <= options["max"], id


@pytest.mark.parametrize("old", OLD)
def test_kept_old_names_are_no_inputs_of_ours(old: str) -> None:
    """They are there for links only: a value under the name of another input would be used."""
    entry = row(old)
    kept = {put["new_id"] for put in entry.input_mapping() if put["new_id"] == put.get("old_id")}
    assert not {name for name in kept if name not in entry.inputs} & inputs_of(new_node(old)).keys()


@pytest.mark.parametrize("old", OLD)
def test_the_guide_tells_what_becomes_of_every_setting(old: str) -> None:
    guide, entry = GUIDE.read_text(encoding="utf-8"), row(old)
    names = {old, *entry.widgets, *entry.inputs, *entry.inputs.values()} - PAGE_ONLY
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


def test_a_host_without_replacements_gets_none_and_logs_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes import ImageRefineryExtension
    from server import PromptServer

    monkeypatch.delattr(PromptServer.instance, "node_replace_manager", raising=False)
    asyncio.run(ImageRefineryExtension().on_load())
    monkeypatch.delattr(PromptServer, "instance")  # a program that reads the schemas
    asyncio.run(ImageRefineryExtension().on_load())
    assert caplog.text == ""
