"""Compare the refiner with ComfyUI's own nodes at the true size: 3.04 billion random weights.

    python tools/true_size_check.py [--keep FOLDER] [--size 320x256]

Builds a checkpoint with the refiner's true shapes (one fp16 file of 6.1 GB), runs ImageRefiner,
then the functions that ComfyUI's nodes call, each in its own process and interpreter, and compares
what both computed from the same inputs. It needs 7 GB of disk, 14 GB of free RAM, a ComfyUI
(COMFYUI_PATH, else ~/comfy/ComfyUI), and about ten minutes of one core. On a busy machine set
OMP_NUM_THREADS=1: threads that wait for each other take many times as long there.

The controls are our own result after a deliberate mistake: a comparison that does not show the
mistake proves nothing. Exit status 1 if a difference is above its limit, or a control below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _measure import describe_machine, from_tests, table  # noqa: E402  (no package)
from _refiner import PHOTO, own_ram_bytes  # noqa: E402

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

CHECKPOINT = "random_refiner.safetensors"
NEEDED_RAM_BYTES = 14 * 10**9
SEED, GUIDANCE, STEPS, STRENGTH = 7, 7.5, 20, 0.3
SCORE, NEGATIVE_SCORE = 6.0, 2.5
PROMPT = "a lighthouse on a cliff, oil painting, sharp details"
NEGATIVE = "blurry, noise"
LONG = "a lighthouse on a cliff above the sea, " * 12
WEIGHTED = r"a lighthouse, (a red boat:1.3), ((waves)), oil \(on canvas\)"
OTHER = "a red car in the snow"

LIMIT = 1e-4
ROWS = {
    "text embedding, prompt": LIMIT,
    "text embedding, negative prompt": LIMIT,
    "text embedding, weights and escaped parentheses": LIMIT,
    "pooled embedding, prompt": LIMIT,
    "pooled embedding, negative prompt": LIMIT,
    "VAE encode, mean": LIMIT,
    "noise at t=251, prompt": LIMIT,
    "noise at t=251, negative prompt": LIMIT,
    "noise at t=251, long prompt": LIMIT,
    "noise at t=251, short negative prompt beside a long prompt": LIMIT,
    "noise at t=101, prompt": LIMIT,
    "noise at t=1, prompt": LIMIT,
    "latents after 6 steps": LIMIT,
    # The VAE's sums are the longest, so they round the most: 6e-5 or 1.1e-4, by the threads.
    "VAE decode, same latents": 3e-4,
    "image, end to end": 3e-4,
}
"""What is compared, and the largest difference that fp32 explains."""
COMPARED_STEPS = {251: 0, 101: 3, 1: 5}

MIN_CONTROL = 1e-2
CONTROLS = {
    **dict.fromkeys(
        (
            "height and width swapped",
            "aesthetic score 2.5 instead of 6",
            "crop at 64, 64 instead of 0, 0",
            "pooled embedding of zeros",
            "last text layer instead of the last but one",
            "another prompt",
            "two normalizations of one block swapped",
            "two biases of one block swapped",
        ),
        "noise at t=251, prompt",
    ),
    "short negative prompt filled up with an empty row": "noise at t=251, negative prompt",
    "prompt weights read as plain text": "text embedding, weights and escaped parentheses",
}
"""Mistakes, and what of ComfyUI's their results are compared with."""


# The comparison


@dataclass(frozen=True)
class Row:
    """One difference, in standard deviations of ComfyUI's tensor."""

    title: str
    largest: float
    mean: float
    limit: float
    is_control: bool = False

    @property
    def is_good(self) -> bool:
        """Whether it is within its limit; NaN never is."""
        if self.is_control:
            return self.largest >= self.limit
        return self.largest <= self.limit


def compare(ours: Tensors, native: Tensors) -> list[Row]:
    """Return a row for everything in ROWS, then one for each control."""
    rows = [
        Row(title, *difference(ours.get(title), native.get(title)), limit)
        for title, limit in ROWS.items()
    ]
    controls = [
        Row(title, *difference(ours.get(title), native.get(of)), MIN_CONTROL, True)
        for title, of in CONTROLS.items()
    ]
    return rows + controls


def difference(ours: torch.Tensor | None, native: torch.Tensor | None) -> tuple[float, float]:
    """Return the largest and the mean difference; NaN if the two cannot be compared."""
    if ours is None or native is None or ours.shape != native.shape:
        return math.nan, math.nan
    away = (ours.double() - native.double()).abs() / native.double().std()
    return away.max().item(), away.mean().item()


