"""The refiner on a GPU: time, VRAM and share of the floor, for every memory mode and its peers.

    python dev.py bench gpu [--side PX] [--steps N] [--runs N] [--modes A,B] [--json FILE]

Makes a checkpoint of the SDXL refiner's true size (3.04 billion parameters, 6.08 GB in fp16) with
random weights in the temporary folder, from the JSON that ships with the package, without network.
Each way refines the same image, PIL in and PIL out, with a new prompt each time, in a separate
process: so a peak belongs to that way alone, and running out of memory is a row with the reason.

cold: create the pipeline, load (from a warm page cache), first image; imports do not count.
warm: median of the runs after that. steps/s: one more run that synchronizes after every step.
peak VRAM: torch.cuda.max_memory_allocated over all of these.
own RAM: anonymous memory after the runs, without pages of mapped files (Linux).
floor: max(FLOP / rate + traffic / VRAM bandwidth, weights / pinned bandwidth): the time of the
unfused operations. FLOP and traffic: two prompts, VAE encode, UNet steps with guidance, VAE decode,
counted on the architecture; traffic: what all other operations than matrix products, convolutions
and attention read and write; rate: a matrix product on this machine in the UNet's type; weights:
the bytes that the mode moves to the device for one image. share: floor / warm.

Without CUDA the benchmark uses the tiny refiner instead of the true one, does not measure VRAM, and
compares fewer ways, unless --modes names them: there, all modes do the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import OUTPUT, ROOT, describe_machine, from_tests, table, write
from _refiner import (
    GUIDANCE,
    STRENGTH,
    TINY,
    load_photo,
    no_step,
    our_way,
    own_ram_bytes,
    plain_pipeline,
    plain_way,
    run_worker,
)

if TYPE_CHECKING:
    import torch
    from _refiner import OnStep, Way

WAYS = {
    "auto": "memory_mode auto",
    "gpu": "memory_mode gpu",
    "offload": "memory_mode offload",
    "low_vram": "memory_mode low_vram",
    "plain": "diffusers, .to(device)",
    "model_offload": "diffusers, enable_model_cpu_offload",
    "comfyui": "ComfyUI's own nodes",
}
WAYS_OF_A_CPU = ("auto", "plain")
DIFFUSERS_PIPELINE = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"
NEEDED_BYTES = 7 * 10**9
TRUE_SIZE = "true size, random"
GIB = 2**30
Figures = dict[str, Any]


# The checkpoint


def build_checkpoint(folder: Path) -> Path:
    """Write a refiner of true size with random weights: one file, and a folder with its JSON.

    Raises:
        OSError: the folder has too little free space.
    """
    import torch
    from image_refinery.refine.loading import shipped_config
    from safetensors.torch import save_file

    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, but the checkpoint needs "
            f"{NEEDED_BYTES / 1e9:.0f} GB: set TMPDIR to a folder with more space."
        )
    path = folder / "random_refiner.safetensors"
    for name, content in shipped_config("refiner").items():
        file = path.with_suffix("") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), "utf-8")
    # A small vocabulary in the true format: a prompt is 77 tokens long in any case.
    shutil.copytree(TINY.with_suffix("") / "tokenizer_2", path.with_suffix("") / "tokenizer_2")
    torch.manual_seed(0)
    tensors = {
        name: random_weights(name, shape)
        for name, shape in checkpoint_shapes(path.with_suffix("")).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def random_weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return weights of about the size that torch gives them, so that no activation overflows."""
    import torch

    if len(shape) == 1:
        # The scale of a normalization, or a bias. Ones and zeros would hide a swapped key.
        middle, spread = (1.0, 0.2) if name.endswith("weight") else (0.0, 0.02)
        return torch.empty(shape, dtype=torch.float16).uniform_(middle - spread, middle + spread)
    bound = (torch.Size(shape).numel() // shape[0]) ** -0.5
    return torch.empty(shape, dtype=torch.float16).uniform_(-bound, bound)


def checkpoint_shapes(description: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a single checkpoint file's tensors, for the architecture of its JSON."""
    sys.path.insert(0, str(ROOT / "tools" / "tiny_refiner"))
    from tiny_export import open_clip_tensors, unet_key, vae_key

    unet, vae, text = empty_parts(description)
    attended = {
        index for index, kind in enumerate(unet.config.up_block_types) if kind.startswith("Cross")
    }
    shapes = {
        "model.diffusion_model." + unet_key(name, unet.config.layers_per_block, attended): t.shape
        for name, t in unet.state_dict().items()
    }
    for name, tensor in vae.state_dict().items():
        key = vae_key(name, len(vae.config.block_out_channels))
        # The checkpoint keeps this attention's projections as 1 x 1 convolutions.
        if ".attn_1." in key and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        shapes["first_stage_model." + key] = tensor.shape
    for name, tensor in open_clip_tensors(text.state_dict(), 0).items():
        shapes[name] = tensor.shape
    return {name: tuple(shape) for name, shape in shapes.items()}


def empty_parts(description: Path) -> tuple[Any, Any, Any]:
    """Return UNet, VAE and text encoder on the meta device: without memory for their weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    def config(part: str) -> dict[str, Any]:
        return json.loads((description / part / "config.json").read_text("utf-8"))

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config("unet"))
        vae: Any = AutoencoderKL.from_config(config("vae"))
        text = CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2")))
    return unet, vae, text


# The floor


def count_work(description: Path, side: int, evaluations: int) -> Figures:
    """Return FLOP and traffic of one image, and each component's weights, in a two-byte type.

    Args:
        description: A folder with a diffusers model's JSON.
        side: Side of the square image in pixels; a multiple of 64.
        evaluations: UNet steps, each with guidance: a batch of two.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    unet, vae, text = empty_parts(description)

    def count(call: Callable[[], object]) -> tuple[int, int]:
        flop = FlopCounterMode(display=False)
        with torch.device("meta"), torch.no_grad(), fused_attention(), flop, traffic() as passed:
            call()
        return flop.get_total_flops(), 2 * sum(passed)

    latent = side // 8
    text_config: Any = text.config
    added = {
        "text_embeds": torch.empty(2, text_config.projection_dim, device="meta"),
        "time_ids": torch.empty(2, 5, device="meta"),
    }
    step = count(
        lambda: unet(
            torch.empty(2, 4, latent, latent),
            torch.tensor(1.0),
            encoder_hidden_states=torch.empty(2, 77, text_config.hidden_size),
            added_cond_kwargs=added,
        )
    )
    prompt = count(lambda: text(torch.zeros(1, 77, dtype=torch.long)))
    encode = count(lambda: vae.encode(torch.empty(1, 3, side, side)))
    decode = count(lambda: vae.decode(torch.empty(1, 4, latent, latent)))
    flop, moved = (
        2 * of_prompt + of_encode + of_decode + evaluations * of_step
        for of_prompt, of_encode, of_decode, of_step in zip(
            prompt, encode, decode, step, strict=True
        )
    )
    named = {"unet": unet, "vae": vae, "text": text}
    return {
        "flop": flop,
        "flop_per_step": step[0],
        "traffic_bytes": moved,
        "bytes": {n: 2 * sum(p.numel() for p in m.parameters()) for n, m in named.items()},
    }


@contextmanager
def traffic() -> Iterator[list[int]]:
    """Collect the elements that each operation reads and writes, where that is not hidden by FLOP.

    Not counted: matrix products, convolutions, attention, and views.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    computing = ("mm", "bmm", "addmm", "baddbmm", "convolution", "empty", "_unsafe_view")
    computing += ("_scaled_dot_product_flash_attention",)
    passed: list[int] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view and func.overloadpacket.__name__ not in computing:
                tensors = tree_leaves((args, kwargs, result))
                passed.append(sum(one.numel() for one in tensors if torch.is_tensor(one)))
            return result

    with Count():
        yield passed


def fused_attention() -> Any:
    """Return a mode in which attention is one operation, as on a GPU, not several as on "meta"."""
    import torch
    from torch.overrides import TorchFunctionMode

    attention = torch.nn.functional.scaled_dot_product_attention

    class Fused(TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not attention:
                return func(*args, **(kwargs or {}))
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            tensors = (named[name] for name in ("query", "key", "value"))
            return torch.ops.aten._scaled_dot_product_flash_attention(*tensors)[0]

    return Fused()


def moved_bytes(mode: str, sizes: dict[str, int], evaluations: int) -> int:
    """Return the bytes of weights that a mode moves to the device for every image."""
    from image_refinery.refine.residency import LOW_VRAM_BYTES

    if mode in ("offload", "model_offload"):
        return sum(sizes.values())
    if mode != "low_vram":
        return 0
    resident = min(LOW_VRAM_BYTES, sizes["unet"])
    return sizes["text"] + sizes["vae"] + resident + (sizes["unet"] - resident) * evaluations


def floor_s(mode: str, work: Figures, rates: Figures, evaluations: int) -> float:
    """Return the least possible time of one warm image in a mode, in seconds."""
    computing = work["flop"] / rates["flop_per_s"] + work["traffic_bytes"] / rates["bytes_per_s"]
    if rates["pinned_bytes_per_s"] is None:
        return computing
    moving = moved_bytes(mode, work["bytes"], evaluations) / rates["pinned_bytes_per_s"]
    return max(computing, moving)


def measure_rates() -> Figures:
    """Return this machine's FLOP, traffic and copies per second; the best of several tries."""
    import torch

    device = take_device()
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.float16) if cuda else (1024, torch.float32)
    factor = torch.randn(side, side, device=device, dtype=dtype)
    seconds = best_time(device, lambda: torch.matmul(factor, factor))
    big = torch.zeros(2**28, dtype=torch.uint8, device=device)
    other = torch.zeros_like(big)
    rates: Figures = {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU, one thread",
        "cuda": cuda,
        "vram_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "flop_per_s": 2 * side**3 / seconds,
        "bytes_per_s": 2 * big.nbytes / best_time(device, lambda: other.copy_(big)),
        "pinned_bytes_per_s": None,
        "pageable_bytes_per_s": None,
    }
    if cuda:
        there = torch.empty(2**28, dtype=torch.uint8, device=device)
        for kind, pinned in (("pinned", True), ("pageable", False)):
            here = torch.zeros(2**28, dtype=torch.uint8, pin_memory=pinned)
            seconds = best_time(device, lambda h=here: there.copy_(h, non_blocking=True))
            rates[f"{kind}_bytes_per_s"] = here.nbytes / seconds
    return rates


def best_time(device: torch.device, call: Callable[[], object]) -> float:
    """Return the least seconds of ten calls, after three warm-up calls."""
    times: list[float] = []
    for _ in range(13):
        begun = now(device)
        call()
        times.append(now(device) - begun)
    return min(times[3:])


# The ways


def take_device() -> torch.device:
    """Return the GPU, or the CPU with one thread, where other programs disturb least."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def now(device: torch.device) -> float:
    """Wait for all work queued on the device, then return the time in seconds."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(make: Callable[[], Way], device: torch.device, runs: int) -> Figures:
    """Measure a way, including the time to create it."""
    import torch

    cuda = device.type == "cuda"
    begun = now(device)  # starts CUDA, which must not count as the way's time
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        begun = now(device)
    way = make()
    way("a lake", no_step)
    cold_s = now(device) - begun
    warm: list[float] = []
    for number in range(runs):
        begun = now(device)
        way(f"a lake, take {number}", no_step)
        warm.append(now(device) - begun)
    marks: list[float] = []
    way("a lake, step by step", lambda: marks.append(now(device)))
    steps = [later - earlier for earlier, later in pairwise(marks)]
    return {
        "cold_s": cold_s,
        "warm_s": statistics.median(warm),
        "warm_all_s": warm,
        "evaluations": len(marks),
        "step_s": statistics.median(steps) if steps else None,
        "peak_vram_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "own_ram_bytes": own_ram_bytes(),
        "mode": None,
    }


def measure_ours(mode: Any, checkpoint: Path, side: int, steps: int, runs: int) -> Figures:
    """Measure one memory mode of ImageRefiner."""
    from image_refinery.refine import ImageRefiner, LocalResidency

    import_module("image_refinery.refine.loading")  # and diffusers with it, off the clock
    device = take_device()
    made: list[Any] = []

    def residency(components: Any, where: torch.device) -> Any:
        made.append(LocalResidency(components, where, mode))
        return made[0]

    def make() -> Way:
        refiner = ImageRefiner(device, model=checkpoint, residency=residency)
        return our_way(refiner, load_photo(side), steps)

    figures = measure(make, device, runs)
    return {**figures, "mode": made[0].mode}


def measure_diffusers(way: str, checkpoint: Path, side: int, steps: int, runs: int) -> Figures:
    """Measure diffusers' pipeline: entirely on the device, or with its model offloading."""
    import torch

    import_module(DIFFUSERS_PIPELINE)  # off the clock
    device = take_device()

    def make() -> Way:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        pipeline = plain_pipeline(checkpoint, dtype)
        if way == "model_offload":
            pipeline.enable_model_cpu_offload()
        else:
            pipeline.to(device)
        return plain_way(pipeline, load_photo(side), steps)

    return {**measure(make, device, runs), "mode": way}


def measure_comfyui(_: str, checkpoint: Path, side: int, steps: int, runs: int) -> Figures:
    """Measure ComfyUI's own nodes with the same number of UNet evaluations, in its interpreter."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import torch

    device = take_device()
    from comfy.cli_args import args as comfyui_arguments

    comfyui_arguments.cpu = device.type == "cpu"
    import comfy.sample
    import comfy.sd
    import numpy as np

    # KSampler runs all its steps, whatever the strength.
    evaluations = int(steps * STRENGTH)
    pixels = torch.from_numpy(np.array(load_photo(side), np.float32) / 255)[None]

    def make() -> Way:
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]

        def encode(text: str, score: float) -> Any:
            added = {"aesthetic_score": score, "width": side, "height": side}
            return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=added)

        def refine(prompt: str, on_step: OnStep) -> object:
            latents = vae.encode(pixels)
            sampled = comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(latents, 0),
                evaluations,
                GUIDANCE,
                "euler",
                # The same timesteps as diffusers' schedule, and so the same work.
                "ddim_uniform",
                encode(prompt, 6.0),
                encode("", 2.5),
                latents,
                denoise=STRENGTH,
                callback=None if on_step is no_step else lambda *_: on_step(),
                disable_pbar=True,
                seed=0,
            )
            return vae.decode(sampled)

        return refine

    with torch.inference_mode():
        return {**measure(make, device, runs), "mode": "comfyui"}


MEASURES = {
    "plain": measure_diffusers,
    "model_offload": measure_diffusers,
    "comfyui": measure_comfyui,
}


# The table


def python_for(way: str, *, cuda: bool, full: bool) -> Path | str:
    """Return the interpreter to measure a way with, or a sentence on why that is impossible."""
    if way == "model_offload" and not cuda:
        return "not measured: diffusers only offloads from a GPU"
    if way != "comfyui":
        return Path(sys.executable)
    if not full:
        return "not measured: ComfyUI only loads a refiner of the true size"
    found = from_tests("comfyui/host.py").find_host()
    if isinstance(found, str):
        return f"not measured: {found}"
    os.environ["COMFYUI_PATH"] = str(found.home)  # read by its worker
    return found.python


@contextmanager
def checkpoint_of(size: str) -> Iterator[Path]:
    """Yield the tiny refiner, or one of true size that is deleted after the block."""
    if size == "tiny":
        yield TINY
        return
    with tempfile.TemporaryDirectory(prefix="image-refinery-") as folder:
        yield build_checkpoint(Path(folder))


def run(args: argparse.Namespace) -> Figures:
    """Measure the chosen ways; return the results for the JSON file."""
    rates = run_worker(__file__, ["--worker", "rates"])
    if "reason" in rates:
        raise RuntimeError(f"The device could not be measured: {rates['reason']}")
    full = (args.size or ("full" if rates["cuda"] else "tiny")) == "full"
    side: int = args.side or (1024 if rates["cuda"] else 256)
    evaluations = int(args.steps * STRENGTH)
    rows: list[Figures] = []
    begun = time.perf_counter()
    with checkpoint_of("full" if full else "tiny") as checkpoint:
        build_s = time.perf_counter() - begun
        work = count_work(checkpoint.with_suffix(""), side, evaluations)
        for way in args.modes or (WAYS if rates["cuda"] else WAYS_OF_A_CPU):
            python = python_for(way, cuda=rates["cuda"], full=full)
            if isinstance(python, str):
                print(f"{WAYS[way]}: {python}", file=sys.stderr, flush=True)
                rows.append({"way": way, "reason": python})
                continue
            print(f"{WAYS[way]}: measuring", file=sys.stderr, flush=True)
            worker = ["--worker", way, "--checkpoint", str(checkpoint), "--side", str(side)]
            worker += ["--steps", str(args.steps), "--runs", str(args.runs)]
            figures = run_worker(__file__, worker, python=str(python))
            if "reason" not in figures:
                floor = floor_s(figures["mode"], work, rates, evaluations)
                figures |= {"floor_s": floor, "share": floor / figures["warm_s"]}
            rows.append({"way": way, **figures})
    return {
        "machine": describe_machine(),
        "rates": rates,
        "weights": TRUE_SIZE if full else "tiny refiner",
        "build_s": build_s if full else None,
        "side_px": side,
        "steps": args.steps,
        "evaluations": evaluations,
        "runs": args.runs,
        "work": work,
        "rows": rows,
    }


def to_markdown(result: Figures) -> str:
    """Return what was measured, and the table, as Markdown."""
    rates, work = result["rates"], result["work"]
    lines = [f"{result['machine']}, torch {rates['torch']}; {rates['device']}"]
    if result["weights"] != TRUE_SIZE:
        lines.append(
            "Not the real refiner: these are figures of the TINY REFINER (0.7 million parameters)."
        )
    if not rates["cuda"]:
        lines.append("No CUDA device: VRAM and copies are not measured.")
    lines.append(
        f"{result['side_px']} x {result['side_px']} px, {result['steps']} steps at strength "
        f"{STRENGTH} ({result['evaluations']} UNet evaluations with guidance), "
        f"warm: medians of {result['runs']}, cold and steps/s: one run"
    )
    copies = ""
    for kind in ("pinned", "pageable") if rates["cuda"] else ():
        copies += f", {kind} {rates[f'{kind}_bytes_per_s'] / 1e9:.1f} GB/s"
    lines.append(
        f"floor = max(FLOP / rate + traffic / bandwidth, weights / pinned): "
        f"{work['flop'] / 1e12:.3g} TFLOP, {rates['flop_per_s'] / 1e12:.3g} TFLOP/s in "
        f"{rates['dtype']}, {work['traffic_bytes'] / 1e9:.3g} GB, "
        f"{rates['bytes_per_s'] / 1e9:.3g} GB/s{copies}"
    )
    head = ["way", "cold, s", "warm, s", "steps/s", "peak VRAM, GiB"]
    head += ["own RAM, GiB", "floor, s", "share", "note"]
    return "\n".join([*lines, "", table(head, [row_cells(row) for row in result["rows"]])])


def row_cells(row: Figures) -> list[str]:
    """Return one line of the table."""
    name = WAYS[row["way"]]
    if "reason" in row:
        return [name, *["-"] * 7, row["reason"]]
    peak, ram = row["peak_vram_bytes"], row["own_ram_bytes"]
    ran_as = row["mode"] if row["way"] == "auto" else ""
    return [
        name,
        f"{row['cold_s']:.2f}",
        f"{row['warm_s']:.3f}",
        "-" if row["step_s"] is None else f"{1 / row['step_s']:.2f}",
        "not measured" if peak is None else f"{peak / GIB:.2f}",
        "not measured" if ram is None else f"{ram / GIB:.2f}",
        f"{row['floor_s']:.3f}",
        f"{row['share']:.0%}",
        f"chose {ran_as}" if ran_as else "",
    ]


def ways(text: str) -> list[str]:
    """Return the ways in a comma-separated list."""
    names = text.split(",")
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        known = ", ".join(WAYS)
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {known}")
    return names


def whole_side(text: str) -> int:
    """Return a side in pixels that no way has to change."""
    side = int(text)
    if side < 64 or side % 64:
        raise argparse.ArgumentTypeError("the side must be a multiple of 64")
    return side


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=whole_side, help="pixels (1024; on a CPU 256)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--modes", type=ways, help=",".join(WAYS))
    parser.add_argument("--size", choices=("full", "tiny"), help="full with CUDA, else tiny")
    parser.add_argument("--json", type=Path, default=OUTPUT / "gpu.json")
    parser.add_argument("--worker", choices=("rates", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs < 1 or int(args.steps * STRENGTH) < 1:
        parser.error(f"give at least one run, and one step at strength {STRENGTH} (--steps 4)")
    return args


def main() -> int:
    """Measure, print and write; return 1 if nothing could be measured."""
    args = parse()
    if args.worker == "rates":
        print(json.dumps(measure_rates()))
        return 0
    if args.worker:
        way = MEASURES.get(args.worker, measure_ours)
        print(json.dumps(way(args.worker, args.checkpoint, args.side, args.steps, args.runs)))
        return 0
    result = run(args)
    write(args.json, result)
    print(to_markdown(result))
    return 0 if any("reason" not in row for row in result["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
