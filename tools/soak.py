"""Run each node that talks to Ollama a thousand times, with faults and cancels, and see what stays.

    python tools/soak.py [--runs 1000] [--write]

Prints memory, threads, sockets and file descriptors after the warm-up and at the end; with --write
also docs/soak.md and its plot. The scripted server runs in the same process, so that its share is
in the figures too. Exit status 1 where something grew.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "soak.md"
PLOT = ROOT / "docs" / "pictures" / "soak.png"
WARM_UP = 100
EVERY = 25
SEED = 20
MOST_MB = 10.0
"""So much may the memory grow in a thousand runs: allocators keep what they once had."""

FAULTS = {
    "chat": (
        *("drop", "reset", "reset_mid_stream", "cut_mid_stream", "half_utf8", "error_line"),
        *("no_done", "empty", "thinking_only", "not_json", "wrong_types", "busy", "oom", "html"),
        *("not_found", "forbidden", "context_length", "gzip", "one_byte", "hang_mid_line"),
    ),
    "load": ("drop", "busy", "oom", "load_failure", "html", "hang"),
    "tags": ("drop", "busy", "html", "wrong_body", "cut_mid_stream"),
    "ps": ("drop", "html"),
    "unload": ("drop", "busy"),
}


@dataclass(frozen=True)
class Figures:
    """What one process holds."""

    runs: int
    memory_mb: float
    threads: int
    sockets: int
    descriptors: int
    cuda_mb: float


def measure(runs: int, port: int) -> Figures:
    """Collect garbage, then look."""
    gc.collect()
    process = psutil.Process()
    ours = [c for c in process.net_connections() if c.raddr and c.raddr.port == port]
    return Figures(
        runs=runs,
        memory_mb=round(process.memory_info().rss / 1e6, 1),
        threads=process.num_threads(),
        sockets=len(ours),
        descriptors=process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        cuda_mb=torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0,
    )


def load(name: str, file: Path, folder: Path | None = None) -> ModuleType:
    """Import a file under a name; the checkout must not be on sys.path."""
    places = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calls() -> dict[str, Callable[[str], Any]]:
    """Return what runs each node once, with a value of on_error."""
    from image_refinery.nodes.llm_describe import LLMDescribe
    from image_refinery.nodes.llm_image_refine import LLMImageRefine
    from image_refinery.nodes.ollama_process import OllamaProcess

    def picture() -> list[torch.Tensor]:
        return [torch.rand(1, 96, 128, 3)]

    models = {"vision_model": ["llava"], "text_model": ["llama3.2"]}
    wanted = {"user_instructions": ["Shorten it."]}
    return {
        "LLM Image Refine": lambda on_error: LLMImageRefine.execute(
            image=picture(), on_error=[on_error], **models, **wanted
        ),
        "LLM Describe": lambda on_error: LLMDescribe.execute(
            image=picture(), on_error=[on_error], vision_model=["llava"]
        ),
        "Ollama Process": lambda on_error: OllamaProcess.execute(
            text=["A."], instructions=["Up."], text_model=["llama3.2"], on_error=[on_error]
        ),
    }


def soak(node: Callable[[str], Any], ollama: Any, runs: int) -> tuple[list[Figures], Counter[str]]:
    """Run a node so often; half of the runs meet a fault or a cancel."""
    import comfy.model_management as management
    from image_refinery.memory import finish_pending_unloads
    from image_refinery.ollama_client.errors import OllamaError

    chance = random.Random(SEED)
    seen: Counter[str] = Counter()
    series: list[Figures] = []
    for run in range(runs + WARM_UP + 1):
        if run >= WARM_UP and (run - WARM_UP) % EVERY == 0:
            finish_pending_unloads()
            time.sleep(0.05)
            series.append(measure(run - WARM_UP, ollama.port))
        lot = chance.random()
        timer: threading.Timer | None = None
        if lot < 0.35:
            kind = chance.choice(["chat", "chat", "chat", "load", "tags", "ps", "unload"])
            ollama.script(kind, chance.choice(FAULTS[kind]))
        elif lot < 0.5:
            timer = threading.Timer(
                chance.uniform(0.0, 0.06), management.interrupt_current_processing
            )
            timer.start()
        try:
            result = node(chance.choice(["give the message", "stop the workflow"]))
            text = result.result[-1][0]
            seen["a message" if text.startswith("Error: ") else "an answer"] += 1
        except management.InterruptProcessingException:
            seen["a cancel"] += 1
        except OllamaError:
            seen["an error raised"] += 1
        if timer is not None:
            timer.cancel()
            timer.join()
        management.interrupt_current_processing(False)
        ollama.forget_script()
        # What a server writes down of its requests is not what is looked for here.
        ollama.requests.clear()
        ollama._events.clear()
    return series, seen


def grew(series: list[Figures]) -> list[str]:
    """Say what is more at the end than after the warm-up."""
    first, last = series[0], series[-1]
    found = [
        f"{name}: {getattr(first, name)} -> {getattr(last, name)}"
        for name in ("threads", "sockets", "descriptors")
        if getattr(last, name) > getattr(first, name)
    ]
    if last.memory_mb - first.memory_mb > MOST_MB or last.cuda_mb > first.cuda_mb + 1.0:
        found.append(f"memory: {first.memory_mb} -> {last.memory_mb} MB")
    return found


def draw(all_series: dict[str, list[Figures]]) -> Image.Image:
    """Plot memory, threads and file descriptors over the runs, one panel for each."""
    panels = (
        ("memory_mb", "memory (RSS) in MB"),
        ("threads", "threads"),
        ("sockets", "connections to the server"),
        ("descriptors", "file descriptors"),
    )
    colours = {
        "LLM Image Refine": "#c0392b",
        "LLM Describe": "#2471a3",
        "Ollama Process": "#1e8449",
    }
    width, height, left, top = 900, 150, 70, 34
    image = Image.new("RGB", (width, len(panels) * (height + top) + 40), "white")
    pen = ImageDraw.Draw(image)
    for row, (field, title) in enumerate(panels):
        y0 = row * (height + top) + top
        values = [getattr(f, field) for series in all_series.values() for f in series]
        high = max(values) * 1.15 + 1
        pen.text((left, y0 - 18), title, fill="black")
        pen.rectangle((left, y0, width - 20, y0 + height - 20), outline="#999999")
        for mark in (0, round(max(values))):
            y = y0 + (height - 20) * (1 - mark / high)
            pen.text((8, y - 6), f"{mark:g}", fill="#555555")
        for name, series in all_series.items():
            last = max(f.runs for f in series) or 1
            points = [
                (
                    left + (width - 20 - left) * f.runs / last,
                    y0 + (height - 20) * (1 - getattr(f, field) / high),
                )
                for f in series
            ]
            pen.line(points, fill=colours[name], width=2)
    for index, (name, colour) in enumerate(colours.items()):
        x, y = left + 190 * index, image.height - 26
        pen.rectangle((x, y, x + 12, y + 12), fill=colour)
        pen.text((x + 18, y), name, fill="black")
    pen.text((width - 170, image.height - 26), "runs, left to right", fill="#555555")
    return image


def page(all_series: dict[str, list[Figures]], seen: dict[str, Counter[str]], runs: int) -> str:
    """Return docs/soak.md."""
    lines = [
        "# Soak",
        "",
        "Written by `python tools/soak.py --write`. Each node that talks to Ollama runs "
        f"{runs:,} times, after {WARM_UP} runs to warm up, over a",
        "scripted server in the same process. About one run in three meets a fault (at the list of "
        "models, the load, the chat, or",
        "the unload), one in seven a cancel 0 to 60 ms after it began. Garbage is collected before "
        "each look.",
        "",
        "| node | memory, MB | threads | connections | file descriptors | what the runs gave |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, series in all_series.items():
        first, last = asdict(series[0]), asdict(series[-1])
        cells = [
            f"{first[field]:g} to {last[field]:g}"
            for field in ("memory_mb", "threads", "sockets", "descriptors")
        ]
        gave = ", ".join(f"{count} x {what}" for what, count in seen[name].most_common())
        lines.append("| " + " | ".join([name, *cells, gave]) + " |")
    cuda = "a CUDA device was there" if torch.cuda.is_available() else "no CUDA device was there"
    lines += [
        "",
        f"First figure: after the warm-up; second: at the end ({cuda}).",
        "",
        "![Memory, threads, connections and file descriptors over the runs](pictures/soak.png)",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="of each node")
    parser.add_argument("--write", action="store_true", help="write docs/soak.md and its plot")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a server at fault is what is wanted here
    load("image_refinery", ROOT / "__init__.py", ROOT)
    faulty = load("faulty_ollama", ROOT / "tests" / "faulty_ollama.py")
    stub = load("comfy_stub_path", ROOT / "tests" / "comfy_stub" / "stub_path.py")
    all_series: dict[str, list[Figures]] = {}
    seen: dict[str, Counter[str]] = {}
    with stub.installed(), faulty.FaultyOllama() as ollama:
        quicken(ollama)
        for name, node in calls().items():
            begun = time.monotonic()
            all_series[name], seen[name] = soak(node, ollama, options.runs)
            print(f"{name}: {time.monotonic() - begun:.0f} s, {dict(seen[name])}")
            print(f"  {all_series[name][0]}\n  {all_series[name][-1]}", flush=True)
    if options.write:
        draw(all_series).save(PLOT)
        PAGE.write_text(page(all_series, seen, options.runs), encoding="utf-8")
    problems = {name: found for name, series in all_series.items() if (found := grew(series))}
    print(f"grew: {problems}" if problems else "nothing grew")
    return 1 if problems else 0


def quicken(ollama: Any) -> None:
    """Point the nodes at the server, with waits that fit a thousand runs."""
    import os

    from image_refinery.nodes import stage_run
    from image_refinery.ollama_client import OllamaClient, Timeouts
    from image_refinery.ollama_client.retry import Retries

    os.environ["OLLAMA_BASE_URL"] = ollama.url
    timeouts = Timeouts(connect_s=0.5, first_byte_s=0.3, silence_s=0.3, quick_s=2.0)
    retries = Retries(first_pause_s=0.01, start_s=0.1, limit_s=1.0)
    stage_run.OllamaClient = partial(OllamaClient, timeouts=timeouts, retries=retries)


if __name__ == "__main__":
    sys.exit(main())