def to_markdown(rows: list[Row]) -> str:
    """Return the tables of differences and controls."""
    tables: list[str] = []
    for is_control, head in ((False, "difference"), (True, "control")):
        bound = "at least" if is_control else "at most"
        lines = [
            [row.title, f"{row.largest:.1e}", f"{row.mean:.1e}", f"{row.limit:g}", verdict(row)]
            for row in rows
            if row.is_control == is_control
        ]
        tables.append(table([head, "max", "mean", f"max must be {bound}", ""], lines))
    return "\n\n".join(tables)


def verdict(row: Row) -> str:
    """Return one word, or why the row fails."""
    if row.is_good:
        return "good"
    if math.isnan(row.largest):
        return "FAILED: missing, not finite, or of another shape"
    return "FAILED: the mistake does not show" if row.is_control else "FAILED: too different"


# Ours


class Stop(Exception):
    """Ends a run after its first step."""


def run_ours(folder: Path, width: int, height: int, vocabulary: Path) -> None:
    """Write what ImageRefiner computes, and the inputs that ComfyUI needs for the same work."""
    import torch
    from image_refinery.refine import ImageRefiner
    from safetensors.torch import save_file

    import_module("image_refinery.refine.loading")  # and diffusers with it: not our memory
    start = own_ram_bytes()
    refiner = ImageRefiner(
        "cpu", model=folder / CHECKPOINT, memory_mode="low_vram", vocabulary=vocabulary
    )
    seconds = {"load": timed(refiner.load)}
    ram = {"before": start, "loaded": own_ram_bytes()}
    settings: dict[str, Any] = {
        "strength": STRENGTH,
        "guidance_scale": GUIDANCE,
        "num_inference_steps": STEPS,
        "aesthetic_score": SCORE,
        "negative_aesthetic_score": NEGATIVE_SCORE,
        "seed": SEED,
        "working_size": "keep size",
        "keep_colors": False,
        "negative_prompt": NEGATIVE,
    }
    tensors: Tensors = {"image": load_image(width, height)}

    def whole() -> None:
        tensors["image, end to end"] = refiner.refine(tensors["image"], prompt=PROMPT, **settings)

    stages = refiner._stages
    assert stages is not None
    with recorded(stages.components) as seen:
        seconds["image"] = timed(whole)
        note(f"ours: 6 steps in {seconds['image']:.0f} s")
        try:
            refiner.refine(tensors["image"], prompt=LONG, on_progress=stop_after_a_step, **settings)
        except Stop:
            note("ours: a long prompt")
    first, *_ = steps = seen.steps
    tensors |= {
        "mean": seen.mean,
        "VAE encode, mean": seen.mean,
        "posterior noise": seen.latents - seen.mean,
        "start noise": seen.noise,
        "latents after 6 steps": seen.refined,
        "VAE decode, same latents": tensors["image, end to end"].clone(),
        "noise at t=251, negative prompt": first.predicted[:1],
        "noise at t=251, short negative prompt beside a long prompt": steps[6].predicted[:1],
        "noise at t=251, long prompt": steps[6].predicted[1:],
        "text embedding, negative prompt": first.embeds[:1],
        "text embedding, prompt": first.embeds[1:],
        "pooled embedding, negative prompt": first.pooled[:1],
        "pooled embedding, prompt": first.pooled[1:],
    }
    for at, index in COMPARED_STEPS.items():
        assert steps[index].time == at
        tensors[f"noise at t={at}, prompt"] = steps[index].predicted[1:]
        tensors[f"input at t={at}"] = steps[index].latents[1:]
    weighted = stages.encode_prompts(WEIGHTED, None, "ComfyUI weights").prompt_embeds
    tensors["text embedding, weights and escaped parentheses"] = weighted
    tensors |= make_mistakes(stages, first)
    note("ours: the controls")
    ram["refined"] = own_ram_bytes()
    refiner.unload()
    ram["unloaded"] = own_ram_bytes()
    del stages
    refiner.close()
    ram["closed"] = own_ram_bytes()
    kept = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(kept, folder / "ours.safetensors")
    import diffusers
    import transformers

    versions = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    told = {name: module.__version__ for name, module in versions.items()}
    write_json(folder / "ours.json", {"versions": told, "seconds": seconds, "own_ram_bytes": ram})


