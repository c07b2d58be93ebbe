"""Placeholders from Load Images From Folder, and counted tokens, in a real ComfyUI."""

from __future__ import annotations

from faulty_ollama import FaultyOllama, vision_model
from host import ComfyHost, Graph, node
from PIL import Image


def test_names_fill_placeholders_and_tokens_are_counted(
    comfyui: ComfyHost, ollama: FaultyOllama
) -> None:
    folder = comfyui.base / "input" / "controlled"
    folder.mkdir()
    for shade, name in enumerate(("a", "b")):
        Image.new("RGB", (60, 40 + shade), (shade, 0, 0)).save(folder / f"{name}.png")
    (folder / "b.txt").write_text("ohwx dog")
    ollama.models = {"llava:latest": vision_model(answer="a red ball on snow")}
    prompt: Graph = {
        "1": node("RefineryLoadFolder", folder="controlled"),
        "2": node(
            "RefineryLLMDescribe",
            image=["1", 0],
            names=["1", 1],
            vision_model="llava:latest",
            custom_vision_prompt="{name} in {folder}, {width} x {height}: {tags}.",
        ),
        "3": node("PreviewAny", source=["2", 1]),
    }
    run = comfyui.run(prompt)
    assert run.ok and run.texts("3") == ["a red ball on snow", "a red ball on snow"]
    asked = [request.body["messages"][-1]["content"] for request in ollama.of("chat")]
    assert asked == [
        "a in controlled, 60 x 40: .",
        "b in controlled, 60 x 41: ohwx dog.",
    ]
    shown = [event.data["text"] for event in run.of("progress_text")]
    # CLIP: five words; T5: "a" is two tokens, of which one is a space.
    assert "Tokens: CLIP 5, T5 6." in shown[-1]
