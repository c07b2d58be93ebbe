"""Time and memory of rendering splats and of fitting their colors, by the number of Gaussians.

    python dev.py bench splats [--counts N [N ...]] [--fit N] [--threads N] [--output FILE]

The splat is a dented sphere with a fine texture, its Gaussians as large as they are apart.

- Rendering: the weights of one view at 512 px and its image, beside ComfyUI's Render Splat on one
  thread each (in COMFYUI_PATH, else `~/comfy/ComfyUI`).
- Fitting: 16 views at 384 px of the splat with paler colors, against images of the true one, in
  four passes; how close four views come that were not among them.

Prints tables, writes bench-output/splats.json, and fails if the fit comes to less than 35 dB or
takes more than 30 s on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _measure import OUTPUT, ROOT, describe_machine, from_tests, peak_ram_bytes, table, write
from image_refinery.refine.splats import (
    even_sphere,
    fit_colors,
    frame,
    orbit_camera,
    ring,
    view_weights,
    write_ply,
)
from image_refinery.refine.splats.colors import to_linear

RENDER_PX, FIT_PX, VIEWS, PASSES = 512, 384, 16, 4
WANTED_DB, WANTED_S = 35.0, 30.0
PALE = 0.55


def render(count: int, threads: int) -> dict[str, Any]:
    """Return the seconds of one view, and the peak of a separate process."""
    torch.set_num_threads(threads)
    splat = from_tests("drawn_splats.py").sphere(count)
    before = peak_ram_bytes()
    begun = time.perf_counter()
    weights = view_weights(splat, orbit_camera(frame(splat), 0.0, 0.0, RENDER_PX))
    middle = time.perf_counter()
    weights.render(to_linear(splat.colors.clamp(0, 1)))
    return {
        "count": count,
        "weights_s": middle - begun,
        "image_s": time.perf_counter() - middle,
        "entries": len(weights.rows.values),
        "more_mb": (peak_ram_bytes() - before) / 1e6,
    }


def fit(count: int, threads: int) -> dict[str, Any]:
    """Return how close the fit comes, and how long it takes."""
    torch.set_num_threads(threads)
    drawn = from_tests("drawn_splats.py")
    true = drawn.sphere(count)
    pale = true.with_changed_colors(PALE * (0.5 - true.colors))
    around = frame(true)
    targets = [
        drawn.image_of(true, view_weights(true, one)) for one in even_sphere(around, VIEWS, FIT_PX)
    ]
    held_out = [view_weights(true, one) for one in ring(around, 4, 10.0, FIT_PX)]
    begun = time.perf_counter()
    views = [view_weights(pale, one) for one in even_sphere(around, VIEWS, FIT_PX)]
    middle = time.perf_counter()
    solved = fit_colors(pale, [lambda view=view: view for view in views], targets, PASSES)
    end = time.perf_counter()
    return {
        "count": count,
        "before_db": drawn.psnr(pale, true, held_out),
        "after_db": drawn.psnr(solved, true, held_out),
        "weights_s": middle - begun,
        "fit_s": end - middle,
        "peak_mb": peak_ram_bytes() / 1e6,
    }


def render_splat_s(counts: list[int]) -> list[float]:
    """Return the seconds of ComfyUI's Render Splat, or nothing without ComfyUI."""
    found = from_tests("comfyui/host.py").find_host()
    if isinstance(found, str) or found.version < (0, 23):
        return []
    sphere = from_tests("drawn_splats.py").sphere
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[str] = []
        for count in counts:
            write_ply(sphere(count), Path(folder, f"{count}.ply"))
            jobs += [str(Path(folder, f"{count}.ply")), str(RENDER_PX)]
        script = ROOT / "tests" / "comfyui" / "render_splat_in_host.py"
        said = subprocess.run(
            [str(found.python), str(script), str(found.home), str(ROOT), *jobs, "--cpu"],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ) | {"PYTHONPATH": "", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"},
        )
    views = json.loads(said.stdout.rpartition("RESULT")[2])
    return [min(one["seconds"][1] for one in views if one["count"] == count) for count in counts]


def in_a_process(task: str, count: int, threads: int) -> dict[str, Any]:
    """Run one task in a separate process, whose peak counts nothing else."""
    command = [sys.executable, __file__, "--task", task, "--fit", str(count)]
    command += ["--threads", str(threads)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table and a line about the fit."""
    rows = [
        [
            f"{one['count']:,}",
            f"{one['weights_s']:.2f}",
            f"{one['image_s']:.3f}",
            f"{theirs:.2f}" if theirs else "not measured",
            f"{one['entries'] / 1e6:.1f}",
            f"{one['more_mb']:.0f}",
        ]
        for one, theirs in zip(result["renders"], result["render_splat_s"], strict=True)
    ]
    head = ["Gaussians", "weights, s", "image from weights, s", "Render Splat, s"]
    head += ["million weights", "peak, MB more"]
    one = result["fit"]
    lines = [
        f"{result['machine']}, torch {torch.__version__}; one view at {RENDER_PX} px, one thread",
        table(head, rows),
        f"Fit of {one['count']:,} Gaussians, {VIEWS} views at {FIT_PX} px, {PASSES} passes, "
        f"{result['threads']} threads: from {one['before_db']:.1f} to {one['after_db']:.1f} dB on "
        f"views that were not given. Weights {one['weights_s']:.1f} s, fit {one['fit_s']:.1f} s, "
        f"peak {one['peak_mb']:,.0f} MB of the process.",
    ]
    return "\n\n".join(lines)


def main() -> int:
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Time and memory of splats.")
    parser.add_argument("--counts", type=int, nargs="+", default=[32_768, 131_072, 262_144])
    parser.add_argument("--fit", type=int, default=65_536, help="Gaussians of the fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT / "splats.json")
    parser.add_argument("--task", choices=["render", "fit"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps({"render": render, "fit": fit}[args.task](args.fit, args.threads)))
        return 0
    theirs = render_splat_s(args.counts)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": args.threads,
        "renders": [in_a_process("render", count, 1) for count in args.counts],
        "render_splat_s": theirs or [0.0] * len(args.counts),
        "fit": in_a_process("fit", args.fit, args.threads),
    }
    write(args.output, result)
    print(to_markdown(result))
    reached, taken = (result["fit"][name] for name in ("after_db", "weights_s"))
    taken += result["fit"]["fit_s"]
    met = reached >= WANTED_DB and taken <= WANTED_S
    print(f"{reached:.1f} dB in {taken:.1f} s; target at least {WANTED_DB:.0f} dB in "
          f"{WANTED_S:.0f} s: {'met' if met else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
