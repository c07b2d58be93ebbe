"""Kept answers and words in saved images, in a real ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faulty_ollama import FaultyOllama, Reply
from host import ComfyHost, Graph, node
from image_refinery.files.words import read_words
from PIL import Image

RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."


def graph(image: str, instructions: str = "Shorten it.") -> Graph:
    """Load Image -> LLM Image Refine -> Save Image, and a preview of the rewrite."""
    asks = {"vision_model": "llava:latest", "text_model": "llama3.2:latest"}
    refine = node("RefineryLLMImageRefine", image=["1", 0], user_instructions=instructions, **asks)
    return {
        "1": node("LoadImage", image=image),
        "2": refine,
        "3": node("SaveImage", images=["2", 0], filename_prefix="words"),
        "4": node("PreviewAny", source=["2", 2]),
    }


def queue_with_workflow(host: ComfyHost, prompt: Graph) -> dict[str, Any]:
    """Queue as the page does, with the workflow that goes into the image."""
    nodes = [{"id": int(id), "type": one["class_type"]} for id, one in prompt.items()]
    before = set(host.get("/history"))
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": nodes}}}}
    host.post("/prompt", body).raise_for_status()
    return host.new_run(before)


def saved_image(host: ComfyHost, run: dict[str, Any]) -> Path:
    (image,) = run["outputs"]["3"]["images"]
    return host.base / image["type"] / image["subfolder"] / image["filename"]


def test_edited_instructions_and_a_restart_load_no_vision_model(
    comfyui: ComfyHost, ollama: FaultyOllama
) -> None:
    image = comfyui.save_input(Image.new("RGB", (61, 47), "peru"))
    assert comfyui.run(graph(image)).ok
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 1}
    assert comfyui.run(graph(image, "Write a poem.")).texts("4") == [CRIMSON]
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 2}
    comfyui.restart()
    assert comfyui.run(graph(image, "Write a list.")).ok
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 3}
    asked = len(ollama.of("chat"))
    comfyui.restart()
    run = comfyui.run(graph(image, "Write a list."))
    assert run.texts("4") == [CRIMSON] and len(ollama.of("chat")) == asked
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 3}


def test_two_hundred_images_cancelled_at_ninety(comfyui: ComfyHost, ollama: FaultyOllama) -> None:
    folder = comfyui.base / "input" / "two-hundred"
    folder.mkdir()
    for shade in range(200):
        Image.new("RGB", (40, 30), (shade, 0, 0)).save(folder / f"{shade:03}.png")
    prompt: Graph = {
        "1": node("RefineryLoadFolder", folder="two-hundred", limit=0),
        "2": node("RefineryLLMDescribe", image=["1", 0], vision_model="llava:latest"),
        "3": node("PreviewAny", source=["2", 1]),
    }

    def cancel_at_ninety(_: Any) -> Reply:
        if len(ollama.of("chat")) == 91:
            comfyui.interrupt()
            return Reply(token_s=0.5)
        return Reply()

    ollama.always("chat", cancel_at_ninety)
    events = comfyui.listen()
    id = comfyui.queue(prompt, events)
    assert comfyui.finish(id, events, timeout_s=300).interrupted
    assert len(ollama.of("chat")) == 91, "the last of them was cancelled"
    ollama.forget_script()
    assert comfyui.run(prompt, timeout_s=300).ok
    assert len(ollama.of("chat")) == 91 + 110


def test_words_are_in_the_saved_image_unless_metadata_is_off(
    comfyui: ComfyHost, ollama: FaultyOllama, found_comfyui: Any, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (45, 39), "orchid")
    run = queue_with_workflow(comfyui, graph(comfyui.save_input(picture)))
    saved = saved_image(comfyui, run)
    words = read_words(saved)["2"]
    assert (words["description"], words["refined_output"]) == ([RED], [CRIMSON])
    with Image.open(saved) as image:
        (kept,) = [one for one in json.loads(image.info["workflow"])["nodes"] if one["id"] == 2]
    assert kept["properties"]["image_refinery"] == words

    env = {"OLLAMA_BASE_URL": ollama.url}
    with ComfyHost(
        found_comfyui, tmp_path / "bare", env=env, arguments=["--disable-metadata"]
    ) as bare:
        run = queue_with_workflow(bare, graph(bare.save_input(picture)))
        with Image.open(saved_image(bare, run)) as image:
            assert image.info == {}
