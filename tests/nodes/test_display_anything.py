"""Display Anything over the stub: what is shown, passed on, held, and asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import folder_paths
    from image_refinery.nodes.display_anything import DisplayAnything

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return DisplayAnything


def show(node: Any, *values: Any, hold: bool = False, held_text: str = "") -> Any:
    value = list(values) if values else None
    return node.execute(hold=[hold], held_text=[held_text], value=value)


def test_a_list_goes_through_with_the_very_same_things_in_it(node: Any) -> None:
    first, second = object(), "text"
    output = show(node, first, second)
    assert output.result[0][0] is first and output.result[0][1] is second
    assert output.result[1] == output.ui["text"][0]
    assert output.ui["text"][0].endswith("[2 of 2] text")
    value, text = node.define_schema().outputs
    assert value.is_output_list and value.get_io_type() == "*" and text.get_io_type() == "STRING"


def test_what_is_held_takes_the_place_of_the_value(node: Any) -> None:
    output = show(node, "new", hold=True, held_text="mine")
    assert output.result == (["mine"], "mine")
    assert output.ui == {"text": ["mine"]}


def test_nothing_is_asked_for_while_a_text_is_held(node: Any) -> None:
    assert node.check_lazy_status(hold=[True], held_text=["mine"]) == []
    pending = (None,)  # what ComfyUI gives for a link whose value is not there yet
    assert node.check_lazy_status(hold=[False], held_text=["mine"], value=pending) == ["value"]
    value = node.define_schema().inputs[0]
    assert value.lazy and value.optional


def test_without_a_link_the_text_goes_out(node: Any) -> None:
    assert show(node, held_text="a note").result == (["a note"], "a note")


def test_a_value_that_is_not_connected_is_not_asked_for(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "21"}))
    PromptServer.instance.sent_texts.clear()
    assert node.check_lazy_status(hold=[False], held_text=[""]) == []
    output = show(node)
    assert output.result == ([""], "") and not output.ui
    assert PromptServer.instance.sent_texts == [("21", "Nothing is connected to value.")]


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        (torch.rand(2, 100, 200, 3), [(200, 100)] * 2),
        (torch.rand(1, 1200, 600, 4), [(256, 512)]),
        (torch.rand(1, 30, 40), [(40, 30)]),
        (torch.rand(1, 1, 40, 3), [(40, 1)]),
        (torch.rand(30, 20, 20, 3), [(20, 20)] * 16),
        (torch.rand(1, 4, 8, 8), []),
        (torch.zeros(1, 0, 8, 3), []),
        (torch.zeros(1, 8, 8, 3, dtype=torch.int64), []),
        ("text", []),
    ],
)
def test_images_and_masks_are_shown_small(
    node: Any, tmp_path: Path, value: Any, sizes: list[tuple[int, int]]
) -> None:
    ui = show(node, value).ui
    files = [tmp_path / "temp" / one["filename"] for one in ui.get("images", [])]
    assert [size_of(file) for file in files] == sizes
    assert all(one["type"] == "temp" for one in ui.get("images", []))


def test_every_input_and_output_has_a_tooltip(node: Any) -> None:
    schema = node.define_schema()
    assert all(one.tooltip for one in (*schema.inputs, *schema.outputs))
    assert schema.is_output_node
