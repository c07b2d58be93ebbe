"""Make example_workflows/*.jpg: what ComfyUI's template browser shows of each workflow.

    python tools/template_cards.py [NAME ...]

Starts ComfyUI (COMFYUI_PATH, or where the tests look) with a scripted server and the tiny refiner,
runs each workflow as far as that goes, and shows what it made: nodes that need SDXL, TRELLIS.2 or
TripoSplat are left out, or replaced by a drawn splat. The last line of each image says that the
result is not a real model's.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import textwrap
from itertools import cycle
from pathlib import Path
from typing import Any

from comfyui_host import load_host
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faulty_ollama import FaultyOllama, Reply, text_model, vision_model  # noqa: E402

API = ROOT / "tests" / "workflows" / "api"
TINY = ROOT / "tools" / "tiny_refiner" / "weights"
REFINER = "sd_xl_refiner_1.0"
NEEDS_WEIGHTS = {"CheckpointLoaderSimple", "UNETLoader", "LoadBackgroundRemovalModel"}

SIZE = (960, 600)
TILE_PX, EDGE_PX, TEXT_PX, SMALL_PX = 430, 32, 30, 22
BACKGROUND, PAPER, WORDS, QUIET = "#202225", "#2c2f33", "#f2f2f2", "#b5b8bd"

PHOTO, COFFEE, DAMAGED = "photo.jpg", "coffee.jpg", "scene-damaged.jpg"
SEEN = {
    PHOTO: "A raccoon looks out between green leaves: gray fur, a black mask around bright "
    "eyes, white whiskers and pointed ears, in soft daylight.",
    COFFEE: "A cup of espresso on a wooden table, with a silver spoon.",
    DAMAGED: "A drawn scene: a green circle, a red star and an orange triangle.",
}
TILES = (
    "Gray fur and a pointed ear.", "A black mask around a bright eye.", "Long green leaves.",
    "White whiskers and a dark nose.",
)  # fmt: skip
SCRIPTED = "The text is by a scripted server, not by a model."
SDXL = "The prompt is by a scripted server. SDXL was not run."
STAND_IN = "Refined by a tiny stand-in model, not by SDXL."
CARDS: dict[str, tuple[str, str, str, str]] = {
    "Describe and rewrite": (
        PHOTO, "refined_output", SCRIPTED,
        "From a thicket of cool green leaves, a raccoon meets your gaze. Soft daylight silvers "
        "its gray fur and glints in eyes as bright as wet stones.",
    ),
    "New image from an old one": (
        PHOTO, "the prompt", SDXL,
        "close-up of a raccoon in green leaves, black mask, bright eyes, white whiskers.",
    ),
    "Describe, vary, generate": (PHOTO, "the prompt", SDXL, ""),
    "Refine an image": (DAMAGED, "", STAND_IN, ""),
    "Detail every tile": (PHOTO, "texts", SCRIPTED, ""),
    "Refine faces": (PHOTO, "texts", SCRIPTED, ""),
    "Describe, rewrite, refine": (
        DAMAGED, "", STAND_IN, "green circle, red star, orange triangle, pale blue background",
    ),
    "Two servers": (
        PHOTO, "alt text", SCRIPTED,
        "A raccoon with a black mask looks out between green leaves.",
    ),
    "Refine, then 3D": (DAMAGED, "", f"{STAND_IN} TRELLIS.2 was not run.", ""),
    "Refine, then a splat": (DAMAGED, "", f"{STAND_IN} TripoSplat was not run.", ""),
    "Refine a splat": (DAMAGED, "", f"A drawn splat. {STAND_IN}", ""),
    "Caption a folder": (
        PHOTO, "captions", SCRIPTED,
        "A raccoon with gray fur and a black mask looks out between green leaves in soft daylight.",
    ),
    "Refine a folder": (DAMAGED, "report", STAND_IN, ""),
    "Tag a folder with two models": (
        PHOTO, "tags", SCRIPTED,
        "raccoon, solo, gray fur, black mask, white whiskers, green leaves, daylight, "
        "close-up, photo",
    ),
    "Image to words.app": (
        COFFEE, "SaveText", SCRIPTED,
        "A small cup of espresso waits on warm wood, dark and still, its silver spoon resting "
        "beside it. You can almost smell it.",
    ),
    "Better image.app": (DAMAGED, "", STAND_IN, ""),
}  # fmt: skip
"""Name: (example, title of the node whose text is shown, last line, what the text model says)."""


def runnable(prompt: dict[str, Any]) -> dict[str, Any]:
    """Return the graph without nodes that need large weights, and what depends on them."""
    gone = {id for id, entry in prompt.items() if entry["class_type"] in NEEDS_WEIGHTS}
    while True:
        more = {
            id
            for id, entry in prompt.items()
            for value in entry["inputs"].values()
            if isinstance(value, list) and value[0] in gone
        }
        if more <= gone:
            return {id: entry for id, entry in prompt.items() if id not in gone}
        gone |= more


def prepare(host: Any) -> None:
    """Put the tiny refiner under the name that the workflows have."""
    checkpoints = host.base / "models" / "checkpoints"
    shutil.copytree(TINY / "tiny_refiner", checkpoints / REFINER)
    shutil.copy2(TINY / "tiny_refiner.safetensors", checkpoints / f"{REFINER}.safetensors")


def with_drawn_splat(host: Any, prompt: dict[str, Any]) -> None:
    """Put a drawn splat with noise in its colors in the place of TripoSplat's."""
    from drawn_splats import painted
    from image_refinery.refine.splats import write_ply

    scene = Image.open(ROOT / "examples" / "scene.png")
    write_ply(painted(40_000, scene, noise=0.25), host.base / "input" / "drawn.ply")
    prompt["load"] = {"class_type": "Load3DAdvanced", "inputs": {
        "model_file": "drawn.ply", "viewport_state": {}, "width": 512, "height": 512}}  # fmt: skip
    for entry in prompt.values():
        if entry["class_type"] == "RefinerySplat":
            entry["inputs"]["views"] = 8  # on a CPU
        if entry["class_type"] == "VAEDecodeTripoSplat":
            entry |= {"class_type": "File3DToSplat", "inputs": {"model_3d": ["load", 0]}}


