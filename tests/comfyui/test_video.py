"""The way of docs/how-to/caption-a-video.md: frames of a video in one question."""

from __future__ import annotations

import io
import subprocess

import pytest
from faulty_ollama import FaultyOllama, RecordedRequest, vision_model
from host import ComfyHost, clean_environment, node
from PIL import Image, ImageStat

# Eight frames of each color, without loss of their order.
WRITE = """
import sys, av, numpy
with av.open(sys.argv[1], "w") as file:
    stream = file.add_stream("mpeg4", rate=8)
    stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
    for color in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]:
        for _ in range(8):
            pixels = numpy.full((192, 320, 3), color, numpy.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                file.mux(packet)
    for packet in stream.encode():
        file.mux(packet)
"""


def strongest(request: RecordedRequest) -> str:
    """The channel that is strongest in each image."""
    means = [ImageStat.Stat(Image.open(io.BytesIO(data))).mean for data in request.images]
    return ", ".join("RGB"[mean.index(max(mean))] for mean in means)


def test_evenly_spaced_frames_are_one_question(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    if "VideoFrameSample" not in comfyui.object_info():
        pytest.skip("this ComfyUI has no Sample Video Frame")
    subprocess.run(
        [comfyui.found.python, "-c", WRITE, comfyui.base / "input" / "three colors.mp4"],
        check=True,
        env=clean_environment(),
        timeout=60,
    )
    ollama.models = {"llava:latest": vision_model(answer=strongest)}
    run = comfyui.run(
        {
            "1": node("LoadVideo", file="three colors.mp4"),
            "2": node("VideoFrameSample", video=["1", 0], num_frames=3, strategy="uniform", seed=0),
            "3": node("GetVideoComponents", video=["2", 0]),
            "4": node(
                "RefineryLLMDescribe",
                image=["3", 0],
                vision_model="llava:latest",
                custom_vision_prompt="These are frames of one video, in order. What happens?",
                batch_mode="one text for all images",
            ),
            "5": node("PreviewAny", source=["4", 1]),
        }
    )
    assert run.texts("5") == ["R, G, B"]
    (chat,) = [request for request in ollama.requests if request.kind == "chat"]
    assert chat.image_sizes == [(320, 192)] * 3
    assert chat.options["num_ctx"] == 10240, "as the page computes it"
