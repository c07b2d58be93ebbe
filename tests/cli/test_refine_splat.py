"""`image-refinery refine-splat` as it is typed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from image_refinery.__main__ import main
from image_refinery.refine.splats import Splat, read_ply, write_ply
from image_refinery.refine.stages import Stages
from PIL import Image

QUICK = ("--views", "2", "--size", "64", "--steps", "4", "--passes", "1")


@pytest.fixture(autouse=True)
def place(tiny_default: None) -> None:
    """Work in a folder that has a splat, with the tiny refiner as the default model."""
    random = torch.Generator().manual_seed(0)
    splat = Splat(
        positions=torch.randn(200, 3, generator=random),
        scales=torch.full((200, 3), 0.2),
        rotations=torch.tensor([[1.0, 0, 0, 0]]).expand(200, 4),
        opacities=torch.full((200,), 0.9),
        sh=torch.randn(200, 4, 3, generator=random),
    )
    write_ply(splat, "a.ply")


def test_the_colors_change_and_a_turntable_lies_beside(capsys: Any) -> None:
    assert main(["refine-splat", "a.ply", "-o", "out/b.ply", *QUICK]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(Path("out/b.ply")), str(Path("out/b-turntable.png"))]
    before, after = read_ply("a.ply"), read_ply("out/b.ply")
    assert torch.equal(after.positions, before.positions)
    assert torch.equal(after.sh[:, 1:], before.sh[:, 1:])
    assert not torch.equal(after.sh[:, 0], before.sh[:, 0])
    with Image.open("out/b-turntable.png") as sheet:
        assert sheet.size == (6 * 384, 2 * 384)
    assert sorted(path.name for path in Path("out").iterdir()) == ["b-turntable.png", "b.ply"]


@pytest.mark.parametrize("name", ["a-refined.ply", "a-refined-turntable.png"])
def test_nothing_is_overwritten_unasked(loads: list[str], capsys: Any, name: str) -> None:
    Path(name).write_text("mine")
    assert main(["refine-splat", "a.ply", *QUICK]) == 1
    assert f"{name} exists already. Add --overwrite" in capsys.readouterr().err
    assert Path(name).read_text() == "mine" and loads == []
    assert main(["refine-splat", "a.ply", "--overwrite", *QUICK]) == 0
    assert Path(name).read_bytes() != b"mine"


def test_the_splat_itself_is_never_the_output(loads: list[str], capsys: Any) -> None:
    before = Path("a.ply").read_bytes()
    assert main(["refine-splat", "a.ply", "-o", "a.ply", "--overwrite", *QUICK]) == 1
    assert "is the splat itself. Choose another file" in capsys.readouterr().err
    assert Path("a.ply").read_bytes() == before and loads == []


def test_a_bad_file_is_found_before_the_checkpoint_loads(loads: list[str], capsys: Any) -> None:
    Path("a.ply").write_bytes(Path("a.ply").read_bytes()[:-5])
    assert main(["refine-splat", "a.ply"]) == 1
    assert "a.ply is truncated" in (said := capsys.readouterr().err) and "(R408)" in said
    assert main(["refine-splat", "b.ply"]) == 1
    assert "b.ply cannot be read" in capsys.readouterr().err
    assert loads == []


@pytest.mark.skipif(os.name == "nt", reason="a signal to one process")
def test_ctrl_c_ends_it_and_leaves_no_file(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Stages.encode_prompts

    def press_soon(*arguments: Any) -> Any:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return encode(*arguments)

    monkeypatch.setattr(Stages, "encode_prompts", press_soon)
    assert main(["refine-splat", "a.ply", "--views", "200", "--size", "64"]) == 130
    assert "Cancelled" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.ply"]
