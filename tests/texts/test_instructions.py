"""The headers of presets, and every preset that is part of the pack."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_refinery.captioning.json_schema import check_schema
from image_refinery.captioning.options import StageOptions, with_preset
from image_refinery.texts import Preset, presets, ready_instructions
from image_refinery.texts.instructions import parse_preset

FOLDER = Path(__file__).resolve().parents[2] / "instructions"
SHIPPED = presets([FOLDER])
MODELS = ("Qwen-Image", "Z-Image", "FLUX.2", "FLUX.2 as JSON", "Wan video", "LTX video")


def test_a_header_is_read_and_is_no_part_of_the_text() -> None:
    text = """---
source: https://example.com/a: b
date: 2026-11-30
num_predict: 300
format: {
  "type": "object",
  "properties": {"num_predict": {"type": "string"}}
}
---

Write JSON.
---
More."""
    expected = Preset(
        name="a/b",
        text="Write JSON.\n---\nMore.",
        source="https://example.com/a: b",
        date="2026-11-30",
        num_predict=300,
        format={"type": "object", "properties": {"num_predict": {"type": "string"}}},
    )
    assert parse_preset("a/b", text) == expected
    assert parse_preset("a/b", text.replace("\n", "\r\n")).format == expected.format
    assert parse_preset("x", "---\nformat: JSON\n---\nWrite.").format == "json"


@pytest.mark.parametrize(
    "text",
    [
        "Write.",
        "---\nWrite.\n---\nMore.",
        "---\ntitle: A text\n---\nMore.",
        "num_predict: 3",
        "---",
    ],
)
def test_a_text_without_a_header_stays_as_it_is(text: str) -> None:
    assert parse_preset("mine", text) == Preset(name="mine", text=text)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("num_predict: 0\n---", 'num_predict is "0", but must be a whole number from 1 to 131072'),
        ("num_predict: 1.5\n---", 'num_predict is "1.5"'),
        ("num_predict: \u0663\n---", 'num_predict is "\u0663"'),
        ("num_predict: 3\nmore " + "x" * 99 + "\n---", 'num_predict is "3 more xxxxx'),
        ("date: today\n---", 'date is "today", but must have the form 2026-11-30'),
        ("format: xml\n---", "format is neither the word json nor a JSON schema (Expecting value"),
        ('format: {"type": \n---', "format is neither the word json nor a JSON schema"),
        ("format: [1]\n---", "format must be the word json, or a JSON schema in braces"),
        ("format: " + "[" * 100_000 + "\n---", "format is neither"),
        ("source: a\nsource: b\n---", "source is there twice"),
        ("source: a\nnum_predit: 5\n---", '"num_predit" must be one of source, date, num_predict'),
        ("source:\n---", "source is empty"),
        ("source: a", "no line --- ends it"),
    ],
)
def test_a_wrong_header_is_one_sentence_and_the_preset_stays(header: str, why: str) -> None:
    preset = parse_preset("mine", f"---\n{header}\nWrite.")
    assert preset.problem.startswith(f'The header of the preset "mine" cannot be used: {why}')
    assert preset.problem.endswith(".") and "\n" not in preset.problem
    assert len(preset.problem) < 200
    assert "Write." in preset.text
    with pytest.raises(ValueError, match="cannot be used"):
        with_preset(StageOptions(), preset)


def test_a_schema_that_servers_cannot_use_names_its_preset() -> None:
    preset = Preset(name="mine", text="Write.", format={"type": "list"})
    with pytest.raises(ValueError, match='preset "mine" cannot be used: format: type is "list"'):
        with_preset(StageOptions(), preset)


def test_a_preset_fills_in_only_what_is_not_set() -> None:
    preset = Preset(name="mine", text="Write.", num_predict=5, format="json")
    mine = StageOptions(model_options={"num_ctx": 4096}, parallel=3)
    assert with_preset(mine, preset) == StageOptions(
        model_options={"num_ctx": 4096, "num_predict": 5}, format="json", parallel=3
    )
    mine = StageOptions(model_options={"num_predict": 9}, format={"type": "object"})
    assert with_preset(mine, preset) == mine
    assert with_preset(mine, Preset(name="plain", text="Write.")) == mine


def test_the_first_folder_wins_and_unusable_files_are_left_out(tmp_path: Path) -> None:
    own, pack = tmp_path / "own", tmp_path / "pack"
    for folder in (own, pack):
        folder.mkdir()
        (folder / "b.txt").write_text(f"---\nsource: me\n---\n{folder.name}")
    (own / "A.txt").write_text("first")
    (own / "empty.txt").write_text("---\nsource: me\n---\n \n")
    (own / "long.txt").write_text("x" * 100_001)
    assert ready_instructions([own, pack]) == {"A": "first", "b": "own"}


@pytest.mark.parametrize("preset", SHIPPED.values(), ids=SHIPPED)
def test_every_preset_of_the_pack_has_a_source_and_can_be_used(preset: Preset) -> None:
    assert preset.problem == "" and preset.text and preset.date
    assert preset.source.startswith("https://") or preset.source == "written for this pack"
    assert with_preset(StageOptions(), preset).format == preset.format
    if isinstance(preset.format, dict):
        check_schema(preset.format)
        assert_bounded(preset.format, preset.name)
        assert preset.num_predict


def assert_bounded(schema: dict[str, object], place: str) -> None:
    """Nothing in a schema may go on without end: small models would never close it."""
    kind = schema["type"]
    if kind == "object":
        properties = schema["properties"]
        assert isinstance(properties, dict)
        assert schema["required"] == list(properties), place
        assert schema["additionalProperties"] is False, place
        for name, inner in properties.items():
            assert_bounded(inner, f"{place}.{name}")
    elif kind == "array":
        assert isinstance(schema["maxItems"], int) and schema["maxItems"] <= 30, place
        assert isinstance(schema["items"], dict)
        assert_bounded(schema["items"], f"{place}.items")
    else:
        assert kind == "string", place
        bound = schema.get("maxLength", 0)
        # llama.cpp refuses a grammar with 2,000 repetitions or more.
        assert isinstance(bound, int) and bound < 2000
        assert bound or "enum" in schema or "pattern" in schema, place


def test_the_pack_has_presets_for_today_s_models_and_some_with_a_schema() -> None:
    assert {f"Prompt for {model}" for model in MODELS} < set(SHIPPED)
    assert {"Illustrious tags", "Pony tags", "Natural caption", "Alt text", "JSON prompt"} < set(
        SHIPPED
    )
    assert sum(isinstance(preset.format, dict) for preset in SHIPPED.values()) >= 3
