"""Prompt Presets over the stub: what can be picked, what goes out, files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from image_refinery.captioning.options import StageOptions

SPEC = {
    "Enhanced description": "Expand this description to include more sensory details",
    "Creative reinterpretation": "a scene from a fantasy novel",
    "Technical analysis": "colors (with hex codes if possible)",
    "Style transfer": "1920s newspaper article",
    "Keyword extraction": "Return as a comma-separated list",
    "Translation": "Translate this to Spanish",
    "Comic panel": "comic book panel description",
    "SEO alt text": "Maximum 125 characters",
    "Prompt for SDXL": "SDXL",
    "Prompt for FLUX": "FLUX",
    "Tag list": "tags separated by commas",
    "LoRA caption": "training caption",
}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for one's own files."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    folder = tmp_path / "image-refinery" / "instructions"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def node(own: Path) -> Any:
    from image_refinery.nodes.ready_instructions import ReadyInstructions

    return ReadyInstructions


def test_the_use_cases_can_be_picked_and_the_page_has_their_texts(node: Any) -> None:
    pick, text, _ = node.define_schema().inputs
    fields = pick.as_dict()
    assert list(fields["texts"]) == fields["options"]
    for name, words in SPEC.items():
        assert words in fields["texts"][name]
    assert text.as_dict()["default"] == fields["texts"][fields["default"]]
    assert all(one.tooltip for one in (pick, text, *node.define_schema().outputs))
    assert not any(shown.startswith("---") for shown in fields["texts"].values())


def test_the_text_goes_out_as_it_was_edited(node: Any) -> None:
    assert node.execute(pick="Tag list", text="Only colours.").result[0] == "Only colours."
    assert "tags" in node.execute(pick="Tag list", text=" ").result[0]


def test_files_of_one_s_own_are_added_and_come_first(node: Any, own: Path) -> None:
    (own / "haiku.txt").write_bytes("\ufeffWrite a haiku.\n".encode())
    (own / "Tag list.txt").write_text("My tags.")
    (own / "empty.txt").write_text(" ")
    (own / "group").mkdir()
    (own / "group" / "one.txt").write_text("One.")
    names = node.define_schema().inputs[0].as_dict()["options"]
    assert {"haiku", "group/one"} < set(names) and "empty" not in names
    assert node.execute(pick="haiku", text="").result[0] == "Write a haiku."
    assert node.execute(pick="Tag list", text="").result[0] == "My tags."


def test_a_name_from_another_machine_queues_and_its_text_goes_out(
    node: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert node.validate_inputs(pick="not here") is True
    assert node.execute(pick="not here", text="Shorten.").result == ("Shorten.", StageOptions())
    assert 'no preset "not here"' in caplog.text and "num_predict and format" in caplog.text
    with pytest.raises(ValueError, match='no preset "not here"'):
        node.execute(pick="not here", text="")


def test_an_edited_file_runs_the_node_again_only_where_it_is_used(node: Any, own: Path) -> None:
    (own / "haiku.txt").write_text("a")
    used, unused = (node.fingerprint_inputs(pick="haiku", text=text) for text in ("", "mine"))
    (own / "haiku.txt").write_text("b")
    assert node.fingerprint_inputs(pick="haiku", text="") != used
    assert node.fingerprint_inputs(pick="haiku", text="mine") == unused


def test_a_changed_header_runs_the_node_again_even_if_the_text_is_edited(
    node: Any, own: Path
) -> None:
    seen: set[int] = set()
    for header in ("num_predict: 5", "num_predict: 6", "num_predict: x", "format: json"):
        (own / "haiku.txt").write_text(f"---\n{header}\n---\na")
        seen.add(node.fingerprint_inputs(pick="haiku", text="mine"))
    assert len(seen) == 4


def test_the_options_are_those_of_the_preset_and_what_is_connected_comes_first(
    node: Any, own: Path
) -> None:
    (own / "tags.txt").write_text("---\nnum_predict: 99\nformat: json\n---\nTags.")
    text, options = node.execute(pick="tags", text="Edited.").result
    assert (text, options) == (
        "Edited.",
        StageOptions(model_options={"num_predict": 99}, format="json"),
    )
    mine = StageOptions(model_options={"num_predict": 7, "num_ctx": 4096}, timeout_s=5.0)
    _, options = node.execute(pick="tags", text="", options=mine).result
    assert options == StageOptions(
        model_options={"num_predict": 7, "num_ctx": 4096}, format="json", timeout_s=5.0
    )
    schema = {"type": "object"}
    _, options = node.execute(pick="tags", text="", options=StageOptions(format=schema)).result
    assert options.format == schema
    assert node.execute(pick="Tag list", text="").result[1] == StageOptions()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("num_predict: many", 'num_predict is "many", but must be a whole number'),
        ('format: {"type": "list"}', 'format: type is "list"'),
    ],
)
def test_a_wrong_header_is_said_and_costs_only_its_own_preset(
    node: Any, own: Path, caplog: pytest.LogCaptureFixture, header: str, why: str
) -> None:
    (own / "wrong.txt").write_text(f"---\n{header}\n---\nWrite.")
    names = node.define_schema().inputs[0].as_dict()["options"]
    assert {"wrong", "Tag list", "Prompt for FLUX.2"} < set(names)
    node.define_schema()
    said = [line for line in caplog.messages if 'preset "wrong"' in line]
    assert len(said) == 1 and why in said[0]
    with pytest.raises(ValueError, match='header of the preset "wrong" cannot be used') as raised:
        node.execute(pick="wrong", text="Edited.")
    assert why in str(raised.value)
    assert "tags" in node.execute(pick="Tag list", text="").result[0]
