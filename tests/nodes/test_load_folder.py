"""Load Images From Folder over the stub: which files, in which order, and what is left out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def input_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    for name, size in (("10.png", (6, 4)), ("2.jpg", (8, 5)), ("in/3.png", (3, 3))):
        file = tmp_path / "input" / "cats" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (255, 0, 51)).save(file)
    return tmp_path / "input"


@pytest.fixture
def node(input_folder: Path) -> Any:
    from image_refinery.nodes.load_folder import LoadImagesFromFolder

    return LoadImagesFromFolder


def load(node: Any, **inputs: Any) -> tuple[list[torch.Tensor], list[str]]:
    return node.execute(**({"folder": "cats"} | inputs)).result


def test_the_list_of_folders_holds_the_input_folder_s(node: Any) -> None:
    (folder, *others) = node.define_schema().inputs
    assert folder.get_io_type() == "COMBO,STRING"
    assert folder.as_dict()["options"] == ["(input folder)", "cats", "cats/in"]
    assert all(one.tooltip for one in (folder, *others, *node.define_schema().outputs))
    assert all(one.is_output_list for one in node.define_schema().outputs)
    assert node.validate_inputs(folder="from another machine") is True


def test_each_picture_has_its_own_size_and_its_name_in_the_input_folder(node: Any) -> None:
    images, names = load(node)
    assert names == ["cats/2.jpg", "cats/10.png"]
    assert [tuple(image.shape) for image in images] == [(1, 5, 8, 3), (1, 4, 6, 3)]
    assert images[1].dtype == torch.float32
    assert torch.allclose(images[1][0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert load(node, recursive=True)[1] == ["cats/2.jpg", "cats/10.png", "cats/in/3.png"]


def test_pattern_start_and_limit(node: Any) -> None:
    assert load(node, recursive=True, start=1, limit=1)[1] == ["cats/10.png"]
    assert load(node, pattern="*.JPG")[1] == ["cats/2.jpg"]
    for whole in ("(input folder)", "."):  # a dot in workflows of version 0.1
        assert load(node, folder=whole, recursive=True, start=2)[1] == ["cats/in/3.png"]


def test_damaged_files_are_reported_and_left_out(
    node: Any, input_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (input_folder / "cats" / "1.png").write_bytes(b"no picture")
    output = node.execute(folder="cats")
    assert output.result[1] == ["cats/2.jpg", "cats/10.png"]
    (problem,) = output.ui["problems"]
    assert "1.png is not an image" in problem and problem.endswith("(R503)")
    assert problem.removesuffix(" (R503)") in caplog.text


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"folder": "../.."}, "cannot be used"),
        ({"folder": "/etc"}, "cannot be used"),
        ({"folder": "dogs"}, "There is no folder"),
        ({"pattern": "*.webp"}, "no file matches"),
        ({"start": 99}, "no file matches"),
    ],
)
def test_nothing_to_load_is_one_sentence(node: Any, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, NotADirectoryError), match=words):
        load(node, **inputs)


def test_only_damaged_files_is_an_error(node: Any, input_folder: Path) -> None:
    for file in (input_folder / "cats").glob("*.*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 could be read"):
        load(node)


def test_a_changed_folder_runs_the_node_again(node: Any, input_folder: Path) -> None:
    before = node.fingerprint_inputs(folder="cats", recursive=False)
    assert node.fingerprint_inputs(folder="cats", recursive=False) == before
    Image.new("RGB", (2, 2)).save(input_folder / "cats" / "3.png")
    assert node.fingerprint_inputs(folder="cats", recursive=False) != before
    assert math.isnan(node.fingerprint_inputs(folder=None)), "a linked folder: always"
    assert math.isnan(node.fingerprint_inputs(folder="nowhere"))


def test_cancel_ends_it_between_two_pictures(node: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        load(node)


def test_grey_pictures_of_16_bits_and_transparent_ones(node: Any, input_folder: Path) -> None:
    grey = np.full((2, 2), 32768, np.uint16)
    Image.fromarray(grey).save(input_folder / "grey.png")
    Image.new("LA", (2, 2), (255, 0)).save(input_folder / "clear.png")
    images, names = load(node, folder=".")
    assert names == ["clear.png", "grey.png"]
    assert images[0].shape == images[1].shape == (1, 2, 2, 3)
    assert images[1][0, 0, 0, 0] == pytest.approx(32768 / 65535)


def test_the_node_says_what_it_left_out(
    node: Any, input_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes import host

    shown: list[tuple[str, ...]] = []
    monkeypatch.setattr(host, "show", lambda _, *lines: shown.append(lines))
    for number in range(4, 9):
        Image.new("RGB", (2, 2)).save(input_folder / "cats" / f"{number}.png")
    load(node)
    assert shown.pop() == ("loaded 7 images.",)
    load(node, start=1, limit=2)
    assert shown.pop() == ("loaded 2 images, left out 1 by skip first, 4 by max images.",)
    (input_folder / "cats" / "4.png").write_bytes(b"no image")
    assert load(node, limit=0) and shown.pop()[0] == "loaded 6 images, left out 1 unreadable."


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_links_that_lead_out_are_left_out_and_counted(
    node: Any, input_folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "elsewhere.png")
    (input_folder / "cats" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    output = node.execute(folder="cats")
    assert output.result[1] == ["cats/2.jpg", "cats/10.png"]
    assert output.ui["summary"] == [
        "loaded 2 images, left out 1 links that lead out of the input folder."
    ]
