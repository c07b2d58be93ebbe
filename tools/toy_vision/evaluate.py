"""Measure the exported toy vision model through llama.cpp on scenes that training never used.

    python tools/toy_vision/evaluate.py [--folder FOLDER] [--count 300]

prints, over all objects of the held-out scenes, the share with the right color and shape, the
share in the right place, and the share of sentences that are right to the letter; then the same
with red and blue exchanged in the images, and with the images mirrored, where the first
respectively the second figure must fall. Needs xllamacpp. With --checkpoint FILE (a checkpoint of
train.py; needs torch) it also counts the scenes about which torch says the same.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xllamacpp
from PIL import Image, ImageOps
from scenes import HELD_OUT_SEEDS, Scene, describe, draw_scene, score

MODELS = Path(__file__).resolve().parents[2] / "llm" / "llamacpp" / "models"
CONTEXT = 512
ERRORS_ONLY = 1


def open_model(folder: Path, threads: int = 1) -> Any:
    """Load the two files of a folder into llama.cpp."""
    llama: Any = xllamacpp  # its compiled half carries no types
    parameters = llama.CommonParams()
    parameters.model.path = str(folder / "toy-vision.gguf")
    parameters.mmproj.path = str(folder / "mmproj-toy-vision.gguf")
    parameters.n_ctx = CONTEXT
    parameters.cpuparams.n_threads = threads
    parameters.verbosity = ERRORS_ONLY
    return llama.Server(parameters)


def describe_image(
    server: Any, image: Image.Image | None, words: str = "Describe this image."
) -> str:
    """Return the model's answer to a chat request with one image, the most likely words."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if image is not None:
        parts.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    answer = server.handle_chat_completions(
        {"messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 64}
    )
    return answer["choices"][0]["message"]["content"]


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def swap_red_and_blue(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (blue, green, red))


def measure(
    server: Any,
    seeds: Iterable[int],
    change: Callable[[Image.Image], Image.Image],
    mistakes: bool = False,
) -> tuple[int, int, float, float, float]:
    """Return scenes, objects, and the shares right: color and shape, place, whole sentences."""
    scores, exact = [], []
    for seed in seeds:
        image, scene = draw_scene(seed)
        sentence = describe_image(server, change(image))
        scores += score(sentence, scene)
        exact.append(sentence == describe(scene))
        if mistakes and not exact[-1]:
            print(_mistake(seed, sentence, scene))
    return (
        len(exact),
        len(scores),
        sum(s.color_and_shape for s in scores) / len(scores),
        sum(s.place for s in scores) / len(scores),
        sum(exact) / len(exact),
    )


def agreement(server: Any, checkpoint: Path, seeds: Iterable[int]) -> tuple[int, int]:
    """Return how many sentences are the same in torch and through llama.cpp, and of how many."""
    import torch
    from export import load
    from resize import to_model_square

    model = load(checkpoint)
    same = []
    for seed in seeds:
        image, _ = draw_scene(seed)
        square = torch.from_numpy(to_model_square(image, model.shape.image_size))
        same.append(model.write(square[None]) == [describe_image(server, image)])
    return sum(same), len(same)


def _mistake(seed: int, sentence: str, scene: Scene) -> str:
    return f"seed {seed}\n  said {sentence}\n  true {describe(scene)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the toy vision model through llama.cpp.")
    parser.add_argument("--folder", type=Path, default=MODELS)
    parser.add_argument("--count", type=int, default=len(HELD_OUT_SEEDS), help="scenes, from 1")
    parser.add_argument("--mistakes", action="store_true", help="print each wrong sentence")
    parser.add_argument("--checkpoint", type=Path, help="compare with torch")
    arguments = parser.parse_args()
    server = open_model(arguments.folder)
    seeds = HELD_OUT_SEEDS[: arguments.count]
    print("images                  scenes  objects  color and shape  place   whole sentence")
    for name, change in {
        "as drawn": lambda image: image,
        "red and blue exchanged": swap_red_and_blue,
        "mirrored": ImageOps.mirror,
    }.items():
        mistakes = arguments.mistakes and name == "as drawn"
        scenes, objects, pairs, places, exact = measure(server, seeds, change, mistakes)
        row = f"{pairs:15.1%}  {places:6.1%}  {exact:14.1%}"
        print(f"{name:22}  {scenes:6}  {objects:7}  {row}", flush=True)
    if arguments.checkpoint is not None:
        same, asked = agreement(server, arguments.checkpoint, seeds)
        print(f"the same words in torch: {same} of {asked}")


if __name__ == "__main__":
    main()
