"""Write example_workflows/*.json and tests/workflows/api/*.json.

    python tools/make_workflows.py                    write all files
    python tools/make_workflows.py --core URL [URL]   also tools/core_nodes.json, from running hosts

The order and the defaults of our nodes' widgets come from their schemas, those of ComfyUI's own
nodes from tools/core_nodes.json (the required part of /object_info; the first URL that has a node
wins, so list the oldest host first). A test compares the committed files with this script, so a
changed schema cannot leave an outdated workflow behind. The images beside them are screenshots
taken by tests/browser/test_workflows.py.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from workflow_graph import Graph, Node, NodeType, Output, node_type  # noqa: E402  (no package)

PAGES = ROOT / "example_workflows"
APIS = ROOT / "tests" / "workflows" / "api"
CORE = ROOT / "tools" / "core_nodes.json"
OLDEST = "0.3.64"
TRELLIS_FROM = "0.34.0"

EXAMPLE_IMAGE = "example.png"  # ships with ComfyUI's repository; other installations may lack it
FIRST = (
    "**First** choose your image in *Load Image*. A red frame there only means that no image is "
    "chosen yet."
)
FOLDER = "my images"  # not ".": that would caption every image in the input folder
FIRST_FOLDER = (
    "**First** put a folder of images into ComfyUI's input folder, press R, and choose it in "
    "*Load Images From Folder*."
)
DOWNLOAD = "stabilityai/stable-diffusion-xl-refiner-1.0 (download)"
REFINER_PX = 490  # Nodes 2.0 cuts the end of DOWNLOAD off in nodes of less than about 480
AUTO = "auto"  # a template runs with any server and its models
VISION_MODEL, TEXT_MODEL = "llava", "llama3.2"  # for users who have no model yet
STOP = "stop the workflow"  # where other nodes use the text: no error message becomes a prompt
BASE = "sd_xl_base_1.0.safetensors"
HUGGING_FACE = "https://huggingface.co/"
FILES = {
    BASE: ("stabilityai/stable-diffusion-xl-base-1.0", "", "checkpoints"),
    "dino_v3_vit_l.safetensors": ("Comfy-Org/TRELLIS.2", "clip_vision/", "clip_vision"),
    "trellis_2_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "diffusion_models/", "diffusion_models"),
    "trellis_2_shape_vae_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "vae/", "vae"),
    "trellis_2_texture_vae_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "vae/", "vae"),
}
"""File: (repository on Hugging Face, folder there, folder of ComfyUI)."""

REFINER_TEXT = (
    "**Refiner:** the first run downloads it (6 GB). If you have "
    f"[sd_xl_refiner_1.0.safetensors]({HUGGING_FACE}stabilityai/stable-diffusion-xl-refiner-1.0), "
    "put it into *models/checkpoints*, press R and choose it in *checkpoint*."
)
NEW_STYLE = "Style: {__style/painting__|__style/photo__|__style/print__}. Light: __light__."


def fetch(*names: str) -> list[dict[str, str]]:
    """Return what the page needs to offer missing files for download."""
    found = []
    for name in names:
        repository, folder, directory = FILES[name]
        url = f"{HUGGING_FACE}{repository}/resolve/main/{folder}{name}"
        found.append({"name": name, "url": url, "directory": directory})
    return found


def note(graph: Graph, title: str, text: str, *, models: Iterable[str], files: Iterable[str] = (),
         oldest: str = OLDEST, refines: bool = False, first: str = FIRST,
         tall: int) -> None:  # fmt: skip
    """Add a note: the first step, what the workflow does, what to download, the ComfyUI version."""
    lines = [f"## {title}", first, "", text, ""]
    if commands := "\n".join(f"ollama pull {model}" for model in models):
        lines += [
            "**Models:** *auto* chooses a model of your server. If "
            f"[Ollama](https://ollama.com) has none yet:\n```\n{commands}\n```",
            "",
        ]
    if refines:
        lines += [REFINER_TEXT, ""]
    if files:
        lines.append("**Files:**")
    for name in files:
        repository, _, directory = FILES[name]
        lines.append(f"- [{name}]({HUGGING_FACE}{repository}) into *models/{directory}*")
    if files:
        lines.append("")
    lines.append(f"Needs ComfyUI {oldest} or newer.")
    graph.add_note("\n".join(lines), tall)


def instructions(graph: Graph, name: str) -> Node:
    """Add Prompt Presets with one of the pack's texts chosen."""
    texts = importlib.import_module("image_refinery.texts")  # of this checkout: see pack_types
    text = texts.ready_instructions([ROOT / "instructions"])[name]
    return graph.add("RefineryReadyInstructions", pick=name, text=text, tall=190)