@dataclass
class UnetStep:
    """One call of the UNet: the negative prompt's half, then the prompt's."""

    latents: torch.Tensor
    time: int
    embeds: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    predicted: torch.Tensor


class Seen:
    """What passes through the components of a checkpoint; latents unscaled, as in ComfyUI."""

    mean: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor
    refined: torch.Tensor

    def __init__(self) -> None:
        self.steps: list[UnetStep] = []


@contextmanager
def recorded(components: Any) -> Iterator[Seen]:
    """Record all calls of the UNet, and the VAE's and the noise of the latest image."""
    seen = Seen()
    unet, vae, scheduler = components.unet, components.vae, components.scheduler
    encode, decode, add_noise = vae.encode, vae.decode, scheduler.add_noise
    scale = vae.config.scaling_factor

    def encode_recorded(pixels: Any) -> Any:
        result = encode(pixels)
        seen.mean = result.latent_dist.mean
        return result

    def add_noise_recorded(latents: Any, noise: Any, times: Any) -> Any:
        seen.latents, seen.noise = latents / scale, noise
        return add_noise(latents, noise, times)

    def decode_recorded(latents: Any, **options: Any) -> Any:
        seen.refined = latents
        return decode(latents, **options)

    def after_unet(_: Any, inputs: Any, named: Any, output: Any) -> None:
        added = named["added_cond_kwargs"]
        seen.steps.append(
            UnetStep(
                inputs[0],
                int(inputs[1]),
                named["encoder_hidden_states"],
                added["text_embeds"],
                added["time_ids"],
                output[0],
            )
        )

    vae.encode, vae.decode = encode_recorded, decode_recorded
    scheduler.add_noise = add_noise_recorded
    hook = unet.register_forward_hook(after_unet, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
        del vae.encode, vae.decode, scheduler.add_noise


def make_mistakes(stages: Any, step: UnetStep) -> Tensors:
    """Return what comes out after each mistake of CONTROLS."""
    import torch
    from image_refinery.refine.prompts import split_tokens

    parts = stages.components
    embeds, pooled, ids = step.embeds[1:], step.pooled[1:], step.time_ids[1:]
    height, width, top, left, _ = ids[0].tolist()
    other, empty, plain = (stages.encode_prompts(text, None) for text in (OTHER, "", WEIGHTED))

    def sizes(*values: float) -> torch.Tensor:
        return ids.new_tensor([values])

    with torch.no_grad(), stages.residency.use("text_encoder_2", 0):
        tokens = torch.tensor(split_tokens(parts.tokenizer_2, PROMPT))
        last = parts.text_encoder_2(tokens, output_hidden_states=True).hidden_states[-1]
    wrong = (
        (embeds, pooled, sizes(width, height, top, left, SCORE)),
        (embeds, pooled, sizes(height, width, top, left, NEGATIVE_SCORE)),
        (embeds, pooled, sizes(height, width, 64, 64, SCORE)),
        (embeds, torch.zeros_like(pooled), ids),
        (last, pooled, ids),
        (other.prompt_embeds, other.pooled_prompt_embeds, ids),
    )

    def predict(*conditioning: torch.Tensor) -> torch.Tensor:
        prompts, texts, size_ids = conditioning
        added = {"text_embeds": texts, "time_ids": size_ids}
        latents = step.latents[1:].repeat(len(prompts), 1, 1, 1)
        return parts.unet(
            latents, step.time, encoder_hidden_states=prompts, added_cond_kwargs=added
        ).sample

    block = parts.unet.down_blocks[0].resnets[0]  # stays in memory in every mode
    swapped = (
        [(block.norm1.weight, block.norm2.weight), (block.norm1.bias, block.norm2.bias)],
        [(block.conv1.bias, block.conv2.bias)],
    )
    with torch.no_grad(), stages.residency.use("unet", 0):
        together = predict(*(torch.cat(one) for one in zip(*wrong, strict=True)))
        results = list(together.split(1))
        for pairs in swapped:
            swap(pairs)
            results.append(predict(embeds, pooled, ids))
            swap(pairs)
        filled_up = torch.cat([step.embeds[:1], empty.prompt_embeds], dim=1)
        results.append(predict(filled_up, step.pooled[:1], step.time_ids[:1]))
    results.append(plain.prompt_embeds)
    return dict(zip(CONTROLS, results, strict=True))


def swap(pairs: list[tuple[Any, Any]]) -> None:
    """Exchange the values of parameters."""
    for one, other in pairs:
        one.data, other.data = other.data, one.data


def load_image(width: int, height: int) -> torch.Tensor:
    """Return the photo (1, H, W, 3), 0 to 1."""
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(PHOTO) as file:
        photo = file.convert("RGB").resize((width, height))
    return torch.from_numpy(np.array(photo, np.float32) / 255)[None]


def stop_after_a_step(event: Any) -> None:
    """A progress callback that ends a run after its first step."""
    if event.stage == "refine" and event.step == 1:
        raise Stop


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


# ComfyUI's


def run_native(folder: Path, width: int, height: int, home: Path) -> None:
    """Write what ComfyUI computes from the inputs that `run_ours` wrote."""
    sys.path.insert(0, str(home))
    from comfy.cli_args import args

    # The weights stay in fp16 and are computed in fp32: the same numbers, in half the memory.
    args.cpu = args.fp16_unet = True
    import comfy.model_management
    import comfy.sample
    import comfy.sd
    import torch
    from comfyui_version import __version__ as version
    from safetensors.torch import load_file, save_file

    ours = load_file(folder / "ours.safetensors")
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(folder / CHECKPOINT))[:3]
    base = model.model
    computed_in = base.manual_cast_dtype or base.get_dtype()
    if computed_in != torch.float32:
        raise RuntimeError(f"ComfyUI would compute the UNet in {computed_in}, not in fp32.")
    note("ComfyUI: loaded")

    def encode(text: str, score: float) -> Any:
        added = {"aesthetic_score": score, "width": width, "height": height}
        return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict=added)

    def predict(*asked: tuple[int, Any]) -> list[torch.Tensor]:
        sigmas = base.model_sampling.sigmas[[at for at, _ in asked]]
        wide = sigmas.view(-1, 1, 1, 1)
        latents = torch.cat([ours[f"input at t={at}"] for at, _ in asked]) * (wide**2 + 1).sqrt()
        conditionings = [conditioning for _, [conditioning] in asked]
        embeds = torch.cat([embeds for embeds, _ in conditionings])
        added = torch.cat([base.encode_adm(device="cpu", **more) for _, more in conditionings])
        clean = base.apply_model(latents, sigmas, c_crossattn=embeds, y=added)
        return list(((latents - clean) / wide).split(1))

    with torch.inference_mode():
        prompt, negative = encode(PROMPT, SCORE), encode(NEGATIVE, NEGATIVE_SCORE)
        long = encode(LONG, SCORE)
        mean = vae.encode(ours["image"])
        tensors: Tensors = {
            "text embedding, prompt": prompt[0][0],
            "text embedding, negative prompt": negative[0][0],
            "text embedding, weights and escaped parentheses": encode(WEIGHTED, SCORE)[0][0],
            "pooled embedding, prompt": prompt[0][1]["pooled_output"],
            "pooled embedding, negative prompt": negative[0][1]["pooled_output"],
            "VAE encode, mean": mean,
        }
        comfy.model_management.load_models_gpu([model])
        alone, *others = predict((251, negative), *((at, prompt) for at in COMPARED_STEPS))
        for at, predicted in zip(COMPARED_STEPS, others, strict=True):
            tensors[f"noise at t={at}, prompt"] = predicted
        [of_long] = predict((251, long))
        tensors |= {
            "noise at t=251, negative prompt": alone,
            "noise at t=251, short negative prompt beside a long prompt": alone,
            "noise at t=251, long prompt": of_long,
        }
        note("ComfyUI: the UNet by itself")
        refined = comfy.sample.sample(
            model,
            ours["start noise"],
            int(STEPS * STRENGTH),
            GUIDANCE,
            "euler",
            "ddim_uniform",  # the timesteps of diffusers' schedule
            prompt,
            negative,
            mean + ours["posterior noise"],
            denoise=STRENGTH,
            disable_pbar=True,
            seed=SEED,
        )
        note("ComfyUI: 6 steps")
        tensors |= {
            "latents after 6 steps": refined,
            "VAE decode, same latents": vae.decode(ours["latents after 6 steps"]),
            "image, end to end": vae.decode(refined),
        }
    kept = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(kept, folder / "native.safetensors")
    versions = {"torch": torch.__version__, "ComfyUI": version}
    write_json(folder / "native.json", {"versions": versions})


