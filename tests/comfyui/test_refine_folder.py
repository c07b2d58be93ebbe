"""Refine Folder in a real ComfyUI: twenty images, cancelled at half, queued again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from host import TINY, ComfyHost, Graph, node, put_tiny
from PIL import Image

NODE = "RefineryRefineFolder"
COUNT, CANCELLED_AT = 20, 10


def prepare(host: ComfyHost, name: str, count: int) -> Path:
    """Put the tiny refiner among the checkpoints, and images into a folder of the input."""
    put_tiny(host)
    folder = host.base / "input" / name
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index:03}.png")
    return folder


def refine(folder: str, **inputs: Any) -> Graph:
    """The node with its required inputs, as a page would send them; small work."""
    usual = {
        "checkpoint": TINY,
        "strength": 0.5,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "prompt": "",
        "negative_prompt": "",
        "working_size": "keep size",
    }
    return {
        "1": node(NODE, folder=folder, **(usual | inputs)),
        "2": node("PreviewAny", source=["1", 2]),
        "3": node("PreviewAny", source=["1", 1]),
    }


def test_cancelled_at_half_and_queued_again(comfyui: ComfyHost) -> None:
    folder = prepare(comfyui, "job", COUNT)
    graph = refine("job")
    refined = comfyui.base / "output" / "refined"
    events = comfyui.listen()
    try:
        id = comfyui.queue(graph, events)
        events.wait_for(
            "progress", timeout_s=300, node="1", value=1000 * CANCELLED_AT, max=1000 * COUNT
        )
        comfyui.interrupt()
        run = comfyui.finish(id, events, timeout_s=60)
    finally:
        events.close()
    assert run.interrupted
    (stopped,) = run.of("execution_interrupted")
    asked = run.of("progress", node="1", value=1000 * CANCELLED_AT)[0]
    # Refining stops in an instant; collecting the freed weights takes longer on a busy machine.
    assert stopped.at - asked.at < 3.0
    done = {file: file.stat().st_mtime_ns for file in refined.rglob("*.png")}
    assert CANCELLED_AT - 1 <= len(done) <= CANCELLED_AT + 1
    (words,) = [e for e in run.of("progress_text") if "cancelled:" in e.data["text"]]
    assert f"{len(done)} of {COUNT} images refined" in words.data["text"]

    run = comfyui.run(graph, timeout_s=300)
    assert run.ok, run.error
    (report,) = run.texts("2")
    assert report.startswith(f"{COUNT} of {COUNT} images refined, {COUNT - len(done)} of them in ")
    (made,) = refined.iterdir()
    assert run.texts("3") == [f"refined/{made.name} [output]"]
    assert len(list(made.iterdir())) == COUNT == len(list(folder.iterdir()))
    assert {file: file.stat().st_mtime_ns for file in done} == done

    assert "1" in comfyui.run(graph).cached, "nothing has changed"
    Image.open(folder / "000.png").save(folder / "new.png")
    again = comfyui.run(graph, timeout_s=60)
    assert again.texts("2")[0].startswith(f"{COUNT + 1} of {COUNT + 1} images refined, 1 of them")


def test_bad_images_and_names(comfyui: ComfyHost) -> None:
    folder = prepare(comfyui, "bad", 1)
    (folder / "b.png").write_text("no image")
    graph = refine("bad", format="webp")
    run = comfyui.run(graph, timeout_s=300)
    assert run.ok and "1 failed (1 R302 UnusableImage)" in run.texts("2")[0]
    shutil.copy2(folder / "000.png", folder / "b.png")
    graph["1"]["inputs"]["retry_failed"] = True
    run = comfyui.run(graph, timeout_s=60)
    assert run.ok and run.texts("2")[0].startswith("2 of 2 images refined, 1 of them")
    shutil.copy2(folder / "000.png", comfyui.base / "output" / "one.png")
    for inputs, code in (
        ({"folder": "../elsewhere"}, "(R502)"),
        ({"folder": "bad", "checkpoint": "gone.safetensors"}, "(R403)"),
        ({"folder": "(output folder)", "include_subfolders": True}, "(R501)"),
    ):
        wrong = comfyui.run(refine(**inputs), timeout_s=60)
        assert not wrong.ok and code in wrong.error["exception_message"]


def test_a_linked_prompt_and_folder_are_taken(comfyui: ComfyHost) -> None:
    prepare(comfyui, "linked", 1)
    graph = refine("linked")
    graph["4"] = node("PrimitiveString", value="linked")
    graph["5"] = node("PrimitiveString", value="a red ball")
    graph["1"]["inputs"] |= {"folder": ["4", 0], "prompt": ["5", 0]}
    run = comfyui.run(graph, timeout_s=300)
    assert run.ok, run.error
    (name,) = run.texts("3")
    (file,) = (comfyui.base / "output" / name.removesuffix(" [output]")).iterdir()
    with Image.open(file) as image:
        assert '"prompt": "a red ball"' in image.text["image-refinery"]  # pyright: ignore[reportAttributeAccessIssue]
