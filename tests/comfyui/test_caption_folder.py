"""Caption Folder in a real ComfyUI: two hundred images, cancelled at half, queued again."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from faulty_ollama import FaultyOllama, Reply
from host import ComfyHost, Graph, node
from PIL import Image

RED = "A red circle on a white background."
COUNT, CANCELLED_AT = 200, 101
MAY_GROW_BYTES = 50_000_000
"""Of the host, over the second half: a hundred images as float tensors would be 600 MB."""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_two_hundred_images_cancelled_at_half(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    folder = comfyui.base / "input" / "job"
    folder.mkdir()
    for shade in range(COUNT):
        image = Image.new("RGB", (800, 640), (shade, 0, 0))
        image.save(folder / f"{shade:03}.jpg")
    models = {"vision_model": "llava:latest", "text_model": "llama3.2:latest"}
    prompt: Graph = {
        "1": node("RefineryCaptionFolder", folder="job", instructions="", **models),
        "2": node("PreviewAny", source=["1", 2]),
    }

    def cancel(_: Any) -> Reply:
        if len(ollama.of("chat")) == CANCELLED_AT:
            comfyui.interrupt()
            return Reply(token_s=0.5)
        return Reply()

    ollama.always("chat", cancel)
    events = comfyui.listen()
    id = comfyui.queue(prompt, events)
    assert comfyui.finish(id, events, timeout_s=300).interrupted
    assert len(list(folder.glob("*.txt"))) == CANCELLED_AT - 1
    ollama.forget_script()
    before = comfyui.peak_memory_bytes()
    run = comfyui.run(prompt, timeout_s=300)
    assert run.ok
    (report,) = run.texts("2")
    assert report.startswith(f"{COUNT} of {COUNT} images captioned, {COUNT - CANCELLED_AT + 1} of")
    assert all(file.read_text() == RED for file in folder.glob("*.txt"))
    assert len(list(folder.glob("*.txt"))) == COUNT
    assert len(ollama.of("chat")) == COUNT + 1, "the one that was cancelled is asked again"
    assert ollama.loaded == []
    assert comfyui.peak_memory_bytes() - before < MAY_GROW_BYTES


def test_a_bad_image_and_a_server_that_is_gone(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    folder = comfyui.base / "input" / "bad"
    folder.mkdir()
    Image.new("RGB", (80, 64), "teal").save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    models = {"vision_model": "llava:latest", "text_model": "llama3.2:latest"}
    prompt: Graph = {
        "1": node("RefineryCaptionFolder", folder="bad", instructions="", **models),
        "2": node("PreviewAny", source=["1", 2]),
    }
    run = comfyui.run(prompt)
    assert run.ok and "1 failed (1 R302 UnusableImage)" in run.texts("2")[0]
    assert (folder / "a.txt").read_text() == RED
    ollama.stop_listening()
    Image.new("RGB", (80, 64), "peru").save(folder / "c.png")
    gone = comfyui.run(prompt)
    assert not gone.ok and "(R101)" in gone.error["exception_message"]
    ollama.listen_again()
    assert comfyui.run(prompt).ok and (folder / "c.txt").read_text() == RED
    prompt["1"]["inputs"]["folder"] = "../elsewhere"
    outside = comfyui.run(prompt)
    assert not outside.ok and "(R502)" in outside.error["exception_message"]