def result(host: Any, server: Any, name: str) -> tuple[Image.Image, str | Image.Image]:
    """Run a workflow; return its first image, and its text or its second image."""
    example, shown, _, says = CARDS[name]
    source = ImageOps.fit(Image.open(ROOT / "examples" / example).convert("RGB"), (512, 512))
    (host.base / "input" / "my images").mkdir(exist_ok=True)
    for place in ("example.png", "my images/example.png"):
        host.save_input(source, place)
    server.models = {
        "llava:latest": vision_model(answer=SEEN[example]),
        "llama3.2:latest": text_model(answer=says),
    }
    tiles = cycle(TILES)
    server.always("chat", lambda _: Reply(text=next(tiles) if shown == "texts" else None))
    prompt = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    if name == "Refine a splat":
        with_drawn_splat(host, prompt)
    prompt = runnable(prompt)
    for entry in prompt.values():
        if entry["class_type"] in ("RefinerySDXLRefiner", "RefineryRefineFolder"):
            entry["inputs"]["working_size"] = "keep size"
        if entry["class_type"] == "RefineryDescribeTiles":
            entry["inputs"] |= {"working_size": "keep size", "tile_size": 512}
        if "mask" in entry["inputs"]:
            del entry["inputs"]["mask"]  # the example has none
    run = host.run(prompt, timeout_s=900)
    assert run.ok, (name, run.error)
    if name == "Refine a splat":
        titles = {entry["_meta"]["title"]: id for id, entry in prompt.items() if "_meta" in entry}
        before, after = (host.saved(run, titles[one])[0] for one in ("before", "after"))
        return Image.open(before), Image.open(after)
    if name == "Refine a folder":
        (file,) = (host.base / "output" / "refined").rglob("*.png")
        return source, Image.open(file).convert("RGB")
    if not shown:
        (id,) = [id for id, entry in prompt.items() if "SDXLRefiner" in entry["class_type"]]
        saved = [host.saved(run, one)[0] for one in run.outputs if run.outputs[one].get("images")]
        if not saved:  # Refine, then 3D: the mesh is what is saved
            keep = {**prompt, "0": {"class_type": "SaveImage", "inputs": {
                "images": [id, 0], "filename_prefix": "card"}}}  # fmt: skip
            saved = host.saved(host.run(keep, timeout_s=300), "0")
        return source, Image.open(saved[-1]).convert("RGB")
    (id,) = [id for id, entry in prompt.items() if entry["_meta"]["title"] == shown]
    return source, "\n".join(run.outputs[id]["text"])


def card(before: Image.Image, made: str | Image.Image, last: str) -> Image.Image:
    """Draw an image and what was made of it."""
    canvas = Image.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    left, right, top = EDGE_PX, SIZE[0] - EDGE_PX - TILE_PX, EDGE_PX
    if isinstance(made, str):
        canvas.paste(before.resize((TILE_PX, TILE_PX)), (left, top))
        draw.rounded_rectangle((right, top, right + TILE_PX, top + TILE_PX), 12, fill=PAPER)
        font = ImageFont.load_default(TEXT_PX)
        lines = textwrap.wrap(" ".join(made.split()), 26)
        if len(lines) > 10:
            lines = [*lines[:9], f"{lines[9]} ..."]
        place = (right + 20, top + 20)
        draw.multiline_text(place, "\n".join(lines), font=font, fill=WORDS, spacing=9)
    else:
        for x, image in ((left, before), (right, made)):
            middle = ImageOps.fit(image, (300, 300))  # part of it: noise shows
            canvas.paste(middle.resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST), (x, top))
    small = ImageFont.load_default(SMALL_PX)
    words = ("image", "text") if isinstance(made, str) else ("before", "after")
    for x, word in zip((left, right), words, strict=True):
        draw.text((x, top + TILE_PX + 10), word, font=small, fill=QUIET)
    draw.text((left, SIZE[1] - EDGE_PX - SMALL_PX), last, font=small, fill=QUIET)
    return canvas


def main() -> None:
    """Make the images of all workflows, or of those that are named."""
    module = load_host()
    found = module.find_host()
    if isinstance(found, str):
        sys.exit(found)
    port = module.free_port()
    env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{port}"}
    with tempfile.TemporaryDirectory() as folder, FaultyOllama(port=port) as server:
        host = module.ComfyHost(found, Path(folder), env=env, packs={})
        with host:
            prepare(host)
            for name in sys.argv[1:] or CARDS:
                drawn = card(*result(host, server, name), CARDS[name][2])
                file = ROOT / "example_workflows" / f"{name}.jpg"
                drawn.save(file, quality=85, optimize=True)
                print(file.relative_to(ROOT), file.stat().st_size)


if __name__ == "__main__":
    main()
