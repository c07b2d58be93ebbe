"""Run each node and `batch` a thousand times, with faults and cancels, and check for leaks.

    python tools/soak.py [--runs 1000] [--only NAME] [--write]

Prints the resources of each process after the warm-up and at the end. With --write it also writes
docs/quality/soak.md and its plot. Each one runs in its own process, so that memory freed by one
cannot hide a leak of another. The scripted Ollama runs in the same process, so the figures
include it. Exit status 1 if something grew, or a process was killed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "soak.md"
PLOT = ROOT / "docs" / "quality" / "images" / "soak.png"
WARM_UP = 100
LOOKS = 40
SEED = 20
FAULT, CANCEL = 0.35, 0.15
"""The share of runs with a fault or a cancel."""
BYTES_OF_AN_INTEGER = 32
NODES = (
    *("LLM Image Refine", "SDXL Refiner", "LLM Describe", "Ollama Process", "Ollama Options"),
    *("Prompt Presets", "Wildcard Processor", "Display Anything", "Free Memory"),
    *("Load Images From Folder", "Save Caption", "Text To Filename", "Check Setup"),
    *("Caption Folder", "Refine Folder", "Describe Tiles", "Refine Splat"),
)
COMMANDS = ("batch",)
ALL = (*NODES, *COMMANDS)
LEFT_OUT = {
    "Refine with Model": "it needs ComfyUI's own sampler and models, which run in ComfyUI only",
}
"""Nodes without a case, and the reasons."""
FAILED_IN_REPORT = re.compile(
    r"^\d+ failed \(|^Problems:\n(?!  none)|\(R\d{3}\)( |$)", re.MULTILINE
)
"""In reports on folders, in that of Check Setup, and in Free Memory's line."""
FIGURES = {
    "memory_mb": ("memory (RSS), MB", 10.0),
    "blocks": ("Python's memory blocks", 1000),
    "threads": ("threads", 0),
    "sockets": ("connections", 0),
    "descriptors": ("file descriptors", 0),
    "temporary": ("temporary files", 0),
    "cuda_mb": ("CUDA memory, MB", 1.0),
}
"""The measured resources, their titles, and how much they may grow: allocators keep freed memory,
and bounded caches fill up."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Figures:
    """The resources of one process after a number of runs."""

    runs: int
    memory_mb: float
    blocks: int
    threads: int
    sockets: int
    descriptors: int
    temporary: int
    cuda_mb: float


@dataclass(frozen=True)
class Soaked:
    """The results of one node or command; see `Case` for its attributes."""

    series: list[Figures]
    seen: Counter[str]
    faults: list[str]
    cancel_s: float
    not_ours: int
    seconds: float
    images: int = 0
    about: str = ""

    def title(self, name: str) -> str:
        """Return the name of its row."""
        images = self.images * self.series[-1].runs
        return f"{name}, {images:,} images" if images else name


def measure(runs: int, not_ours: Callable[[], int]) -> Figures:
    """Wait for our threads to end, collect garbage, then measure the process.

    Args:
        runs: The number of runs so far.
        not_ours: Returns how many of Python's memory blocks a library has leaked; these do not
            count.
    """
    for thread in threading.enumerate():
        if thread.name.startswith("image-refinery"):
            thread.join(timeout=30)
    time.sleep(0.05)
    gc.collect()
    process = psutil.Process()
    lost = not_ours()
    return Figures(
        runs=runs,
        memory_mb=round((process.memory_info().rss - lost * BYTES_OF_AN_INTEGER) / 1e6, 1),
        blocks=sys.getallocatedblocks() - lost,
        threads=process.num_threads(),
        sockets=sum(1 for one in process.net_connections() if one.raddr),
        descriptors=process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        temporary=count_temporary(),
        cuda_mb=torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0,
    )


def own_temporary_folder(base: Path) -> None:
    """Let this process have a temporary folder below ComfyUI's base folder."""
    folder = base / "system temp"
    folder.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def count_temporary() -> int:
    """Count what is in the process's temporary folder, and unfinished files of the pack."""
    folder = Path(tempfile.gettempdir())
    files = folder.parent.rglob("*")
    return sum(folder in file.parents or file.suffix == ".new" for file in files)


