"""Time and memory of a YAML collection of wildcards: 2,000 names with 50 lines each.

    python dev.py bench wildcards [--rounds N] [--names N] [--lines N] [--output FILE]

The collection has the shape of the largest ones that people share: one file, nested keys, one line
an entry. Each step is what Wildcard Processor does for a text. Every round writes the file again,
so that its first lookup reads it.

- "first lookup": the file is read, and its names stay in memory.
- "next run": the folder is searched again, and a name looked up.
- "glob over all": the same for `__*__`, which draws from every line.
- "has a file changed": what ComfyUI asks before each run; it reads no file.

Memory is what Python's allocator counts: what stays, and the most while the file is read.

Prints a table, writes bench-output/wildcards.json, and fails if the first lookup takes more than
5 s, or if more than 64 MB stay in memory.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import OUTPUT, describe_machine, describe_rounds, table, write
from image_refinery.texts import WildcardFiles, expand

WORDS = re.findall(
    r"\w+",
    "amber ancient arch autumn birch bridge candle castle cedar chapel cliff cloud copper crystal "
    "dawn desert dusk ember fern fog forest garden glass gold granite harbor ivory lantern linen",
)
WANTED_S, WANTED_MB = 5.0, 64.0
GROUPS = 20


def collection(names: int, lines: int, seed: int) -> str:
    """Return a YAML file with so many names in two levels of keys."""
    chance = random.Random(seed)
    text: list[str] = []
    for number in range(names):
        if number % max(1, names // GROUPS) == 0:
            text.append(f"group {number}:")
        text.append(f"  name {number}:")
        text += [
            f"    - {' '.join(chance.choices(WORDS, k=6))} {number} {line}" for line in range(lines)
        ]
    return "\n".join(text)


def steps(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the steps, the first lookup first."""
    return {
        "first lookup": lambda: expand("__name-1__", WildcardFiles([folder]), 0).text,
        "next run": lambda: expand("__name-1__", WildcardFiles([folder]), 0).text,
        "glob over all": lambda: expand("__*__", WildcardFiles([folder]), 0).text,
        "has a file changed": lambda: WildcardFiles([folder]).stamp(),
    }


def measure(folder: Path, names: int, lines: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of each step, the memory, and the size of the file."""
    taken: dict[str, list[float]] = {}
    size = 0
    for seed in range(rounds):
        text = collection(names, lines, seed)
        size = len(text.encode())
        (folder / "all.yaml").write_text(text, "utf-8")
        for name, step in steps(folder).items():
            begun = time.perf_counter()
            result = step()
            taken.setdefault(name, []).append(time.perf_counter() - begun)
            assert result and "__" not in str(result), name
    (folder / "all.yaml").write_text(collection(names, lines, rounds), "utf-8")
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert steps(folder)["first lookup"]()
    after, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "steps": {name: statistics.median(each) for name, each in taken.items()},
        "stays_mb": (after - before) / 1e6,
        "most_mb": (most - before) / 1e6,
        "file_mb": size / 1e6,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    rows = [[name, f"{seconds * 1e3:.1f}"] for name, seconds in result["steps"].items()]
    return (
        f"{result['machine']}, {describe_rounds(result['rounds'])}; {result['names']:,} names, "
        f"{result['lines']:,} lines, {result['file_mb']:.1f} MB\n"
        f"{table(['step', 'ms'], rows)}\n"
        f"Memory: {result['stays_mb']:.0f} MB stay, {result['most_mb']:.0f} MB while it is read."
    )


def main() -> int:
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Time and memory of a collection of wildcards.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=50, help="lines of each name")
    parser.add_argument("--output", type=Path, default=OUTPUT / "wildcards.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), args.names, args.lines, args.rounds)
    result: dict[str, Any] = {
        "machine": describe_machine(), "rounds": args.rounds, "names": args.names,
        "lines": args.names * args.lines, **measured,
    }  # fmt: skip
    write(args.output, result)
    print(to_markdown(result))
    first = result["steps"]["first lookup"]
    met = first < WANTED_S and result["stays_mb"] < WANTED_MB
    print(f"first lookup {first:.2f} s, {result['stays_mb']:.0f} MB; target below {WANTED_S:.0f} s "
          f"and {WANTED_MB:.0f} MB: {'met' if met else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
