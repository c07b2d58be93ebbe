"""What ImageRefiner costs beside a direct call of diffusers' pipeline, same work.

    python dev.py bench refiner [--rounds N] [--side PX]

Both refine the same picture with the tiny refiner in fp32 on the CPU, one thread, 6 steps with
guidance, a new prompt each time. They take turns, the order changes from round to round, and what
is shown are medians of as many rounds as the table says. Four tables:

warm: one picture, PIL in and PIL out, and as a tensor; the median of the rounds' ratios to
diffusers. keep_colours and enlarging, which diffusers does not have, are off but for one line.
steps: the time of 6 and of 18 steps, and through both a line: what a step costs, and what is
left for a picture of no steps (prompts, VAE, and what is around them).
loading: weights from one file, from a folder; again after `unload()`, with the file still mapped.
processes: each way in one of its own, from the interpreter's start to the first picture, and the
most memory that it held.

Writes bench-output/refiner.json, and fails when the overhead (first table) is above 3 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import OUTPUT, machine, medians_of, table, write
from _refiner import (
    PHOTO,
    PLAIN,
    TINY,
    Way,
    be_quiet,
    in_a_process,
    no_step,
    our_way,
    peak_ram_bytes,
    photo,
    plain_pipeline,
    plain_way,
)

ALLOWED_OVERHEAD = 0.03
STEP_COUNTS = (20, 60)  # at strength 0.3: 6 and 18 run
OTHER_ROUNDS = {"steps": 4, "loading": 5, "processes": 1}
MIB = 2**20
LOADERS = {
    "ours, file": "ImageRefiner, file",
    "ours, folder": "ImageRefiner, folder",
    "theirs, file": "diffusers, file",
    "theirs, folder": "diffusers, folder",
}
Result = dict[str, Any]


# Taking turns


@dataclass(frozen=True)
class Seconds:
    """How long something took: by the clock, and of the processor's time."""

    wall: float
    processor: float


def timed(call: Callable[[], object]) -> Seconds:
    """Time one call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def take_turns(
    calls: Mapping[str, Callable[[str], object]], rounds: int
) -> dict[str, list[Seconds]]:
    """Time every call once a round, in an order that moves on; each gets a text never seen."""
    names = list(calls)
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        # Backwards every other round, so that none always follows the same one.
        for name in reversed(order) if number // len(names) % 2 else order:
            text = f"picture {number}"
            times[name].append(timed(lambda n=name, t=text: calls[n](t)))
    return times


def median(times: list[Seconds]) -> dict[str, float]:
    """The medians of both clocks."""
    return {
        "wall_s": statistics.median(t.wall for t in times),
        "processor_s": statistics.median(t.processor for t in times),
    }


def overhead(ours: list[Seconds], theirs: list[Seconds]) -> dict[str, float]:
    """The median over the rounds of ours / theirs - 1, by both clocks."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "wall": statistics.median(a.wall / b.wall for a, b in pairs) - 1,
        "processor": statistics.median(a.processor / b.processor for a, b in pairs) - 1,
    }


def calling(way: Way) -> Callable[[str], object]:
    """A way without its second argument, warm."""
    way("warm-up", no_step)
    return lambda prompt: way(prompt, no_step)


# The four tables


def warm_pictures(refiner: Any, pipeline: Any, side: int, rounds: int) -> Result:
    """One picture through each way; the overheads are against diffusers in the same round."""
    picture = photo(side)
    pixels = as_tensor(picture)

    def with_colours(prompt: str) -> object:
        return refiner.refine(picture, prompt=prompt, **{**PLAIN, "keep_colours": True})

    times = take_turns(
        {
            "diffusers": calling(plain_way(pipeline, picture)),
            "ImageRefiner": calling(our_way(refiner, picture)),
            "ImageRefiner, tensor": calling(our_way(refiner, pixels)),
            "ImageRefiner, keep_colours": with_colours,
        },
        rounds,
    )
    theirs = times["diffusers"]
    return {
        name: {**median(some), "overhead": overhead(some, theirs)} for name, some in times.items()
    }