def load(name: str, file: Path, folder: Path | None = None) -> ModuleType:
    """Import a file under a name; the checkout must not be on sys.path."""
    folders = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_in_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a new process and return its result.

    Raises:
        BrokenProcessPool: The process was killed.
    """
    # One pool per call: a pool that starts a new process per task needs Python 3.11.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def soak(runs: int, name: str) -> Soaked:
    """Run a node or command so many times in this process, which should be a new one."""
    logging.disable(logging.WARNING)  # the faults are intended
    load("image_refinery", ROOT / "__init__.py", ROOT)
    faulty = load("faulty_ollama", ROOT / "tests" / "faulty_ollama.py")
    stub = load("comfy_stub_path", ROOT / "tests" / "comfy_stub" / "stub_path.py")
    for helper in ("drawn_splats", "shallow_refiner"):
        load(helper, ROOT / "tests" / f"{helper}.py")
    begun = time.monotonic()
    with stub.installed(), faulty.FaultyOllama() as ollama:
        import folder_paths

        own_temporary_folder(Path(folder_paths.base_path))
        from soak_cases import check_cases, make

        check_cases(LEFT_OUT)
        case = make(name, ollama)
        try:
            series, seen = repeat(case, ollama, runs)
        finally:
            shutil.rmtree(folder_paths.base_path, ignore_errors=True)
        lost = case.not_ours()
    return Soaked(
        series,
        seen,
        list(case.faults),
        case.cancel_s,
        lost,
        time.monotonic() - begun,
        case.images,
        case.about,
    )


def repeat(case: Any, ollama: Any, runs: int) -> tuple[list[Figures], Counter[str]]:
    """Run a case so many times, and measure the process at intervals."""
    import comfy.model_management as management
    from image_refinery.memory import finish_pending_unloads
    from server import PromptServer

    chance = random.Random(SEED)
    torch.manual_seed(SEED)
    seen: Counter[str] = Counter()
    series: list[Figures] = []
    every = max(1, runs // LOOKS)
    for run in range(-WARM_UP, runs + 1):
        if run == -WARM_UP // 2:
            case.rest()
            gc.collect()
            gc.freeze()  # torch's million objects: each refiner that is freed collects the garbage
        if run >= 0 and run % every == 0:
            finish_pending_unloads()
            case.rest()
            series.append(measure(run, case.not_ours))
        if run == runs:
            break
        what = one_run(case, chance, management)
        if run >= 0:
            seen[what] += 1
        case.after()
        # The records of the scripted server and of ComfyUI's stub are not leaks.
        ollama.forget_script()
        ollama.requests.clear()
        ollama._events.clear()
        management.calls.clear()
        PromptServer.instance.sent_texts.clear()
    return series, seen


def one_run(case: Any, chance: random.Random, management: Any) -> str:
    """Run a node or command once; return the kind of outcome."""
    inputs = dict(case.usual(chance))
    lot = chance.random()
    timer: threading.Timer | None = None
    if lot < FAULT:
        inputs |= case.faults[chance.choice(list(case.faults))](chance)
    elif lot < FAULT + CANCEL and case.cancel_s:
        late = chance.uniform(0.0, case.cancel_s)
        timer = threading.Timer(late, case.cancel)
        timer.start()
    try:
        return case.call(inputs) if case.call else run_node(case, inputs, chance)
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        management.interrupt_current_processing(False)


def run_node(case: Any, inputs: dict[str, Any], chance: random.Random) -> str:
    """Run a node once, like ComfyUI; return the kind of outcome."""
    from comfy.model_management import InterruptProcessingException
    from comfy_api.latest import io
    from image_refinery.nodes.host import BadInput

    if chance.random() < 0.1:
        case.node.define_schema()  # as when the page loads, or the user presses R
    if case.node.GET_SCHEMA().is_input_list:
        inputs = {id: one if isinstance(one, list) else [one] for id, one in inputs.items()}
    clone = case.node.stub_clone({io.Hidden.unique_id: "1"})
    try:
        if hasattr(clone, "fingerprint_inputs"):
            clone.fingerprint_inputs(**inputs)
        with torch.inference_mode():
            ui = clone.execute(**inputs).ui or {}
    except InterruptProcessingException:
        return "cancel"
    except (BadInput, *case.raises):
        return "exception"
    shown = " ".join(str(text) for text in ui.get("text", ()))
    failed = shown.startswith(("Error: ", "Ollama: ")) or ui.get("problems")
    return "error message" if failed or FAILED_IN_REPORT.search(shown) else "answer"


def grew(series: list[Figures]) -> list[str]:
    """Return what grew between the warm-up and the end by more than it may."""
    first, last = asdict(series[0]), asdict(series[-1])
    return [
        f"{title}: {first[field]:g} -> {last[field]:g}"
        for field, (title, most) in FIGURES.items()
        if last[field] - first[field] > most
    ]


def measured_figures() -> dict[str, str]:
    """Return the figures of the page with their titles; CUDA memory only if there is a device."""
    return {
        field: title
        for field, (title, _) in FIGURES.items()
        if field != "cuda_mb" or torch.cuda.is_available()
    }


def draw(soaked: dict[str, Soaked], file: Path) -> None:
    """Plot the growth of each figure since the warm-up, one row per node or command."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    fields = measured_figures()
    rows = len(soaked)
    figure, panels = plt.subplots(
        rows, len(fields), figsize=(12, 0.95 * rows + 1), sharex=True, squeeze=False
    )
    for row, (name, one) in zip(panels, soaked.items(), strict=True):
        for panel, (field, title) in zip(row, fields.items(), strict=True):
            most = FIGURES[field][1] or 0.5
            runs = [figures.runs for figures in one.series]
            values = [getattr(figures, field) for figures in one.series]
            above = [value - values[0] for value in values]
            panel.axhspan(-most, most, color="#e8f0e8")
            panel.plot(runs, above, color="#1f4e79", linewidth=1.4)
            reach = max(2 * most, *(1.1 * abs(value) for value in above))
            panel.set_ylim(-reach, reach)
            panel.set_xlim(0, runs[-1] or 1)
            panel.tick_params(labelsize=7)
            panel.locator_params(axis="y", nbins=3)
            panel.set_title(f"{values[0]:,} at the start", fontsize=7, loc="right", pad=2)
            if panel in panels[0]:
                panel.annotate(
                    title, (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=9
                )
        label = one.title(name).replace(" ", "\n", 1)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for panel in panels[-1]:
        panel.set_xlabel("runs", fontsize=8)
    title = "Growth since the warm-up, one process per row (green: tolerance)"
    figure.suptitle(title, y=1 - 0.1 / figure.get_figheight())  # above the columns' titles
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page(soaked: dict[str, Soaked], runs: int) -> str:
    """Return the text of docs/quality/soak.md."""
    fields = measured_figures()
    release = load("image_refinery_version", ROOT / "_version.py").__version__
    lines = [
        "# Soak",
        "",
        f"Written by `python tools/soak.py --write`. Each row of the table is {runs:,} runs, after "
        f"{WARM_UP} runs to warm up, in a separate",
        "process with a scripted Ollama. Each run of a node works like in ComfyUI: the "
        "fingerprint, then the node. At random, the page",
        f"also requests the node's inputs. {FAULT:.0%} of the runs have a fault, {CANCEL:.0%} are "
        "cancelled if the node takes long enough.",
        "Before each measurement, garbage is collected, and what nodes keep on purpose is freed. "
        "First figure: after the warm-up.",
        "Second figure: at the end. Temporary files are those in the process's folder for them, "
        "and files that the pack has not finished.",
        "One folder is torch's own, which it makes when diffusers is imported.",
        "",
        f"Last run: {date.today()}, with version {release}.",
        *(f"Not in the table: {name}, because {reason}." for name, reason in LEFT_OUT.items()),
        "",
        f"| node or command | {' | '.join(fields.values())} | outcomes |",
        "| --- |" + " --- |" * (len(fields) + 1),
    ]
    for name, one in soaked.items():
        first, last = asdict(one.series[0]), asdict(one.series[-1])
        cells = [f"{first[field]:,} to {last[field]:,}" for field in fields]
        outcomes = ", ".join(f"{count} x {what}" for what, count in one.seen.most_common())
        lines.append("| " + " | ".join([one.title(name), *cells, outcomes]) + " |")
    if not torch.cuda.is_available():
        lines += ["", "CUDA memory was not measured: there was no CUDA device."]
    for name, one in soaked.items():
        if one.about:
            lines += ["", textwrap.fill(f"{name}: {one.about}", 128)]
    if lost := {name: one.not_ours for name, one in soaked.items() if one.not_ours}:
        leaks = ", ".join(
            f"{count:,} ({count * BYTES_OF_AN_INTEGER / 1e6:.1f} MB) under {name}"
            for name, count in lost.items()
        )
        text = (
            f"Not in the figures: safetensors {version('safetensors')} leaks memory blocks "
            "whenever it reads a checkpoint, also when it is called alone (the tool measures how "
            f"many): {leaks}, which load checkpoints repeatedly."
        )
        lines += ["", textwrap.fill(text, 128)]
    lines += [
        "",
        "![Growth since the warm-up, over the runs](images/soak.png)",
        "",
        "The plot shows the growth since the warm-up. The tool fails if a line ends above the "
        "green band",
        "(" + ", ".join(f"{title}: {most:g}" for title, most in FIGURES.values()) + ").",
        "",
        "| node or command | faults | cancelled after |",
        "| --- | --- | --- |",
    ]
    for name, one in soaked.items():
        late = f"0 to {1000 * one.cancel_s:g} ms" if one.cancel_s else "never: too fast"
        lines.append(f"| {one.title(name)} | {'; '.join(one.faults)} | {late} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the nodes and commands, print the figures, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="runs of each node and command")
    parser.add_argument("--only", choices=ALL, help="run only this node or command")
    parser.add_argument("--write", action="store_true", help="write the page and its plot")
    options = parser.parse_args()
    if options.only and options.write:
        parser.error("--write needs all nodes and commands: leave out --only")
    names = [options.only] if options.only else ALL
    soaked: dict[str, Soaked] = {}
    for name in names:
        try:
            one = soaked[name] = call_in_process(soak, options.runs, name)
        except BrokenProcessPool:
            print(f"{name}: its process was killed before it finished (is there enough memory?)")
            return 1
        print(f"{name}: {one.seconds:.0f} s, {dict(one.seen)}")
        print(f"  {one.series[0]}\n  {one.series[-1]}", flush=True)
    if options.write:
        draw(soaked, PLOT)
        PAGE.write_text(page(soaked, options.runs), encoding="utf-8")
    problems = {name: found for name, one in soaked.items() if (found := grew(one.series))}
    print(f"grew: {problems}" if problems else "nothing grew")
    silent = [name for name, one in soaked.items() if one.seen["answer"] < options.runs / 4]
    if silent:
        print(f"answered in less than a quarter of their runs: {', '.join(silent)}")
    return 1 if problems or silent else 0


if __name__ == "__main__":
    sys.exit(main())
