"""Text To Filename over the stub; the rules of a name are tested in tests/texts."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def node() -> Any:
    from image_refinery.nodes.text_to_filename import TextToFilename

    return TextToFilename


def test_a_description_becomes_a_name(node: Any) -> None:
    text = 'A "red" ball, on snow: 1/2.\n'
    assert node.execute(text=text).result == ("A red ball, on snow 1 2",)
    assert node.execute(text="word " * 99, longest_bytes=20).result == ("word word word word",)


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [
        ("captions\\cats", "captions/cats/x"),
        ("../..//a:b/", "a b/x"),
        ("/etc", "etc/x"),
        ("C:\\con", "C/_con/x"),
        (" . ", "x"),
    ],
)
def test_a_folder_never_leads_out(node: Any, folder: str, wanted: str) -> None:
    assert node.execute(text="x", folder=folder).result == (wanted,)


def test_the_widget_leaves_room_for_what_save_image_appends(node: Any) -> None:
    schema = node.define_schema()
    limits = schema.inputs[1].as_dict()
    assert limits["max"] + len("_00001_.png") <= 255
    assert all(one.tooltip for one in (*schema.inputs, *schema.outputs))


def test_an_error_message_names_no_file(node: Any) -> None:
    from image_refinery.nodes.llm_inputs import ErrorText

    error = ErrorText("Error: Can't reach Ollama at http://127.0.0.1:11434.")
    assert node.execute(text=error, folder="a").result == ("a/error",)