def step_line(refiner: Any, pipeline: Any, side: int, rounds: int) -> Result:
    """What a step and what everything else costs, in processor seconds, by two step counts."""
    picture = photo(side)
    times = take_turns(
        {
            f"{name} {steps}": calling(way)
            for steps in STEP_COUNTS
            for name, way in (
                ("ours", our_way(refiner, picture, steps)),
                ("theirs", plain_way(pipeline, picture, steps)),
            )
        },
        rounds,
    )
    few, many = (int(steps * 0.3) for steps in STEP_COUNTS)
    result: Result = {}
    for name in ("ours", "theirs"):
        short, long = (
            statistics.median(t.processor for t in times[f"{name} {steps}"])
            for steps in STEP_COUNTS
        )
        step = (long - short) / (many - few)
        result[name] = {
            "few_s": short,
            "many_s": long,
            "step_s": step,
            "rest_s": short - few * step,
        }
    return {"few": few, "many": many, **result}


def loading(folder: Path, rounds: int) -> Result:
    """Load in this process, where everything is imported and the file is in the page cache."""
    loaders = {name: loader(name, folder) for name in LOADERS}
    for load in loaders.values():
        load()
    # What is in memory by now is the collector's to look through in whichever load it happens to
    # run, always the same one.
    gc.collect()
    gc.freeze()
    times = take_turns({n: lambda _, load=load: load() for n, load in loaders.items()}, rounds)
    refiner = loaders["ours, file"]()
    picture = photo(64)
    refiner.refine(picture)
    again: list[Seconds] = []
    for _ in range(rounds):
        refiner.unload()
        again.append(timed(refiner.load))
    return {**{name: median(some) for name, some in times.items()}, "ours, kept": median(again)}


def loader(name: str, folder: Path) -> Callable[[], Any]:
    """Loads the weights by one of LOADERS, and returns the refiner or the pipeline."""
    import torch

    place = TINY if name.endswith("file") else folder
    if name.startswith("theirs"):
        if place == TINY:
            return lambda: plain_pipeline(TINY, torch.float32)
        return lambda: folder_pipeline(folder)

    def load() -> Any:
        from image_refinery.refine import ImageRefiner

        refiner = ImageRefiner("cpu", model=place)
        refiner.load()
        return refiner

    return load


