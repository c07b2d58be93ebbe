"""Write example_workflows/*.json, tests/workflows/api/*.json and subgraphs/*.json.

    python tools/make_workflows.py                    write all files
    python tools/make_workflows.py --core URL [URL]   also tools/core_nodes.json, from running hosts

The order and the defaults of our nodes' widgets come from their schemas, those of ComfyUI's own
nodes from tools/core_nodes.json (the required part of /object_info; the first URL that has a node
wins, so list the oldest host first). A test compares the committed files with this script, so a
changed schema cannot leave an outdated workflow behind. tools/template_cards.py makes the images
beside them.
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

from workflow_graph import (  # noqa: E402  (no package)
    Graph,
    Node,
    NodeType,
    Output,
    Subgraph,
    node_type,
)

PAGES = ROOT / "example_workflows"
BLUEPRINTS = ROOT / "subgraphs"
APIS = ROOT / "tests" / "workflows" / "api"
CORE = ROOT / "tools" / "core_nodes.json"
OLDEST, APP_FROM, TRELLIS_FROM = "0.3.64", "0.33.0", "0.34.0"
NEWER = {"SaveGLB"}  # takes files of splats, which the oldest host's does not

EXAMPLE_IMAGE = "example.png"  # ships with ComfyUI's repository; other installations may lack it
FIRST = (
    "Choose your image in *Load Image*. A red frame there only means that no image is chosen yet."
)
FOLDER = "my images"  # not the input folder itself: that would caption every image in it
FIRST_FOLDER = (
    "Put a folder of images into ComfyUI's input folder, press R, and choose it in *{node}*."
)
REFINER_PX = 400
Origins = Mapping[str, tuple[str, str]]
AUTO = "auto"  # a template runs with any server and its models
VISION_MODEL, TEXT_MODEL = "llava", "llama3.2"  # for users who have no model yet
STOP = "stop the workflow"  # where other nodes use the text: no error message becomes a prompt
BASE = "sd_xl_base_1.0.safetensors"
REFINER = "sd_xl_refiner_1.0.safetensors"
BACKGROUND = "birefnet.safetensors"
TRIPOSPLAT = "VAST-AI/TripoSplat"
HUGGING_FACE = "https://huggingface.co/"
FILES = {
    BASE: ("stabilityai/stable-diffusion-xl-base-1.0", "", "checkpoints"),
    REFINER: ("stabilityai/stable-diffusion-xl-refiner-1.0", "", "checkpoints"),
    BACKGROUND: ("Comfy-Org/BiRefNet", "background_removal/", "background_removal"),
    "mediapipe_face_fp32.safetensors": ("Comfy-Org/mediapipe", "detection/", "detection"),
    "dino_v3_vit_l.safetensors": ("Comfy-Org/TRELLIS.2", "clip_vision/", "clip_vision"),
    "trellis_2_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "diffusion_models/", "diffusion_models"),
    "trellis_2_shape_vae_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "vae/", "vae"),
    "trellis_2_texture_vae_bf16.safetensors": ("Comfy-Org/TRELLIS.2", "vae/", "vae"),
    "triposplat_fp16.safetensors": (TRIPOSPLAT, "diffusion_models/", "diffusion_models"),
    "dino_v3_vit_h.safetensors": (TRIPOSPLAT, "clip_vision/", "clip_vision"),
    "flux2-vae.safetensors": (TRIPOSPLAT, "vae/", "vae"),
    "triposplat_vae_decoder_fp16.safetensors": (TRIPOSPLAT, "vae/", "vae"),
}
"""File: (repository on Hugging Face, folder there, folder of ComfyUI)."""

NEW_STYLE = "Style: {__style/painting__|__style/photo__|__style/print__}. Light: __light__."


def fetch(*names: str) -> list[dict[str, str]]:
    """Return what the page needs to offer missing files for download."""
    found = []
    for name in names:
        repository, folder, directory = FILES[name]
        url = f"{HUGGING_FACE}{repository}/resolve/main/{folder}{name}"
        found.append({"name": name, "url": url, "directory": directory})
    return found


def note(graph: Graph, title: str, steps: Iterable[str], *, models: Iterable[str] = (),
         files: Iterable[str] = (), oldest: str = OLDEST, more: str = "",
         tall: int) -> None:  # fmt: skip
    """Add a note: what to do, step by step, what to download, the ComfyUI version."""
    lines = [f"## {title}", *(f"{number}. {step}" for number, step in enumerate(steps, 1)), ""]
    if more:
        lines += [more, ""]
    if commands := "\n".join(f"ollama pull {model}" for model in models):
        lines += [
            "**Models:** *auto* chooses a model of your server. If "
            f"[Ollama](https://ollama.com) has none yet:\n```\n{commands}\n```",
            "",
        ]
    if files:
        lines.append("**Files** (ComfyUI offers to download what is missing):")
    for name in files:
        repository, _, directory = FILES[name]
        size = " (6 GB)" if name == REFINER else ""
        lines.append(f"- [{name}]({HUGGING_FACE}{repository}){size} in *models/{directory}*")
    if files:
        lines.append("")
    lines.append(f"Needs ComfyUI {oldest} or newer.")
    graph.add_note("\n".join(lines), tall)


def preset(name: str) -> str:
    """Return one of the pack's texts."""
    texts = importlib.import_module("image_refinery.texts")  # of this checkout: see pack_types
    return texts.ready_instructions([ROOT / "instructions"])[name]


