"""`image-refinery batch --workflow` with a real ComfyUI: five images, inverted and downloaded."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from host import ComfyHost, Graph, node
from image_refinery import jobs
from image_refinery.cli.main import main
from image_refinery.llm.errors import Cancelled
from PIL import Image, ImageChops, ImageOps

NAMES = ("a.png", "b b.png", "caf\u00e9.png", "d.jpg", "in/a.png")
INVERT: Graph = {
    "1": node("LoadImage", image="{image}"),
    "2": node("ImageInvert", image=["1", 0]),
    "3": node("SaveImage", images=["2", 0], filename_prefix="inverted/{name}"),
    "4": node("PreviewAny", source="Inverted {name}."),
}

SLOW: Graph = {
    "1": node("LoadImage", image="{image}"),
    "2": node("ImageScale", image=["1", 0], upscale_method="lanczos", width=7000, height=7000,
              crop="disabled"),
    "3": node("ImageScale", image=["2", 0], upscale_method="lanczos", width=6000, height=6000,
              crop="disabled"),
    "4": node("PreviewAny", source=["3", 0]),
}  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images, one of them in a folder inside."""
    top = tmp_path / "set"
    (top / "in").mkdir(parents=True)
    for shade, name in enumerate(NAMES):
        Image.new("RGB", (64, 48), (40 * shade, 20, 200)).save(top / name)
    return top


def words(host: ComfyHost, images: Path, graph: Graph, *more: str) -> list[str]:
    """Return the command for a job over the images."""
    file = images.parent / "workflow.json"
    file.write_text(json.dumps(graph))
    job = str(images.parent / "job")
    start = ["batch", str(images), "--recursive", "--job", job, "--workflow", str(file)]
    return [*start, "--comfyui", host.url, *more]


def test_five_images_are_inverted_and_downloaded(
    comfyui: ComfyHost, images: Path, capsys: Any
) -> None:
    out = images.parent / "out"
    command = words(comfyui, images, INVERT, "--output", str(out))
    before = set(comfyui.get("/history"))
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "5 done, 0 failed, 0 left." in said
    assert len(set(comfyui.get("/history")) - before) == 5
    for name in NAMES:
        with (
            Image.open(images / name) as original,
            Image.open((out / name).with_suffix(".png")) as result,
        ):
            wanted = ImageOps.invert(original.convert("RGB"))
            apart = ImageChops.difference(result.convert("RGB"), wanted)
        # Save Image cuts what floats leave below a whole number.
        assert max(most for _, most in apart.getextrema()) <= 1, name
    rows = {row["id"]: row for row in jobs.Rows(images.parent / "job")}
    assert sorted(rows) == sorted(NAMES)
    shown = rows["caf\u00e9.png"]["outputs"]
    assert shown["4"]["text"] == ["Inverted caf\u00e9."]
    (image,) = shown["3"]["images"]
    assert (comfyui.base / "output" / image["subfolder"] / image["filename"]).is_file()
    uploaded = list((comfyui.base / "input" / "image-refinery" / "job").iterdir())
    assert len(uploaded) == 5
    assert main(command) == 0
    assert len(set(comfyui.get("/history")) - before) == 5, "the second run queues nothing"


def test_what_a_real_comfyui_refuses_and_what_fails(
    comfyui: ComfyHost, images: Path, capsys: Any
) -> None:
    graph = {**INVERT, "2": node("ImageScale", image=["1", 0], width=8, height=8, crop="disabled")}
    command = words(comfyui, images, graph)
    assert main(command) == 1
    assert "node 2 (ImageScale): Required input is missing: upscale_method" in (
        capsys.readouterr().err
    )
    graph["2"] = node("NoSuchNode", image=["1", 0])
    other = ["--job", str(images.parent / "job2")]
    assert main([*words(comfyui, images, graph), *other]) == 1
    assert "NoSuchNode" in capsys.readouterr().err
    (images / "b b.png").write_text("no image")
    (images / "caf\u00e9.png").unlink()
    other = ["--job", str(images.parent / "job3")]
    assert main([*words(comfyui, images, INVERT), *other]) == 1
    said = capsys.readouterr().err
    assert "3 done, 1 failed, 0 left." in said and "R514" in said
    rows = {row["id"]: row for row in jobs.Rows(images.parent / "job3")}
    assert "LoadImage (node 1): " in rows["b b.png"]["error"]["message"]


def test_a_cancel_interrupts_what_is_running_and_nothing_else(
    comfyui: ComfyHost, images: Path
) -> None:
    stop = threading.Event()

    def press() -> None:
        while not comfyui.get("/queue")["queue_running"]:
            time.sleep(0.02)
        stop.set()

    thread = threading.Thread(target=press)
    thread.start()
    server = jobs.ComfyUI(comfyui.url)
    found = jobs.Workflow(SLOW, frozenset(("image",)))
    before = set(comfyui.get("/history"))
    with pytest.raises(Cancelled):
        jobs.run_workflow(
            jobs.find_items([images]), found, [server], images.parent, cancelled=stop.is_set
        )
    thread.join()
    server.close()
    entry = comfyui.new_run(before)
    assert [name for name, _ in entry["status"]["messages"]][-1] == "execution_interrupted"
    queue = comfyui.get("/queue")
    assert not queue["queue_running"] and not queue["queue_pending"]
    assert len(set(comfyui.get("/history")) - before) == 1


def test_a_restart_loses_no_image(comfyui: ComfyHost, images: Path, capsys: Any) -> None:
    def restart() -> None:
        while not comfyui.get("/queue")["queue_running"]:
            time.sleep(0.02)
        comfyui.restart()

    thread = threading.Thread(target=restart)
    thread.start()
    assert main(words(comfyui, images, SLOW, "--limit", "2")) == 0
    thread.join()
    said = capsys.readouterr().err
    assert "The job waits for it" in said and "2 done, 0 failed, 3 left." in said
