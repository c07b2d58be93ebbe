"""Save Caption over the stub: where the file goes, and what is never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import folder_paths
    from image_refinery.nodes.save_caption import SaveCaption

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return SaveCaption


def save(node: Any, name: str = "cats/one.png", text: str = "a cat", **inputs: Any) -> Any:
    """Call the node as ComfyUI does: every input is a list."""
    given = {"name": name, "text": text, "place": "input"} | inputs
    return node.execute(
        **{id: value if isinstance(value, list) else [value] for id, value in given.items()}
    )


def test_the_caption_lies_beside_the_picture(node: Any, tmp_path: Path) -> None:
    output = save(node, prefix="ohwx, ", suffix=", photo")
    assert output.result == (["a cat"], ["cats/one.txt"])
    assert (tmp_path / "input" / "cats" / "one.txt").read_text() == "ohwx, a cat, photo"


def test_or_in_a_folder_of_the_output(node: Any, tmp_path: Path) -> None:
    assert save(node, place="output", subfolder="set\\1").result[1] == ["set/1/cats/one.txt"]
    assert (tmp_path / "output" / "set" / "1" / "cats" / "one.txt").is_file()
    assert not (tmp_path / "input").exists()


def test_a_caption_that_exists_stays_unless_told_otherwise(node: Any, tmp_path: Path) -> None:
    file = tmp_path / "input" / "cats" / "one.txt"
    save(node)
    assert save(node, text="b").ui["text"] == ["cats/one.txt exists and was kept."]
    assert file.read_text() == "a cat"
    save(node, text="b", existing="append")
    assert file.read_text() == "a cat, b"
    save(node, text="c", existing="overwrite")
    assert file.read_text() == "c"


@pytest.mark.parametrize(
    "inputs",
    [
        {"name": "../one.png"},
        {"name": "/tmp/one.png"},
        {"name": "C:\\one.png"},
        {"name": "one.png", "subfolder": ".."},
        {"name": "a\0.png"},
    ],
)
def test_nothing_is_written_outside(node: Any, tmp_path: Path, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        save(node, **inputs)
    assert list(tmp_path.rglob("*.txt")) == []


def test_a_caption_that_is_a_link_to_elsewhere_is_refused(node: Any, tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    try:
        (tmp_path / "input" / "one.txt").symlink_to(tmp_path / "precious.txt")
    except OSError:
        pytest.skip("making links needs a privilege on Windows")
    with pytest.raises(ValueError, match="cannot be used"):
        save(node, name="one.png", existing="overwrite")
    assert not (tmp_path / "precious.txt").exists()


def test_an_empty_name_is_one_sentence(node: Any) -> None:
    with pytest.raises(ValueError, match="name is empty"):
        save(node, name=" ")


def test_an_error_s_message_is_no_caption(node: Any, tmp_path: Path) -> None:
    from image_refinery.captioning.job import Result
    from image_refinery.llm.errors import NoPrompt
    from image_refinery.nodes.llm_run import to_texts

    (message,) = to_texts([Result(error=NoPrompt("nothing to ask"))])
    output = save(node, text=message)
    assert output.result[0] == ["Error: nothing to ask (R303)"]
    assert "was not written" in output.ui["text"][0]
    assert not (tmp_path / "input").exists()
    save(node, text="Error: a sign that says 404")
    assert (tmp_path / "input" / "cats" / "one.txt").is_file(), "an answer may begin so"


def test_a_place_that_does_not_exist_is_refused(node: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='save to is "root"'):
        save(node, place="root")
    assert list(tmp_path.rglob("*.txt")) == []


def test_what_cannot_be_written_is_one_sentence(node: Any, tmp_path: Path) -> None:
    (tmp_path / "input" / "taken.txt").mkdir(parents=True)
    for name in ("x" * 300 + ".png", "taken.png"):
        with pytest.raises(ValueError, match=r"Cannot write .*another name or subfolder\."):
            save(node, name=name, existing="overwrite")
    (tmp_path / "input" / "old.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"Cannot append to old\.txt, which is not UTF-8.*choose overwrite\."
    ):
        save(node, name="old.png", existing="append")
    assert (tmp_path / "input" / "old.txt").read_bytes() == "caf\u00e9".encode("latin-1")


NAMES = ["cats/one.jpg", "cats/one.png", "cats/two.png"]


def test_the_second_of_two_images_with_one_caption_file_is_refused(
    node: Any, tmp_path: Path
) -> None:
    output = save(node, name=NAMES, text=["a", "b", "c"], existing="overwrite")
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["one.txt", "two.txt"]
    assert (tmp_path / "input" / "cats" / "one.txt").read_text() == "a"
    assert output.ui["summary"] == ["2 written, 0 skipped, 1 refused"]
    assert "cats/one.png was left out" in output.ui["text"][1]
    assert 'set "if names clash" to "full name"' in output.ui["text"][1]


def test_or_named_in_full(node: Any, tmp_path: Path) -> None:
    output = save(node, name=NAMES, text=["a", "b", "c"], same_name="full name")
    assert output.result[1] == ["cats/one.txt", "cats/one.png.txt", "cats/two.txt"]
    assert (tmp_path / "input" / "cats" / "one.png.txt").read_text() == "b"


def test_the_node_says_what_became_of_each_caption(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes import host
    from image_refinery.nodes.llm_inputs import ErrorText

    shown: list[tuple[str, ...]] = []
    monkeypatch.setattr(host, "show", lambda _, *lines: shown.append(lines))
    save(node, name="two.png", text="mine")
    error = ErrorText("Error: no model")
    save(node, name=["one.png", "two.png", "three.png"], text=["a", "b", error])
    summary, reason = shown[-1]
    assert summary == "1 written, 1 skipped, 1 refused."
    assert reason == "three.txt was not written. Error: no model"
    assert (tmp_path / "input" / "two.txt").read_text() == "mine"


def test_one_file_that_cannot_be_written_costs_no_other(node: Any, tmp_path: Path) -> None:
    (tmp_path / "input" / "two.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Cannot write two\.txt .*2 written"):
        save(node, name=["one.png", "two.png", "3.png"], text="a", existing="overwrite")
    assert (tmp_path / "input" / "3.txt").read_text() == "a"


def test_a_caption_is_one_line_unless_line_breaks_are_kept(node: Any, tmp_path: Path) -> None:
    save(node, text="a\nb", prefix="ohwx,\n")
    assert (tmp_path / "input" / "cats" / "one.txt").read_text() == "ohwx, a b"
    save(node, text="a\nb", existing="overwrite", keep_line_breaks=True)
    assert (tmp_path / "input" / "cats" / "one.txt").read_text() == "a\nb"


def test_a_bad_name_is_refused_before_the_text_is_written_by_a_model(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes import host

    shown: list[str] = []
    monkeypatch.setattr(host.errors, "show", lambda _, *lines: shown.extend(lines))
    assert node.validate_inputs(name=[" "]).startswith("name is empty")
    assert node.validate_inputs(name=["a.png"]) is True
    assert node.validate_inputs(name=(None,)) is True, "linked: not known before the run"
    assert node.check_lazy_status(text=(None,), name=["a.png"], place=["input"]) == ["text"]
    for name in ("", "/data/one.png"):
        with pytest.raises(ValueError, match=r"Load Images From Folder|cannot be used"):
            node.check_lazy_status(text=(None,), name=["a.png", name], place=["input"])
        assert shown.pop().startswith("Error: ")