# The tool


def check(args: argparse.Namespace, folder: Path) -> int:
    """Build the checkpoint, run both, and report; return the exit status."""
    found = from_tests("comfyui/host.py").find_host()
    if isinstance(found, str):
        raise RuntimeError(f"There is nothing to compare with: {found}.")
    require_ram()
    if not (folder / CHECKPOINT).exists():
        note("building the checkpoint, about a minute")
        run_worker(sys.executable, "build", folder, args.size)
    run_worker(sys.executable, "ours", folder, args.size, found.home)
    run_worker(str(found.python), "native", folder, args.size, found.home)
    return report(folder, args.size)


def report(folder: Path, size: tuple[int, int]) -> int:
    """Print what both processes wrote; return 1 if a row fails."""
    from safetensors.torch import load_file

    rows = compare(*(load_file(folder / f"{side}.safetensors") for side in ("ours", "native")))
    ours, native = (
        json.loads((folder / f"{side}.json").read_text("utf-8")) for side in ("ours", "native")
    )
    print(f"{describe_machine()}; {size[0]} x {size[1]} px, {STEPS} steps x {STRENGTH}, fp32")
    for side, told in (("ours", ours), ("ComfyUI's", native)):
        print(f"{side}: " + ", ".join(f"{n} {v}" for n, v in told["versions"].items()))
    print(f"\n{to_markdown(rows)}\n")
    print("ours: " + ", ".join(f"{n} {s:.1f} s" for n, s in ours["seconds"].items()))
    if None not in ours["own_ram_bytes"].values():
        sizes = (f"{n} {size / 1e9:.2f}" for n, size in ours["own_ram_bytes"].items())
        print("ours, anonymous memory in GB: " + ", ".join(sizes))
    bad = [row.title for row in rows if not row.is_good]
    print(f"FAILED: {'; '.join(bad)}" if bad else "All differences are within their limits.")
    return 1 if bad else 0