def presets(graph: Graph, name: str, tall: int = 180) -> Node:
    """Add Prompt Presets with one of the pack's texts chosen."""
    return graph.add("RefineryReadyInstructions", pick=name, text=preset(name), tall=tall)


def load_image(graph: Graph) -> Node:
    """Add Load Image with ComfyUI's own example."""
    return graph.add("LoadImage", image=EXAMPLE_IMAGE, tall=330)


def described_and_rewritten(graph: Graph, image: Output, chosen: Node, **more: Any) -> Node:
    """Add LLM Image Refine with a preset; an error stops the workflow."""
    return graph.add(
        "RefineryLLMImageRefine", image=image, vision_model=AUTO, text_model=AUTO,
        user_instructions=chosen[0], text_options=chosen[1], on_error=STOP, **more,
    )  # fmt: skip


def refiner(graph: Graph, image: Output, **more: Any) -> Node:
    """Add SDXL Refiner with its checkpoint, which the page offers to download."""
    return graph.add(
        "RefinerySDXLRefiner", image=image, checkpoint=REFINER, models=fetch(REFINER),
        negative_prompt="blurry, noise, compression artifacts", **more,
    )  # fmt: skip


def sdxl_variant(graph: Graph) -> Subgraph:
    """Return a subgraph: a text, a style by wildcards, and an image of both by SDXL."""
    inner = Subgraph(graph.types, "Add a style, generate with SDXL", [("text", "STRING")])
    inner.column(320)
    joined = inner.add(
        "StringConcatenate", title="add wildcards", string_a=inner.given[0], string_b=NEW_STYLE,
        delimiter=" ",
    )  # fmt: skip
    base = inner.add("CheckpointLoaderSimple", ckpt_name=BASE, models=fetch(BASE))
    latent = inner.add("EmptyLatentImage", width=1024, height=1024)
    inner.column(320)
    wild = inner.add("RefineryWildcardProcessor", text=joined[0], tall=200)
    negative = inner.add(
        "CLIPTextEncode", title="what not to show", clip=base[1], tall=110,
        text="blurry, watermark, text",
    )  # fmt: skip
    inner.column(320)
    positive = inner.add("CLIPTextEncode", title="prompt", clip=base[1], text=wild[0], tall=90)
    inner.column(320)
    sampled = inner.add(
        "KSampler", model=base[0], positive=positive[0], negative=negative[0],
        latent_image=latent[0], steps=25, cfg=7.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    inner.column(200)
    decoded = inner.add("VAEDecode", samples=sampled[0], vae=base[2])
    inner.show(joined, "string_b")
    inner.show(wild, "seed")
    inner.show(base, "ckpt_name")
    inner.result("image", decoded[0])
    inner.result("prompt", wild[0])
    return inner


def describe_and_rewrite(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> Display Anything, and Text To Filename -> Save Image."""
    graph.column(320, "1. Image and instructions")
    note(
        graph, "Describe and rewrite",
        [FIRST, "Choose what to write in *Prompt Presets*, and edit it as you like.",
         "Press *Run*. A vision model describes the image, a text model rewrites the description. "
         "The new text becomes the file name of the saved image."],
        models=(VISION_MODEL, TEXT_MODEL), tall=340,
    )  # fmt: skip
    image = load_image(graph)
    chosen = presets(graph, "Enhanced description", tall=160)
    graph.column(400, "2. Models")
    refine = described_and_rewritten(graph, image[0], chosen)
    graph.column(320, "3. Result", down=250)
    name = graph.add("RefineryTextToFilename", text=refine[2], folder="refinery", tall=192)
    graph.add("RefineryDisplayAnything", title="description", value=refine[1])
    graph.add("RefineryDisplayAnything", title="refined_output", value=refine[2])
    graph.column(280, down=190)
    graph.add("SaveImage", images=refine[0], filename_prefix=name[0])


def new_image_from_an_old_one(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> wildcards -> text to image."""
    graph.column(320, "1. Image and instructions")
    note(
        graph, "A new image from an old one",
        [FIRST, "Choose the kind of prompt in *Prompt Presets*.",
         "Press *Run*. *Add a style* appends a style and a light to the prompt, and SDXL generates "
         "the image.",
         "Change *seed* there for another style."],
        models=(VISION_MODEL, TEXT_MODEL), files=(BASE,), tall=350,
    )  # fmt: skip
    image = load_image(graph)
    chosen = presets(graph, "Prompt for SDXL", tall=160)
    graph.column(400, "2. Prompt")
    refine = described_and_rewritten(graph, image[0], chosen)
    generated(graph, refine[2], "refinery/new")


def generated(graph: Graph, text: Output, prefix: str) -> None:
    """Add the subgraph that adds a style and generates, and its results, in two columns."""
    graph.column(340, "3. New image", down=190)
    made = graph.add_subgraph(sdxl_variant(graph), text=text, tall=260)
    graph.column(320, down=190)
    graph.add("SaveImage", images=made[0], filename_prefix=prefix)
    graph.add("RefineryDisplayAnything", title="the prompt", value=made[1])


def describe_vary_generate(graph: Graph) -> None:
    """Load Image -> LLM Describe -> wildcards -> text to image."""
    graph.column(320, "1. Image")
    note(
        graph, "Describe, vary, generate",
        [FIRST, "Press *Run*. *LLM Describe* describes the image in one sentence. *Add a style* "
         "varies style and light, and SDXL generates the image.",
         "For a new variant in each run, set the control below *seed* to randomize."],
        models=(VISION_MODEL,), files=(BASE,), tall=360,
    )  # fmt: skip
    image = load_image(graph)
    graph.column(380, "2. Description")
    described = graph.add(
        "RefineryLLMDescribe", image=image[0], vision_model=AUTO,
        custom_vision_prompt="Describe the main subject of this image and where it is, in one "
        "sentence. Do not mention style or light.",
        on_error=STOP,
    )  # fmt: skip
    generated(graph, described[1], "refinery/variant")


def refine_an_image(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> Save Image."""
    graph.column(320, "1. Image")
    note(
        graph, "Refine an image",
        [FIRST, "Press *Run*. *SDXL Refiner* sharpens texture and removes noise and artifacts. "
         "The content stays the same.",
         "Raise *strength* for a stronger effect. Set *output_size* to working to keep the larger "
         "size at which a small image is refined.",
         "For one region only, draw a mask on the image (*Open in MaskEditor*) and connect it."],
        files=(REFINER,), tall=400,
    )  # fmt: skip
    image = load_image(graph)
    graph.column(REFINER_PX, "2. Refiner")
    refined = refiner(graph, image[0], prompt="sharp focus, fine texture, clean lines, high detail")
    graph.column(320, "3. Result", down=190)
    graph.add("SaveImage", images=refined[0], filename_prefix="refinery/refined", tall=360)


def with_model(graph: Graph, image: Node, mask: Output | None, first: str, **same: Any) -> None:
    """Add Describe Tiles -> Refine with Model, with a checkpoint, and what they show."""
    regions = {} if mask is None else {"mask": mask}
    graph.column(360, "2. Models", down=160)
    base = graph.add("CheckpointLoaderSimple", ckpt_name=BASE, models=fetch(BASE))
    tiles = graph.add(
        "RefineryDescribeTiles", image=image[0], vision_model=AUTO, on_error=STOP,
        **regions, **same,
    )  # fmt: skip
    graph.column(380)
    refined = graph.add(
        "RefineryRefineWithModel", image=image[0], model=base[0], clip=base[1], vae=base[2],
        positive=first, negative="blurry, noise, compression artifacts", tile_prompts=tiles[1],
        sampler_name="dpmpp_2m", scheduler="karras", tall=700, **regions, **same,
    )  # fmt: skip
    graph.add("RefineryDisplayAnything", title="texts", value=tiles[0])
    graph.column(400, "3. Result", down=190)  # so that the error card covers no node
    graph.add("SaveImage", images=refined[0], filename_prefix="refinery/detailed", tall=360)


def detail_every_tile(graph: Graph) -> None:
    """Load Image -> Describe Tiles -> Refine with Model -> Save Image, twice as large."""
    graph.column(320, "1. Image")
    image = load_image(graph)
    note(
        graph, "Detail every tile",
        [FIRST, "Choose any checkpoint. For Stable Diffusion 1.5 set *tile_size* of Describe "
         "Tiles to 512.", "Press *Run*. The image becomes twice as large. *Describe Tiles* "
         "describes each tile, so that *Refine with Model* draws in each what is there.",
         "For more detail, raise *denoise*."],
        models=(VISION_MODEL,), files=(BASE,), tall=400,
    )  # fmt: skip
    with_model(graph, image, None, "sharp focus, fine texture, high detail", scale=2.0)


def refine_faces(graph: Graph) -> None:
    """Load Image with a drawn mask -> Describe Tiles -> Refine with Model -> Save Image."""
    graph.column(320, "1. Image and mask")
    image = load_image(graph)
    note(
        graph, "Refine faces",
        [FIRST, "Draw over each face: right-click *Load Image*, *Open in MaskEditor*.",
         "Choose any checkpoint. For Stable Diffusion 1.5 set *tile_size* of Describe Tiles to "
         "512.", "Press *Run*. Each face is described and refined by itself, large. Nothing else "
         "changes."],
        models=(VISION_MODEL,), files=(BASE,), tall=400,
    )  # fmt: skip
    with_model(graph, image, image[1], "a detailed face, natural skin")


def describe_rewrite_refine(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> SDXL Refiner -> Save Image."""
    graph.column(320, "1. Image and instructions")
    note(
        graph, "Describe, rewrite, refine",
        [FIRST, "Press *Run*. *LLM Image Refine* describes the image, and shortens the description "
         "to a prompt for *SDXL Refiner*. The server's models are unloaded in between."],
        models=(VISION_MODEL, TEXT_MODEL), files=(REFINER,), tall=350,
    )  # fmt: skip
    image = load_image(graph)
    chosen = presets(graph, "Prompt for refining", tall=160)
    graph.column(400, "2. Prompt")
    prompt = described_and_rewritten(graph, image[0], chosen)
    graph.column(REFINER_PX, "3. Refiner and result")
    refined = refiner(graph, prompt[0], prompt=prompt[2])
    graph.column(430, down=190)  # so that the error card covers no node
    graph.add("SaveImage", images=refined[0], filename_prefix="refinery/refined", tall=360)


def two_servers(graph: Graph) -> None:
    """Load Image -> LLM Describe on one server -> Ollama Process on another."""
    graph.column(320, "1. Image and options")
    short = graph.add(
        "RefineryOllamaOptions", title="300 tokens at most", num_predict=300,
        collapsed=True,
    )  # fmt: skip
    note(
        graph, "Two servers",
        [FIRST, "Name your second server in the file *user/image-refinery.toml*:\n"
         '```\n[servers.studio]\nurl = "http://192.168.1.20:1234"\n```\n',
         "Restart ComfyUI, and choose *studio* in *server* of *Ollama Process*.",
         "Press *Run*. The image goes to the first server only, the text to the second one."],
        models=(VISION_MODEL, TEXT_MODEL), tall=480,
        more="*default* is the server that the pack finds on this machine. With it in both nodes, "
        "the workflow runs on one server.",
    )  # fmt: skip
    image = load_image(graph)
    graph.column(360, "2. First server")
    described = graph.add(
        "RefineryLLMDescribe", image=image[0], vision_model=AUTO, options=short[0], on_error=STOP
    )
    chosen = presets(graph, "Alt text")
    graph.column(360, "3. Second server")
    written = graph.add(
        "RefineryOllamaProcess", text=described[1], text_model=AUTO, instructions=chosen[0],
        options=chosen[1], on_error=STOP,
    )  # fmt: skip
    graph.column(300, down=190)
    graph.add("RefineryDisplayAnything", title="alt text", value=written[0])


def image_to_3d(
    graph: Graph, name: str, *, vision: str, model: str, vaes: Mapping[str, str]
) -> tuple[Subgraph, list[Node]]:
    """Begin a subgraph that makes something of an image: memory is freed, and models are loaded.

    Args:
        vaes: file by title.

    Returns:
        It and its nodes: the freed image, the background remover, vision, model, and the VAEs.
    """
    inner = Subgraph(graph.types, name, [("image", "IMAGE")])
    inner.column(320)
    return inner, [
        inner.add("RefineryFreeMemory", value=inner.given[0]),
        inner.add(
            "LoadBackgroundRemovalModel", bg_removal_name=BACKGROUND, models=fetch(BACKGROUND)
        ),
        inner.add("CLIPVisionLoader", clip_name=vision, models=fetch(vision)),
        inner.add("UNETLoader", unet_name=model, weight_dtype="default", models=fetch(model)),
        *(
            inner.add("VAELoader", vae_name=file, title=title, models=fetch(file))
            for title, file in vaes.items()
        ),
    ]


def trellis(graph: Graph) -> Subgraph:
    """Return ComfyUI's own nodes for TRELLIS.2 as a subgraph: an image becomes a mesh."""
    inner, (free, remover, vision, model, shapes, colors) = image_to_3d(
        graph, "Image to 3D (TRELLIS.2)", vision="dino_v3_vit_l.safetensors",
        model="trellis_2_bf16.safetensors",
        vaes={
            "shape VAE": "trellis_2_shape_vae_bf16.safetensors",
            "texture VAE": "trellis_2_texture_vae_bf16.safetensors",
        },
    )  # fmt: skip
    latent = inner.add("EmptyTrellis2LatentStructure", batch_size=1)
    inner.column(300)
    mask = inner.add("RemoveBackground", bg_removal_model=remover[0], image=free[0])
    # Guidance ends early and is rescaled, like in TRELLIS.2's own pipeline for these stages.
    led = inner.add("CFGOverride", model=model[0], cfg=1.0, start_percent=0.667)
    ended = inner.add("CFGOverride", model=model[0], cfg=1.0, start_percent=0.769)
    inner.column(300)
    cropped = inner.add("ImageCropToMask", images=free[0], masks=mask[0])
    scaled = inner.add("RescaleCFG", model=led[0], multiplier=0.7)
    rescaled = inner.add("RescaleCFG", model=ended[0], multiplier=0.5)
    inner.column(300)
    conditioning = inner.add("Trellis2Conditioning", clip_vision_model=vision[0], image=cropped[0])
    shifted = inner.add("ModelSamplingSD3", model=scaled[0], shift=5.0)
    inner.column(300)
    sampled = inner.add(
        "KSampler", title="1. structure", model=shifted[0], positive=conditioning[0],
        negative=conditioning[1], latent_image=latent[0], steps=12, cfg=7.5, sampler_name="euler",
        scheduler="normal",
    )  # fmt: skip
    inner.column(300)
    solid = inner.add("VaeDecodeStructureTrellis2", samples=sampled[0], vae=shapes[0],
                      resolution="64")  # fmt: skip
    inner.column(300)
    stage = inner.add(
        "Trellis2ShapeStage", positive=conditioning[0], negative=conditioning[1], voxel=solid[0]
    )
    inner.column(300)
    shape = inner.add(
        "KSampler", title="2. shape", model=rescaled[0], positive=stage[0], negative=stage[1],
        latent_image=stage[2], steps=12, cfg=7.5, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    inner.column(300)
    mesh = inner.add("VaeDecodeShapeTrellis", samples=shape[0], vae=shapes[0])
    surface = inner.add(
        "Trellis2TextureStage", positive=stage[0], negative=stage[1], shape_latent=shape[0]
    )
    inner.column(300)
    color = inner.add(
        "KSampler", title="3. texture", model=model[0], positive=surface[0],
        negative=surface[1], latent_image=surface[2], steps=12, cfg=1.0, sampler_name="euler",
        scheduler="normal",
    )  # fmt: skip
    inner.column(300)
    voxels = inner.add(
        "VaeDecodeTextureTrellis", samples=color[0], vae=colors[0], shape_subdivides=mesh[1]
    )
    inner.column(300)
    painted = inner.add("PaintMesh", mesh=mesh[0], voxel_colors=voxels[0])
    inner.show(sampled, "seed")
    inner.result("mesh", painted[0])
    return inner


def refine_then_3d(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> TRELLIS.2 -> a colored 3D model."""
    graph.column(320, "1. Image")
    note(
        graph, "Refine, then 3D",
        [FIRST,
         "Press *Run*. *SDXL Refiner* cleans the image, and the GPU is freed. Then ComfyUI's own "
         "nodes for TRELLIS.2 turn the object in the foreground into a 3D model, without cascade "
         "at 1024."],
        oldest=TRELLIS_FROM, tall=480,
        more="ComfyUI's template *Pixal3D & TRELLIS.2* shows more detail and baked textures.",
        files=(REFINER, BACKGROUND, "trellis_2_bf16.safetensors", "dino_v3_vit_l.safetensors",
               "trellis_2_shape_vae_bf16.safetensors", "trellis_2_texture_vae_bf16.safetensors"),
    )  # fmt: skip
    image = load_image(graph)
    graph.column(REFINER_PX, "2. Refiner")
    refined = refiner(graph, image[0], prompt="sharp focus, fine texture, clean edges")
    graph.column(320, "3. 3D model", down=190)
    mesh = graph.add_subgraph(trellis(graph), image=refined[0], tall=120)
    graph.column(320, down=190)
    graph.add("SaveGLB", mesh=mesh[0], filename_prefix="refinery/model", tall=400)


def triposplat(graph: Graph) -> Subgraph:
    """Return ComfyUI's own nodes for TripoSplat as a subgraph: an image becomes a splat."""
    inner, (free, remover, vision, model, latents, decoder) = image_to_3d(
        graph, "Image to splat (TripoSplat)", vision="dino_v3_vit_h.safetensors",
        model="triposplat_fp16.safetensors",
        vaes={
            "VAE": "flux2-vae.safetensors",
            "splat decoder": "triposplat_vae_decoder_fp16.safetensors",
        },
    )  # fmt: skip
    inner.column(300)
    mask = inner.add("RemoveBackground", bg_removal_model=remover[0], image=free[0])
    inner.column(300)
    cropped = inner.add("TripoSplatPreprocessImage", image=free[0], mask=mask[0])
    inner.column(300)
    conditioning = inner.add(
        "TripoSplatConditioning", clip_vision=vision[0], vae=latents[0], image=cropped[0]
    )
    inner.column(300)
    # The settings of ComfyUI's own blueprint.
    sampled = inner.add(
        "KSampler", model=model[0], positive=conditioning[0], negative=conditioning[1],
        latent_image=conditioning[2], steps=20, cfg=3.0, sampler_name="dpmpp_2m",
        scheduler="simple",
    )  # fmt: skip
    inner.column(300)
    splat = inner.add("VAEDecodeTripoSplat", samples=sampled[0], vae=decoder[0])
    inner.show(sampled, "seed")
    inner.show(splat, "num_gaussians")
    inner.result("splat", splat[0])
    return inner


TRIPOSPLAT_FILES = (
    "triposplat_fp16.safetensors", "dino_v3_vit_h.safetensors", "flux2-vae.safetensors",
    "triposplat_vae_decoder_fp16.safetensors",
)  # fmt: skip


def refine_then_splat(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> TripoSplat -> a splat."""
    graph.column(320, "1. Image")
    note(
        graph, "Refine, then a splat",
        [FIRST,
         "Press *Run*. *SDXL Refiner* cleans the image, and the GPU is freed. Then ComfyUI's own "
         "nodes for TripoSplat turn the object in the foreground into a 3D Gaussian splat."],
        oldest=APP_FROM, tall=440, files=(REFINER, BACKGROUND, *TRIPOSPLAT_FILES),
    )  # fmt: skip
    image = load_image(graph)
    graph.column(REFINER_PX, "2. Refiner")
    refined = refiner(graph, image[0], prompt="sharp focus, fine texture, clean edges")
    graph.column(260, "3. Splat", down=190)
    splat = graph.add_subgraph(triposplat(graph), image=refined[0], tall=120)
    graph.column(220, down=190)
    file = graph.add("SplatToFile3D", splat=splat[0], format="ply")
    graph.column(280, down=190)
    graph.add("SaveGLB", mesh=file[0], filename_prefix="refinery/splat", tall=300)


def refine_a_splat(graph: Graph) -> None:
    """Load Image -> TripoSplat -> Refine Splat -> Render Splat, beside the one without."""
    graph.column(320, "1. Image")
    note(
        graph, "Refine a splat (experimental)",
        [FIRST,
         "Press *Run*. TripoSplat makes a 3D Gaussian splat of the object. *Refine Splat* refines "
         "views from all around, and fits the colors to them.",
         "Compare *before* and *after*. Lower *strength* if *after* is blurred."],
        oldest=APP_FROM, tall=480, files=(REFINER, BACKGROUND, *TRIPOSPLAT_FILES),
    )  # fmt: skip
    image = load_image(graph)
    graph.column(280, "2. Splat")
    splat = graph.add_subgraph(triposplat(graph), image=image[0], tall=120)
    graph.column(320, down=230)  # below the link to the first rendering
    refined = graph.add(
        "RefinerySplat", splat=splat[0], checkpoint=REFINER, models=fetch(REFINER),
        prompt="sharp focus, fine texture, clean edges", negative_prompt="blurry, noise",
        tall=560,
    )  # fmt: skip
    # Each rendering is at the height of its preview in the next column.
    graph.column(300, "3. Result", down=190)
    before = render(graph, splat[0], "before")
    graph.add("PreviewImage", images=refined[1], title="refined views", tall=150)
    after = render(graph, refined[0], "after")
    file = graph.add("SplatToFile3D", splat=refined[0], format="ply")
    graph.column(300, down=190)
    graph.add("PreviewImage", images=before[0], title="before", tall=220)
    graph.add("PreviewImage", images=after[0], title="after", tall=220)
    graph.add("SaveGLB", mesh=file[0], filename_prefix="refinery/splat", tall=250)


def render(graph: Graph, splat: Output, title: str) -> Node:
    """Render a splat, in a node of which only the title shows."""
    return graph.add(
        "RenderSplat", splat=splat, render_style="color", title=f"render {title}", collapsed=True
    )


def caption_a_folder(graph: Graph) -> None:
    """Caption Folder with a preset, and Display Anything."""
    graph.column(320, "1. Instructions")
    note(
        graph, "Caption a folder",
        [FIRST_FOLDER.format(node="Caption Folder"),
         "Choose the kind of caption in *Prompt Presets*.",
         "Press *Run*. A text file with the same name appears beside each image, as LoRA trainers "
         "expect it.",
         "Cancel when you like: the next *Run* continues. Captions that exist stay."],
        models=(VISION_MODEL, TEXT_MODEL), tall=400,
    )  # fmt: skip
    chosen = presets(graph, "LoRA caption", tall=220)
    graph.column(400, "2. Folder")
    captions = graph.add(
        "RefineryCaptionFolder", folder=FOLDER, vision_model=AUTO, text_model=AUTO,
        instructions=chosen[0], text_options=chosen[1], tall=640,
    )  # fmt: skip
    graph.column(340, "3. Result", down=190)
    graph.add("RefineryDisplayAnything", title="captions", value=captions[1])
    graph.add("RefineryDisplayAnything", title="report", value=captions[2])


def refine_a_folder(graph: Graph) -> None:
    """Refine Folder and Display Anything."""
    graph.column(320)
    note(
        graph, "Refine a folder",
        [FIRST_FOLDER.format(node="Refine Folder"),
         "Press *Run*. The refined images appear in a folder of *output/refined*, under their own "
         "names.",
         "Cancel when you like: the next *Run* continues. Other settings write into another "
         "folder."],
        files=(REFINER,), tall=400,
    )  # fmt: skip
    graph.column(REFINER_PX, "1. Folder and refiner")
    refined = graph.add(
        "RefineryRefineFolder", folder=FOLDER, checkpoint=REFINER, models=fetch(REFINER),
        prompt="sharp focus, fine texture, high detail",
        negative_prompt="blurry, noise, compression artifacts", tall=700,
    )  # fmt: skip
    graph.column(340, "2. Result", down=190)
    graph.add("RefineryDisplayAnything", title="refined images", value=refined[0])
    graph.add("RefineryDisplayAnything", title="report", value=refined[2])


def tag_a_folder_with_two_models(graph: Graph) -> None:
    """Load Images From Folder -> LLM Image Refine with two models -> Save Caption."""
    graph.column(320, "1. Images and instructions")
    images = graph.add("RefineryLoadFolder", folder=FOLDER, limit=0, tall=230)
    chosen = presets(graph, "Tag list")
    note(
        graph, "Tag a folder with two models",
        [FIRST_FOLDER.format(node="Load Images From Folder"),
         "Choose the kind of tags in *Prompt Presets*. If *auto* chooses one model for both, "
         "choose another *text_model*.",
         "Press *Run*. The first model describes all images. Then the models are swapped once, "
         "and the second one writes the tags: two model loads, however many images.",
         "The tags are text files in *output/tags*."],
        models=(VISION_MODEL, TEXT_MODEL), tall=440,
    )  # fmt: skip
    graph.column(400, "2. Models", down=150)
    refine = described_and_rewritten(graph, images[0], chosen)
    graph.column(320, "3. Result")
    saved = graph.add(
        "RefinerySaveCaption", name=images[1], text=refine[2], place="output",
        subfolder="tags", existing="overwrite", tall=420,
    )  # fmt: skip
    graph.add("RefineryDisplayAnything", title="descriptions", value=refine[1])
    graph.column(300, down=190)
    graph.add("RefineryDisplayAnything", title="tags", value=saved[0])


def image_to_words(graph: Graph) -> None:
    """Load Image -> LLM Image Refine -> Save Text, as an app."""
    graph.column(320, "1. Image and instructions")
    note(
        graph, "Image to words",
        [FIRST, "Choose what to write in *preset*.", "Press *Run*. The text is shown, and saved in "
         "*output/refinery*."],
        models=(VISION_MODEL, TEXT_MODEL), oldest=APP_FROM, tall=330,
    )  # fmt: skip
    image = load_image(graph)
    chosen = presets(graph, "Enhanced description")
    graph.column(400, "2. Models")
    refine = described_and_rewritten(graph, image[0], chosen)
    graph.column(320, "3. Result", down=190)
    # App mode shows files only, so the text is saved.
    saved = graph.add("SaveText", text=refine[2], filename_prefix="refinery/text", format="txt",
                      tall=260)  # fmt: skip
    graph.show_in_app([(image, "image"), (chosen, "pick")], [saved])


def better_image(graph: Graph) -> None:
    """Load Image -> SDXL Refiner -> Save Image, as an app."""
    graph.column(320, "1. Image")
    note(
        graph, "Better image",
        [FIRST, "Press *Run*. The refined image is shown, and saved in *output/refinery*.",
         "Raise *strength* for a stronger effect."],
        files=(REFINER,), oldest=APP_FROM, tall=330,
    )  # fmt: skip
    image = load_image(graph)
    graph.column(REFINER_PX, "2. Refiner")
    refined = refiner(graph, image[0], prompt="sharp focus, fine texture, clean lines, high detail")
    graph.column(320, "3. Result", down=190)
    saved = graph.add("SaveImage", images=refined[0], filename_prefix="refinery/better")
    graph.show_in_app([(image, "image"), (refined, "prompt"), (refined, "strength")], [saved])


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    "Describe and rewrite": describe_and_rewrite,
    "New image from an old one": new_image_from_an_old_one,
    "Describe, vary, generate": describe_vary_generate,
    "Refine an image": refine_an_image,
    "Detail every tile": detail_every_tile,
    "Refine faces": refine_faces,
    "Describe, rewrite, refine": describe_rewrite_refine,
    "Two servers": two_servers,
    "Refine, then 3D": refine_then_3d,
    "Refine, then a splat": refine_then_splat,
    "Refine a splat": refine_a_splat,
    "Caption a folder": caption_a_folder,
    "Refine a folder": refine_a_folder,
    "Tag a folder with two models": tag_a_folder_with_two_models,
    "Image to words.app": image_to_words,
    "Better image.app": better_image,
}
"""The file names, which ComfyUI's template browser shows as titles."""


def described(inner: Subgraph, instructions: str) -> Node:
    """Add LLM Image Refine for the image, and show its models on the outside."""
    node = inner.add(
        "RefineryLLMImageRefine", image=inner.given[0], vision_model=AUTO, text_model=AUTO,
        user_instructions=instructions, on_error=STOP,
    )  # fmt: skip
    inner.show(node, "vision_model", "text_model")
    return node


def blueprint_words(inner: Subgraph) -> None:
    """LLM Image Refine, with its main inputs."""
    inner.column(400)
    words = described(inner, preset("Enhanced description"))
    inner.show(words, "user_instructions", "seed")
    for slot, (name, _) in enumerate(words.type.outputs):
        inner.result(name, words[slot])


def blueprint_refine(inner: Subgraph) -> None:
    """LLM Image Refine -> SDXL Refiner."""
    inner.column(400)
    prompt = described(inner, preset("Prompt for refining"))
    inner.column(REFINER_PX)
    refined = refiner(inner, prompt[0], prompt=prompt[2])
    inner.show(refined, "checkpoint", "strength", "seed")
    inner.result("image", refined[0])
    inner.result("prompt", prompt[2])


def blueprint_caption(inner: Subgraph) -> None:
    """Caption Folder, with its main inputs."""
    inner.column(400)
    captions = inner.add(
        "RefineryCaptionFolder", folder=FOLDER, vision_model=AUTO, text_model=AUTO,
        instructions=preset("LoRA caption"),
    )  # fmt: skip
    inner.show(captions, "folder", "vision_model", "text_model", "instructions", "existing")
    for slot, (name, _) in enumerate(captions.type.outputs):
        inner.result(name, captions[slot])


def blueprint_faces(inner: Subgraph) -> None:
    """ComfyUI's face detection -> Describe Tiles -> Refine with Model."""
    image, model, clip, vae = inner.given
    file = "mediapipe_face_fp32.safetensors"
    inner.column(360)
    detector = inner.add("LoadMediaPipeFaceLandmarker", model_name=file, models=fetch(file))
    inner.column(360)
    faces = inner.add(
        "MediaPipeFaceLandmarker", face_detection_model=detector[0], image=image,
        detector_variant="both", num_faces=0,
    )  # fmt: skip
    inner.column(300)
    mask = inner.add("MediaPipeFaceMask", face_landmarks=faces[0], regions="all")
    inner.column(360)
    tiles = inner.add(
        "RefineryDescribeTiles", image=image, mask=mask[0], vision_model=AUTO, on_error=STOP
    )
    inner.column(380)
    refined = inner.add(
        "RefineryRefineWithModel", image=image, model=model, clip=clip, vae=vae, mask=mask[0],
        tile_prompts=tiles[1], positive="a detailed face, natural skin",
        negative="blurry, noise, compression artifacts", sampler_name="dpmpp_2m",
        scheduler="karras",
    )  # fmt: skip
    inner.show(detector, "model_name")
    inner.show(tiles, "vision_model")
    inner.show(refined, "positive", "denoise", "seed")
    inner.result("image", refined[0])
    inner.result("mask", refined[1])


IMAGE = [("image", "IMAGE")]
SUBGRAPHS: dict[str, tuple[Callable[[Subgraph], None], list[tuple[str, str]], str, list[str]]] = {
    "Describe and rewrite": (
        blueprint_words, IMAGE,
        "Describes an image with a vision model, and rewrites the description by your "
        "instructions.",
        ["image to text", "caption", "vlm", "ollama", "llm", "describe image", "prompt"],
    ),
    "Refine with its own description": (
        blueprint_refine, IMAGE,
        "Describes an image, shortens the description to a prompt, and refines the image with it.",
        ["sdxl refiner", "enhance", "denoise", "clean up", "img2img", "ollama"],
    ),
    "Caption a folder": (
        blueprint_caption, [],
        "Writes a caption file beside each image of a folder of any size. Cancel, and run again "
        "to continue.",
        ["dataset", "lora", "training", "batch caption", "txt", "kohya", "ollama"],
    ),
    "Refine faces": (
        blueprint_faces, [*IMAGE, ("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
        "Finds faces with MediaPipe, describes each and refines it by itself, large. Nothing else "
        "changes.",
        ["face detailer", "adetailer", "face fix", "detail faces", "inpaint"],
    ),
}  # fmt: skip
"""Blueprint: (what is in it, its inputs, description, words by which the page finds it)."""


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


def blueprint(name: str, types: Mapping[str, NodeType], origins: Origins) -> dict[str, Any]:
    """Return the file of a blueprint: a workflow of one node, which is a subgraph."""
    build, inputs, description, words = SUBGRAPHS[name]
    inner = Subgraph(types, name, inputs, category="Image Refinery", description=description)
    build(inner)
    graph = Graph(types)
    graph.column(400)
    graph.add_subgraph(inner)
    page = graph.page(f"blueprint/{name}", origins)
    page["extra"]["BlueprintSearchAliases"] = words
    return page


def files() -> dict[Path, str]:
    """Return the text of every file that this script writes."""
    core = json.loads(CORE.read_text(encoding="utf-8"))
    origins = {name: ("comfy-core", entry["since"]) for name, entry in core.items()}
    origins |= dict.fromkeys(pack_types(), ("image-refinery", _version()))
    written: dict[Path, Any] = {}
    for name, graph in graphs().items():
        written[PAGES / f"{name}.json"] = graph.page(name, origins)
        written[APIS / f"{name}.json"] = graph.api()
    types = core_types() | pack_types()
    for name in SUBGRAPHS:
        written[BLUEPRINTS / f"{name}.json"] = blueprint(name, types, origins)
    return {
        path: json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        for path, content in written.items()
    }


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
    for since, host in zip((OLDEST, APP_FROM, TRELLIS_FROM), hosts, strict=False):
        for name in sorted(wanted - set(found)):
            if name in host and not (since == OLDEST and name in NEWER):
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