def folder_pipeline(folder: Path) -> Any:
    """Load a diffusers folder with diffusers alone."""
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline

    be_quiet()
    pipeline: Any = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def processes(folder: Path, side: int, rounds: int) -> Result:
    """From nothing to the first picture, each time in a new process."""
    rows: dict[str, list[Result]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for name, told in rows.items():
            options = ["--worker", name, "--folder", str(folder), "--side", str(side)]
            told.append(in_a_process(__file__, options))
    for told in rows.values():
        for failed in (row["reason"] for row in told if "reason" in row):
            raise RuntimeError(f"A way failed in its own process: {failed}")
    return {
        name: {key: statistics.median(row[key] for row in told) for key in told[0]}
        for name, told in rows.items()
    }


def one_process(name: str, folder: Path, side: int) -> Result:
    """What a worker does: import, load, refine twice."""
    import torch

    torch.set_num_threads(1)
    imported = time.process_time()  # of this process, its start and imports included
    load = loader(name, folder)
    begun = time.process_time()
    loaded = load()
    load_s = time.process_time() - begun
    make = our_way if name.startswith("ours") else plain_way
    way = make(loaded, photo(side))
    first = timed(lambda: way("a lake", no_step)).processor
    cold_s = time.process_time()
    second = timed(lambda: way("another lake", no_step)).processor
    return {
        "start_s": imported,
        "load_s": load_s,
        "first_s": first,
        "cold_s": cold_s,
        "second_s": second,
        "peak_ram_bytes": peak_ram_bytes(),
    }


# Beside the tables


def as_tensor(picture: Any) -> Any:
    """A PIL image as ComfyUI has pictures: (1, H, W, 3), float32, 0 to 1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture, np.float32) / 255)[None]


def bf16_psnr(side: int) -> float:
    """Return how close the VAE's round trip in bf16 comes to the one in fp32, in dB."""
    import torch
    from image_refinery.refine.loading import load_components

    vae = load_components(TINY).vae
    pixels = as_tensor(photo(side)).movedim(-1, 1) * 2 - 1
    results: list[torch.Tensor] = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            vae.to(dtype)
            latents = vae.encode(pixels.to(dtype)).latent_dist.mean
            decoded = vae.decode(latents, return_dict=False)[0]
            results.append((decoded.float() / 2 + 0.5).clamp(0, 1))
    return -10 * float(torch.log10((results[0] - results[1]).square().mean()))


def run(side: int, rounds: int) -> Result:
    """Measure everything; return what goes into the JSON file."""
    import torch
    from image_refinery.refine import ImageRefiner

    torch.set_num_threads(1)
    pipeline = plain_pipeline(TINY, torch.float32)
    refiner = ImageRefiner("cpu", model=TINY)
    each = {"warm": rounds, **OTHER_ROUNDS}
    with tempfile.TemporaryDirectory(prefix="image-refinery-") as place:
        folder = Path(place)
        plain_pipeline(TINY, torch.float16).save_pretrained(folder)
        return {
            "machine": f"{machine()}, torch {torch.__version__}, one thread",
            "side_px": side,
            "rounds": each,
            "warm": warm_pictures(refiner, pipeline, side, each["warm"]),
            "steps": step_line(refiner, pipeline, side, each["steps"]),
            "loading": loading(folder, each["loading"]),
            "processes": processes(folder, side, each["processes"]),
            "vae_bf16_psnr_db": bf16_psnr(side),
        }


# What is shown


def shown(result: Result) -> str:
    """The tables."""
    warm, steps, processes = result["warm"], result["steps"], result["processes"]
    rounds = {name: medians_of(count) for name, count in result["rounds"].items()}
    ways = {"ours": "ImageRefiner", "theirs": "diffusers"}
    blocks = [
        f"{result['machine']}; {result['side_px']} px",
        table(
            [
                f"warm, {rounds['warm']}",
                "wall, s",
                "processor, s",
                "overhead, wall",
                "overhead, processor",
            ],
            [
                [
                    name,
                    f"{row['wall_s']:.3f}",
                    f"{row['processor_s']:.3f}",
                    f"{row['overhead']['wall']:+.1%}",
                    f"{row['overhead']['processor']:+.1%}",
                ]
                for name, row in warm.items()
            ],
        ),
        table(
            [
                f"steps, processor time, {rounds['steps']}",
                f"{steps['few']} steps, s",
                f"{steps['many']} steps, s",
                "a step, ms",
                "the rest, ms",
            ],
            [
                [
                    label,
                    f"{steps[name]['few_s']:.3f}",
                    f"{steps[name]['many_s']:.3f}",
                    f"{1000 * steps[name]['step_s']:.1f}",
                    f"{1000 * steps[name]['rest_s']:.0f}",
                ]
                for name, label in ways.items()
            ],
        ),
        table(
            [f"loading, {rounds['loading']}", "wall, s", "processor, s"],
            [
                [label, f"{row['wall_s']:.3f}", f"{row['processor_s']:.3f}"]
                for name, label in {**LOADERS, "ours, kept": "ImageRefiner, kept"}.items()
                for row in (result["loading"][name],)
            ],
        ),
        table(
            [
                f"processes, processor time, {rounds['processes']}",
                "load, s",
                "first, s",
                "all until then, s",
                "second, s",
                "peak RAM, MiB",
            ],
            [
                [
                    label,
                    *(f"{row[key]:.2f}" for key in ("load_s", "first_s", "cold_s", "second_s")),
                    f"{row['peak_ram_bytes'] / MIB:.0f}",
                ]
                for name, label in LOADERS.items()
                for row in (processes[name],)
            ],
        ),
        f"VAE in bf16 beside fp32: PSNR {result['vae_bf16_psnr_db']:.1f} dB ({PHOTO.name})",
    ]
    return "\n\n".join(blocks)


def main() -> int:
    """Print the tables; 1 if the overhead is above what is allowed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--worker", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(one_process(args.worker, args.folder, args.side)))
        return 0
    result = run(args.side, args.rounds)
    write(OUTPUT / "refiner.json", result)
    print(shown(result))
    # Other programs on the machine disturb the wall clock, the processor's time hardly.
    costs = result["warm"]["ImageRefiner"]["overhead"]["processor"]
    met = costs <= ALLOWED_OVERHEAD
    print(f"overhead {costs:+.2%}, at most {ALLOWED_OVERHEAD:.0%}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
