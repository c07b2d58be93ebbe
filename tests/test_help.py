"""Every node has a help page that names all its inputs and outputs, and translations hold all."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image_refinery.ollama_client.client  # noqa: F401 (requests warns at import: not in a thread)
import pytest
from PIL import Image

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LANGUAGES = ["en", "zh", "ja", "de", "fr", "es"]
SPECIAL = re.compile(r"[{}|]|@(?=\S)")
"""Signs that the page's translations give a meaning of their own."""


def _load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schemas(comfy: None) -> Iterator[list[Any]]:
    """The schema of every node of the pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")  # nobody is asked for models
        nodes = importlib.import_module("image_refinery.nodes")
        listed = asyncio.run(nodes.ImageRefineryExtension().get_node_list())
        yield [node.define_schema() for node in listed]


@pytest.fixture(scope="module")
def english(schemas: list[Any]) -> dict[str, Any]:
    """What locales/en must hold."""
    return _load("make_locales", ROOT / "tools" / "make_locales.py").node_definitions(schemas)


def leaves(entry: Any, path: str = "") -> dict[str, str]:
    """{"Node.inputs.seed.tooltip": text} of a nested definition."""
    if isinstance(entry, str):
        return {path.lstrip("."): entry}
    found: dict[str, str] = {}
    for key, inner in entry.items():
        found |= leaves(inner, f"{path}.{key}")
    return found


def language(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / name / "nodeDefs.json").read_text("utf-8"))


def test_every_input_and_output_has_a_name_and_a_tooltip(english: dict[str, Any]) -> None:
    assert len(english) >= 12
    for place, text in leaves(english).items():
        assert isinstance(text, str) and text, place
        assert ";" not in text and len(re.findall(r"[.!?] [A-Z-]", text)) <= 1, (
            f"{place}: at most two sentences, without a semicolon: {text}"
        )
        assert not SPECIAL.search(text), f"{place}: the page's translations would read {text}"


def test_every_node_can_be_found_by_other_words(schemas: list[Any]) -> None:
    for schema in schemas:
        assert re.fullmatch("Image Refinery/(LLM|Image|3D|Utilities)", schema.category)
        assert schema.description.endswith(".")


def test_english_is_what_the_nodes_say(english: dict[str, Any]) -> None:
    assert language("en") == english, "run: python tools/make_locales.py"


@pytest.mark.parametrize("name", LANGUAGES[1:])
def test_a_language_is_complete(name: str, english: dict[str, Any]) -> None:
    own, wanted = leaves(language(name)), leaves(english)
    assert set(own) == set(wanted)
    assert all(own.values())
    for place, text in own.items():
        assert not SPECIAL.search(text), place
    same = [place for place in own if place.endswith("tooltip") and own[place] == wanted[place]]
    assert same == [], "not translated"


def test_machine_made_languages_say_so() -> None:
    said = (ROOT / "locales" / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in said for name in LANGUAGES) and "machine" in said


def test_every_help_page_lists_the_inputs_and_outputs_of_its_node(schemas: list[Any]) -> None:
    tool = _load("make_locales", ROOT / "tools" / "make_locales.py")
    for schema in schemas:
        page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        assert page == tool.help_page(page, schema), "run: python tools/make_locales.py"


def test_help_pages_fit_a_narrow_panel(schemas: list[Any]) -> None:
    """The panel is 250 px wide at first, which cuts tables off."""
    for schema in schemas:
        page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text("utf-8")
        assert not re.search(r"^\s*\|", page, re.MULTILINE), schema.node_id
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
        assert not re.search(r"__\w+__", prose), f"{schema.node_id}: shown in bold"


def test_every_help_page_has_a_small_picture_where_the_page_looks_for_it(
    schemas: list[Any],
) -> None:
    docs = ROOT / "web" / "docs"
    for schema in schemas:
        page = (docs / f"{schema.node_id}.md").read_text("utf-8")
        found = re.findall(r"!\[([^]]{20,})\]\(([^)]+)\)", page)
        # Both ComfyUI (to /extensions/FOLDER/docs/) and code hosts add a relative path to docs/.
        assert [path for _, path in found] == [f"images/{schema.node_id}.png"]
        file = docs / found[0][1]
        assert file.stat().st_size < 60_000, file.name
        with Image.open(file) as picture:
            assert (picture.format, picture.mode) == ("PNG", "P") and picture.width == 352
    assert len(list((docs / "images").iterdir())) == len(schemas)


def test_every_use_of_the_specification_can_be_found(schemas: list[Any]) -> None:
    """Its use cases and examples are texts to pick; the help page and the README name them."""
    ready = {file.stem for file in (ROOT / "instructions").glob("*.txt")}
    help_page = (ROOT / "web" / "docs" / "RefineryLLMImageRefine.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    uses = ("Enhanced description", "Creative reinterpretation", "Technical analysis",
            "Style transfer", "Keyword extraction", "Translation", "Comic panel",
            "SEO alt text")  # fmt: skip
    for use in uses:
        assert use in ready and use in help_page and use in readme
    for file in (ROOT / "example_workflows").glob("*.json"):
        assert f"*{file.stem}*" in readme


def test_docs_speak_of_every_node(schemas: list[Any]) -> None:
    page = (ROOT / "docs" / "nodes.md").read_text("utf-8")
    for schema in schemas:
        assert f"## {schema.display_name}\n" in page, schema.display_name