def text_to_image(graph: Graph, prompt: Output, saved: str | Output) -> None:
    """Add core nodes from a prompt to a saved image, in two columns."""
    graph.column(320)
    base = graph.add("CheckpointLoaderSimple", ckpt_name=BASE, models=fetch(BASE))
    positive = graph.add("CLIPTextEncode", title="prompt", clip=base[1], text=prompt, tall=90)
    negative = graph.add(
        "CLIPTextEncode", title="what not to show", clip=base[1], tall=110,
        text="blurry, watermark, text",
    )  # fmt: skip
    latent = graph.add("EmptyLatentImage", width=1024, height=1024)
    graph.column(320)
    sampled = graph.add(
        "KSampler", model=base[0], positive=positive[0], negative=negative[0],
        latent_image=latent[0], steps=25, cfg=7.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    decoded = graph.add("VAEDecode", samples=sampled[0], vae=base[2])
    graph.add("SaveImage", images=decoded[0], filename_prefix=saved)


def llm_image_refine_basic(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> Display Anything, and Text To Filename -> Save Image."""
    graph.column(340)
    note(
        graph, "Describe and rewrite",
        "A vision model describes the image. A text model rewrites the description by "
        "*user_instructions*. Both texts are shown, and the rewritten one becomes the file name of "
        "the saved image.",
        models=(VISION_MODEL, TEXT_MODEL), tall=300,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    graph.column(420)
    refine = graph.add(
        "RefineryLLMImageRefine", image=image[0], vision_model=AUTO, text_model=AUTO,
        on_error=STOP,
    )  # fmt: skip
    graph.column(380)
    graph.add("RefineryDisplayAnything", title="description", value=refine[1])
    graph.add("RefineryDisplayAnything", title="refined_output", value=refine[2])
    graph.column(340)
    name = graph.add("RefineryTextToFilename", text=refine[2], folder="refinery", tall=180)
    graph.add("SaveImage", images=refine[0], filename_prefix=name[0])


def llm_image_refine_advanced(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> Wildcard Processor -> text to image."""
    graph.column(340)
    note(
        graph, "A new image from an old one",
        "LLM Image Refine turns the image into a prompt, by the preset chosen in *Instruction "
        "Presets*. *Wildcard Processor* appends one of the included styles, and SDXL "
        "generates the new image. Change the seed in Wildcard Processor for another style.",
        models=(VISION_MODEL, TEXT_MODEL), files=(BASE,), tall=340,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    ready = instructions(graph, "Prompt for SDXL")
    graph.column(420)
    refine = graph.add(
        "RefineryLLMImageRefine", image=image[0], vision_model=AUTO, text_model=AUTO,
        user_instructions=ready[0], on_error=STOP,
    )  # fmt: skip
    graph.column(340)
    joined = graph.add(
        "StringConcatenate", title="add wildcards", string_a=refine[2], string_b=NEW_STYLE,
        delimiter=" ",
    )  # fmt: skip
    wild = graph.add("RefineryWildcardProcessor", text=joined[0], tall=200)
    graph.add("RefineryDisplayAnything", title="the prompt", value=wild[0])
    text_to_image(graph, wild[0], "refinery/advanced")


def describe_wildcard_text_to_image(graph: Graph) -> None:
    """Load Image -> LLM Describe -> Wildcard Processor -> text to image."""
    graph.column(340)
    note(
        graph, "Describe, vary, generate",
        "One model only: *LLM Describe* describes the image in one sentence, *Wildcard Processor* "
        "varies style and light, SDXL generates the new image. Set *control after generate* of "
        "Wildcard Processor to randomize for a new variant in each run.",
        models=(VISION_MODEL,), files=(BASE,), tall=340,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    graph.column(380)
    described = graph.add(
        "RefineryLLMDescribe", image=image[0], vision_model=AUTO,
        custom_vision_prompt="Describe the main subject of this image and where it is, in one "
        "sentence. Do not mention style or light.",
        on_error=STOP,
    )  # fmt: skip
    graph.column(340)
    joined = graph.add(
        "StringConcatenate", title="add wildcards", string_a=described[1], string_b=NEW_STYLE,
        delimiter=" ",
    )  # fmt: skip
    wild = graph.add("RefineryWildcardProcessor", text=joined[0], tall=200)
    graph.add("RefineryDisplayAnything", title="the prompt", value=wild[0])
    text_to_image(graph, wild[0], "refinery/variant")


def refine_an_image(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> Save Image."""
    graph.column(340)
    note(
        graph, "Refine an image",
        "*SDXL Refiner* sharpens texture and removes noise and artifacts. The content stays the "
        "same. Raise *strength* for a stronger effect. Set *output_size* to working to get a small "
        "image at the larger size. To refine only a region, draw a mask on the image (*Open in "
        "MaskEditor*) and connect it.",
        models=(), refines=True, tall=370,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    graph.column(REFINER_PX)
    refined = graph.add(
        "RefinerySDXLRefiner", image=image[0], checkpoint=DOWNLOAD,
        prompt="sharp focus, fine texture, clean lines, high detail",
        negative_prompt="blurry, noise, compression artifacts",
    )  # fmt: skip
    graph.column(340)
    graph.add("PreviewImage", title="before", images=image[0])
    graph.add("SaveImage", title="after", images=refined[0], filename_prefix="refinery/refined")


def with_model(graph: Graph, image: Node, mask: Output | None, first: str, **same: Any) -> None:
    """Add Describe Tiles -> Refine with Model, with a checkpoint, and what they show."""
    regions = {} if mask is None else {"mask": mask}
    graph.column(380)
    tiles = graph.add(
        "RefineryDescribeTiles", image=image[0], vision_model=AUTO, on_error=STOP,
        **regions, **same,
    )  # fmt: skip
    graph.add("RefineryDisplayAnything", title="texts", value=tiles[0])
    base = graph.add("CheckpointLoaderSimple", ckpt_name=BASE, models=fetch(BASE))
    graph.column(420)
    refined = graph.add(
        "RefineryRefineWithModel", image=image[0], model=base[0], clip=base[1], vae=base[2],
        positive=first, negative="blurry, noise, compression artifacts", tile_prompts=tiles[1],
        sampler_name="dpmpp_2m", scheduler="karras", **regions, **same,
    )  # fmt: skip
    graph.column(340)
    graph.add("PreviewImage", title="before", images=image[0])
    graph.add("SaveImage", title="after", images=refined[0], filename_prefix="refinery/detailed")


def detail_every_tile(graph: Graph) -> None:
    """Load Image -> Describe Tiles -> Refine with Model -> Save Image, twice as large."""
    graph.column(340)
    note(
        graph, "Detail every tile",
        "Makes an image twice as large, and adds detail in tiles. *Describe Tiles* describes each "
        "tile, so that *Refine with Model* draws in each what is there. Choose any checkpoint. For "
        "Stable Diffusion 1.5 set *tile_size* of Describe Tiles to 512. More detail: raise "
        "*denoise*.",
        models=(VISION_MODEL,), files=(BASE,), tall=400,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    with_model(graph, image, None, "sharp focus, fine texture, high detail", scale=2.0)


def refine_faces(graph: Graph) -> None:
    """Load Image with a drawn mask -> Describe Tiles -> Refine with Model -> Save Image."""
    graph.column(340)
    note(
        graph, "Refine faces",
        "Draw over each face (right-click *Load Image*, *Open in MaskEditor*). Each face is "
        "described and refined by itself, large. Nothing else changes. Choose any checkpoint. For "
        "Stable Diffusion 1.5 set *tile_size* of Describe Tiles to 512.",
        models=(VISION_MODEL,), files=(BASE,), tall=400,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    with_model(graph, image, image[1], "a detailed face, natural skin")


def describe_rewrite_refine(graph: Graph) -> None:
    """Load Image -> LLM Describe -> Ollama Process -> SDXL Refiner -> Save Image."""
    graph.column(340)
    note(
        graph, "Describe, rewrite, refine",
        "The refiner works best with a prompt that describes the image. *LLM Describe* describes "
        "it, *Ollama Process* shortens the description to a prompt, *SDXL Refiner* uses it. "
        "Ollama's models are unloaded before the refiner runs.",
        models=(VISION_MODEL, TEXT_MODEL), refines=True, tall=390,
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    graph.column(380)
    described = graph.add("RefineryLLMDescribe", image=image[0], vision_model=AUTO, on_error=STOP)
    ready = instructions(graph, "Prompt for refining")
    graph.column(380)
    prompt = graph.add(
        "RefineryOllamaProcess", text=described[1], text_model=AUTO, temperature=0.3,
        instructions=ready[0], on_error=STOP,
    )  # fmt: skip
    graph.add("RefineryDisplayAnything", title="the prompt", value=prompt[0])
    graph.column(REFINER_PX)
    refined = graph.add(
        "RefinerySDXLRefiner", image=described[0], checkpoint=DOWNLOAD,
        prompt=prompt[0], negative_prompt="blurry, noise, compression artifacts",
    )  # fmt: skip
    graph.column(340)
    graph.add("SaveImage", images=refined[0], filename_prefix="refinery/refined")


def refine_then_trellis(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> TRELLIS.2 -> a colored 3D model."""
    graph.column(340)
    note(
        graph, "Refine, then 3D",
        "Needs ComfyUI 0.34 or newer. *SDXL Refiner* cleans the image and *Free Memory* frees the "
        "GPU. Then ComfyUI's own nodes for TRELLIS.2 turn the object in the foreground into a 3D "
        "model, without cascade at 1024. ComfyUI's template *Pixal3D & TRELLIS.2* shows more "
        "detail and baked textures. For *Load Background Removal Model* put birefnet.safetensors "
        "into *models/background_removal*.",
        models=(), oldest=TRELLIS_FROM, refines=True, tall=510,
        files=("trellis_2_bf16.safetensors", "dino_v3_vit_l.safetensors",
               "trellis_2_shape_vae_bf16.safetensors", "trellis_2_texture_vae_bf16.safetensors"),
    )  # fmt: skip
    image = graph.add("LoadImage", image=EXAMPLE_IMAGE)
    graph.column(REFINER_PX)
    refined = graph.add(
        "RefinerySDXLRefiner", image=image[0], checkpoint=DOWNLOAD,
        prompt="sharp focus, fine texture, clean edges",
        negative_prompt="blurry, noise, compression artifacts",
    )  # fmt: skip
    free = graph.add("RefineryFreeMemory", value=refined[0])
    graph.column(320)
    remover = graph.add("LoadBackgroundRemovalModel", bg_removal_name="birefnet.safetensors")
    mask = graph.add("RemoveBackground", bg_removal_model=remover[0], image=free[0])
    cropped = graph.add("ImageCropToMask", images=free[0], masks=mask[0])
    shown = "dino_v3_vit_l.safetensors"
    vision = graph.add("CLIPVisionLoader", clip_name=shown, models=fetch(shown))
    conditioning = graph.add("Trellis2Conditioning", clip_vision_model=vision[0], image=cropped[0])
    graph.add("PreviewImage", title="input of TRELLIS.2", images=cropped[0])
    graph.column(340)
    file = "trellis_2_bf16.safetensors"
    model = graph.add("UNETLoader", unet_name=file, weight_dtype="default", models=fetch(file))
    shapes, colors = (
        graph.add("VAELoader", vae_name=name, title=title, models=fetch(name))
        for name, title in (
            ("trellis_2_shape_vae_bf16.safetensors", "shape VAE"),
            ("trellis_2_texture_vae_bf16.safetensors", "texture VAE"),
        )
    )
    latent = graph.add("EmptyTrellis2LatentStructure", batch_size=1)
    # Guidance ends early and is rescaled, like in TRELLIS.2's own pipeline for these stages.
    led = graph.add("CFGOverride", model=model[0], cfg=1.0, start_percent=0.667)
    scaled = graph.add("RescaleCFG", model=led[0], multiplier=0.7)
    shifted = graph.add("ModelSamplingSD3", model=scaled[0], shift=5.0)
    graph.column(340)
    sampled = graph.add(
        "KSampler", title="1. structure", model=shifted[0], positive=conditioning[0],
        negative=conditioning[1], latent_image=latent[0], steps=12, cfg=7.5, sampler_name="euler",
        scheduler="normal",
    )  # fmt: skip
    solid = graph.add("VaeDecodeStructureTrellis2", samples=sampled[0], vae=shapes[0],
                      resolution="64")  # fmt: skip
    stage = graph.add(
        "Trellis2ShapeStage", positive=conditioning[0], negative=conditioning[1], voxel=solid[0]
    )
    ended = graph.add("CFGOverride", model=model[0], cfg=1.0, start_percent=0.769)
    rescaled = graph.add("RescaleCFG", model=ended[0], multiplier=0.5)
    graph.column(340)
    shape = graph.add(
        "KSampler", title="2. shape", model=rescaled[0], positive=stage[0], negative=stage[1],
        latent_image=stage[2], steps=12, cfg=7.5, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    mesh = graph.add("VaeDecodeShapeTrellis", samples=shape[0], vae=shapes[0])
    surface = graph.add(
        "Trellis2TextureStage", positive=stage[0], negative=stage[1], shape_latent=shape[0]
    )
    graph.column(340)
    color = graph.add(
        "KSampler", title="3. texture", model=model[0], positive=surface[0],
        negative=surface[1], latent_image=surface[2], steps=12, cfg=1.0, sampler_name="euler",
        scheduler="normal",
    )  # fmt: skip
    voxels = graph.add(
        "VaeDecodeTextureTrellis", samples=color[0], vae=colors[0], shape_subdivides=mesh[1]
    )
    painted = graph.add("PaintMesh", mesh=mesh[0], voxel_colors=voxels[0])
    graph.add("SaveGLB", mesh=painted[0], filename_prefix="refinery/model", tall=400)


def caption_a_folder(graph: Graph) -> None:
    """Load Images From Folder -> LLM Describe -> Save Caption."""
    graph.column(340)
    note(
        graph, "Caption a folder",
        "Writes a text file with the same name beside each image, as LoRA trainers expect. The "
        "model is loaded once for all images. Put your trigger word into *prefix* of Save "
        "Caption.",
        models=(VISION_MODEL,), first=FIRST_FOLDER, tall=280,
    )  # fmt: skip
    images = graph.add("RefineryLoadFolder", folder=FOLDER, limit=0)
    graph.column(400)
    options = graph.add("RefineryOllamaOptions", num_predict=200)
    described = graph.add(
        "RefineryLLMDescribe", image=images[0], vision_model=AUTO, options=options[0],
        custom_vision_prompt="Write a caption for training an image model: what is shown, in "
        "plain words, in two sentences at most. Begin with the subject.",
    )  # fmt: skip
    graph.column(360)
    saved = graph.add("RefinerySaveCaption", name=images[1], text=described[1])
    graph.add("RefineryDisplayAnything", title="captions", value=saved[0])


def two_models_batch(graph: Graph) -> None:
    """Load Images From Folder -> LLM Image Refine with two models -> Save Caption."""
    graph.column(340)
    note(
        graph, "A batch through two models",
        "The first model describes all images. Then the models are swapped once, and the second "
        "model rewrites all descriptions: two model loads, however many images. *auto* may choose "
        "the same model for both: choose another *text_model* then. The tags are saved as text "
        "files in ComfyUI's output folder.",
        models=(VISION_MODEL, TEXT_MODEL), first=FIRST_FOLDER, tall=340,
    )  # fmt: skip
    images = graph.add("RefineryLoadFolder", folder=FOLDER, limit=0)
    graph.column(380)
    seeing = graph.add("RefineryOllamaOptions", title="for the vision model", num_predict=300)
    writing = graph.add("RefineryOllamaOptions", title="for the text model", num_predict=150)
    graph.column(420)
    refine = graph.add(
        "RefineryLLMImageRefine", image=images[0], vision_model=AUTO, text_model=AUTO,
        user_instructions="Make a list of tags of this description: subject, setting, colors, "
        "style. Lower case, separated by commas, no sentences.",
        text_temperature=0.4, vision_options=seeing[0], text_options=writing[0],
    )  # fmt: skip
    graph.column(360)
    saved = graph.add(
        "RefinerySaveCaption", name=images[1], text=refine[2], place="output",
        subfolder="tags", existing="overwrite",
    )  # fmt: skip
    graph.add("RefineryDisplayAnything", title="tags", value=saved[0])
    graph.add("RefineryDisplayAnything", title="descriptions", value=refine[1])


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        llm_image_refine_basic,
        llm_image_refine_advanced,
        describe_wildcard_text_to_image,
        refine_an_image,
        detail_every_tile,
        refine_faces,
        describe_rewrite_refine,
        refine_then_trellis,
        caption_a_folder,
        two_models_batch,
    )
}


def pack_types() -> dict[str, NodeType]:
    """Return the types of our nodes, read with the tests' stub of ComfyUI."""
    stub = _module("comfy_stub_path", ROOT / "tests" / "comfy_stub" / "stub_path.py")
    _module("image_refinery", ROOT / "__init__.py", ROOT)
    before = os.environ.get("OLLAMA_BASE_URL")
    os.environ["OLLAMA_BASE_URL"] = "http://127.0.0.1:9"  # a closed port: no models are listed
    try:
        with stub.installed():
            nodes = importlib.import_module("image_refinery.nodes")
            classes = asyncio.run(nodes.ImageRefineryExtension().get_node_list())
            return {one.GET_SCHEMA().node_id: _type(one) for one in classes}
    finally:
        os.environ.pop("OLLAMA_BASE_URL")
        if before is not None:
            os.environ["OLLAMA_BASE_URL"] = before


def _type(node: Any) -> NodeType:
    schema = node.GET_SCHEMA()
    info = {
        "input": node.INPUT_TYPES(),
        "output": [one.io_type for one in schema.outputs],
        "output_name": [one.display_name or one.io_type for one in schema.outputs],
    }
    return node_type(schema.node_id, info)


def _module(name: str, file: Path, folder: Path | None = None) -> Any:
    if name not in sys.modules:
        places = None if folder is None else [str(folder)]
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def core_types() -> dict[str, NodeType]:
    """Return the types of ComfyUI's own nodes that the workflows use."""
    entries = json.loads(CORE.read_text(encoding="utf-8"))
    return {name: node_type(name, entry) for name, entry in entries.items()}


def graphs() -> dict[str, Graph]:
    """Return every workflow's graph by its name."""
    types = core_types() | pack_types()
    built = {}
    for name, build in WORKFLOWS.items():
        built[name] = Graph(types)
        build(built[name])
    return built


def files() -> dict[Path, str]:
    """Return the text of every file that this script writes."""
    core = json.loads(CORE.read_text(encoding="utf-8"))
    origins = {name: ("comfy-core", entry["since"]) for name, entry in core.items()}
    origins |= dict.fromkeys(pack_types(), ("image-refinery", _version()))
    texts = {}
    for name, graph in graphs().items():
        page = graph.page(name, origins)
        texts[PAGES / f"{name}.json"] = json.dumps(page, indent=2, ensure_ascii=False) + "\n"
        api = json.dumps(graph.api(), indent=2, ensure_ascii=False)
        texts[APIS / f"{name}.json"] = api + "\n"
    return texts


def _version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert found is not None
    return found[1]


def read_core(hosts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of tools/core_nodes.json from /object_info of hosts, the oldest first."""
    wanted = {
        node.type.id
        for name in WORKFLOWS
        for node in _recorded(name)
        if not node.type.id.startswith("Refinery")
    }
    found: dict[str, Any] = {}
    for since, host in zip((OLDEST, TRELLIS_FROM), hosts, strict=False):
        for name in sorted(wanted - set(found)):
            if name in host:
                found[name] = {"since": since, **_reduced(host[name])}
    return dict(sorted(found.items()))


def _reduced(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without tooltips and lists of files and samplers, which vary by machine."""
    kept = ("default", "multiline", "control_after_generate", "image_upload", "forceInput")
    inputs: dict[str, Any] = {}
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            chosen = {key: options[key] for key in kept if key in options}
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            inputs.setdefault(group, {})[name] = [kind, chosen]
    return {"input": inputs, "output": info["output"], "output_name": info["output_name"]}


class _AnyType(dict[str, NodeType]):
    """Accepts any node with any input, to record which ones the workflows use."""

    def __missing__(self, name: str) -> NodeType:
        class Anything(NodeType):
            def input(self, name: str) -> Any:
                return None

        return Anything(name, (), (("", "*"),) * 9)


def _recorded(name: str) -> list[Node]:
    graph = Graph(_AnyType())
    WORKFLOWS[name](graph)
    return [node for node in graph.nodes if node.type.id != "MarkdownNote"]


def _get(url: str) -> dict[str, Any]:
    if not url.startswith("http"):
        return json.loads(Path(url).read_text(encoding="utf-8"))
    import requests

    return requests.get(f"{url}/object_info", timeout=60).json()


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--core", nargs="+", default=[], help="hosts, or saved /object_info files")
    arguments = parser.parse_args()
    if arguments.core:
        core = read_core([_get(url) for url in arguments.core])
        CORE.write_text(json.dumps(core, indent=1) + "\n", encoding="utf-8", newline="\n")
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
