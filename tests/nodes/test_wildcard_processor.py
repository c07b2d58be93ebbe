"""Wildcard Processor over the stub: lists, seeds, folders, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The node class, with a user folder and a models folder of its own."""
    import folder_paths
    from image_refinery.nodes.wildcard_processor import WildcardProcessor

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path / "user"))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    return WildcardProcessor


def execute(node: Any, *texts: str, **inputs: Any) -> list[str]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in inputs.items()}
    processed, original = node.execute(text=list(texts), **lists).result
    assert original == list(texts)
    return processed


def put(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text, "utf-8")


def test_the_schema_names_the_outputs_and_has_tooltips(node: Any) -> None:
    schema = node.define_schema()
    assert [one.id for one in schema.inputs] == ["text", "seed", "strip_comments"]
    assert [one.display_name for one in schema.outputs] == ["processed text", "original text"]
    assert all(one.tooltip for one in (*schema.inputs, *schema.outputs))
    text = schema.inputs[0].as_dict()
    assert text["dynamicPrompts"] is False, "the page must not resolve the braces before we do"


def test_the_same_seed_gives_the_same(node: Any) -> None:
    text = "__style/*__, {a|b|c}, __colour__"
    assert execute(node, text, seed=5) == execute(node, text, seed=5)
    assert len({execute(node, text, seed=seed)[0] for seed in range(20)}) > 10


def test_each_text_of_a_list_takes_the_next_seed(node: Any) -> None:
    text = "{a|b|c|d|e|f|g|h} {1|2|3|4|5|6|7|8}"
    together = execute(node, text, text, text, seed=7)
    alone = [execute(node, text, seed=seed)[0] for seed in (7, 8, 9)]
    assert together == alone
    assert execute(node, text, text, text, seed=[9, 7]) == [alone[2], alone[0], alone[1]]


def test_the_user_s_files_come_first_then_the_models_folder_then_ours(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    put(tmp_path / "models" / "wildcards", "colour", "model's")
    assert execute(node, "__colour__") == ["model's"]
    put(tmp_path / "extra", "colour", "extra")
    registered = {"wildcards": ([str(tmp_path / "extra")], set[str]())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", registered)
    assert execute(node, "__colour__") == ["extra"]
    put(tmp_path / "user" / "image-refinery" / "wildcards", "colour", "mine")
    assert execute(node, "__colour__") == ["mine"]
    assert execute(node, "__composition__")[0] != "__composition__", "the pack's own sample"


def test_the_sample_of_colors_has_both_spellings(node: Any) -> None:
    american, british = execute(node, "{all$$__color__}", "{all$$__colour__}", seed=1)
    assert american.replace("gray", "grey") == british and british.count(", ") > 10


def test_missing_names_stay_and_are_shown(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    from server import PromptServer

    PromptServer.instance.sent_texts.clear()
    running = type("Running", (node,), {"hidden": type("Hidden", (), {"unique_id": "4"})})
    output = running.execute(text=["__no_such__"])
    sentence = "There is no wildcard file with lines for __no_such__."
    assert output.result == (["__no_such__"], ["__no_such__"])
    assert output.ui == {"text": ["__no_such__"], "problems": [sentence]}
    assert PromptServer.instance.sent_texts == [("4", sentence)]
    assert sentence in caplog.text


def test_collections_are_read_and_a_broken_one_is_shown(node: Any, tmp_path: Path) -> None:
    mine = tmp_path / "models" / "wildcards" / "mine"
    mine.mkdir(parents=True)
    (mine / "all.yaml").write_text("artists:\n  dutch: [Vermeer]\n", "utf-8")
    (mine / "more.json").write_text('{"size": ["tall"]}', "utf-8")
    (mine / "broken.yaml").write_text("a:\n\t- b", "utf-8")
    output = node.execute(text=["__mine/artists/dutch__, __artists/*__, __size__ 3#__size__"])
    assert output.result[0] == ["Vermeer, Vermeer, tall 3#__size__"]
    form, broken = output.ui["problems"]
    assert form == "3#__size__ stays as it is: write {3$$__size__}."
    assert broken.startswith("broken.yaml cannot be read (line 2: ")


def test_an_edited_collection_runs_the_node_again(node: Any, tmp_path: Path) -> None:
    before = node.fingerprint_inputs(text=None, seed=0)
    folder = tmp_path / "models" / "wildcards"
    folder.mkdir(parents=True)
    (folder / "new.yaml").write_text("x: [y]", "utf-8")
    assert node.fingerprint_inputs(text=None, seed=0) != before


def test_comments_stay_unless_told_otherwise(node: Any) -> None:
    text = "# Heading\n{a|a}"
    assert execute(node, text) == ["# Heading\na"]
    assert execute(node, text, strip_comments=True) == ["a"]


def test_an_edited_file_runs_the_node_again(node: Any, tmp_path: Path) -> None:
    before = node.fingerprint_inputs(text=None, seed=0)
    assert node.fingerprint_inputs(text=None, seed=0) == before
    put(tmp_path / "models" / "wildcards", "new", "x")
    assert node.fingerprint_inputs(text=None, seed=0) != before


def test_every_sample_file_has_lines_that_resolve(node: Any) -> None:
    from image_refinery.nodes import host
    from image_refinery.texts import WildcardFiles, expand

    files = WildcardFiles([host.PACK_FOLDER / "wildcards"])
    assert len(files.names()) >= 8
    for name in files.names():
        for seed in range(20):
            result = expand(f"__{name}__", files, seed)
            assert not result.problems and "__" not in result.text and "{" not in result.text