def require_ram() -> None:
    """Raise if ComfyUI would not fit into the free memory.

    Raises:
        RuntimeError: too little of it is free.
    """
    import psutil

    free = psutil.virtual_memory().available
    if free < NEEDED_RAM_BYTES:
        raise RuntimeError(
            f"{free / 1e9:.1f} GB of RAM are free, but ComfyUI needs {NEEDED_RAM_BYTES / 1e9:.0f} "
            "GB to run the checkpoint: close other programs."
        )


def build(folder: Path) -> None:
    """Write the checkpoint file alone, as users have it."""
    from gpu import build_checkpoint

    description = (folder / CHECKPOINT).with_suffix("")
    shutil.rmtree(description, ignore_errors=True)
    build_checkpoint(folder)
    shutil.rmtree(description)


def run_worker(
    python: str, name: str, folder: Path, size: tuple[int, int], home: Path | None = None
) -> None:
    """Run a part in its own process, so that it returns all its memory.

    Raises:
        RuntimeError: it failed.
    """
    command = [python, __file__, "--worker", name, "--keep", str(folder)]
    command += ["--size", f"{size[0]}x{size[1]}", *(["--comfyui", str(home)] if home else [])]
    done = subprocess.run(command, env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        why = f"exit status {done.returncode}" if done.returncode > 0 else "it was killed"
        raise RuntimeError(f"The part {name} failed ({why}): see its lines above.")


def note(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def write_json(file: Path, content: object) -> None:
    """Write a worker's figures."""
    file.write_text(json.dumps(content), "utf-8")


def image_size(text: str) -> tuple[int, int]:
    """Return width and height of "320x256"; both sides must be multiples of 64, and differ."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if width == height or width * height == 0 or width % 64 or height % 64:
        raise argparse.ArgumentTypeError(
            "give WIDTHxHEIGHT in two different multiples of 64, such as 320x256"
        )
    return width, height


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the checkpoint there, and use it again"
    )
    parser.add_argument("--size", type=image_size, default=(320, 256), help="pixels (320x256)")
    parser.add_argument("--worker", choices=("build", "ours", "native"), help=argparse.SUPPRESS)
    parser.add_argument("--comfyui", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Compare and print; return 0 if all differences and controls are within their limits."""
    args = parse()
    if args.worker == "build":
        build(args.keep)
    elif args.worker == "ours":
        run_ours(args.keep, *args.size, args.comfyui / "comfy" / "sd1_tokenizer")
    elif args.worker == "native":
        run_native(args.keep, *args.size, args.comfyui)
    if args.worker:
        return 0
    try:
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            return check(args, args.keep)
        with tempfile.TemporaryDirectory(prefix="image-refinery-") as folder:
            return check(args, Path(folder))
    except (OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
