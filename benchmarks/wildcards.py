"""Time and memory of wildcards: a YAML collection of 100,000 lines, and 10,000 texts.

    python dev.py bench wildcards [--rounds N] [--names N] [--lines N] [--texts N] [--output FILE]

The collection has the shape of the largest ones that people share: one file, nested keys, one line
an entry. Each step is what Wildcard Processor does for a text. Every round writes the file again,
so that its first lookup reads it.

- "first lookup": the file is read, and its names stay in memory.
- "next run": the folder is searched again, and a name looked up.
- "glob over all": the same for `__*__`, which draws from every line.
- "has a file changed": what ComfyUI asks before each run; it reads no file.

Memory is what Python's allocator counts: what stays, and the most while the file is read.

Then 1,000 and 10,000 different texts, with two names and a choice each, are expanded in a separate
process each: with the collection, and with 20 text files of 50 lines. The time of the first text
counts apart, as it reads the files. `dynamicprompts`, what other packs expand wildcards with, does
the same, if it is installed. It parses every text for some milliseconds, so it gets fewer texts.

Prints tables, writes bench-output/wildcards.json, and fails if the first lookup takes more than
5 s, if more than 64 MB stay in memory, or if 10,000 texts take more than 5 s.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import OUTPUT, describe_machine, describe_rounds, peak_ram_bytes, table, write
from image_refinery.texts import WildcardFiles, expand

WORDS = re.findall(
    r"\w+",
    "amber ancient arch autumn birch bridge candle castle cedar chapel cliff cloud copper crystal "
    "dawn desert dusk ember fern fog forest garden glass gold granite harbor ivory lantern linen",
)
WANTED_S, WANTED_MB, WANTED_TEXTS_S = 5.0, 64.0, 5.0
GROUPS = 20
SMALL_FILES = 20
TEXTS = 10_000
OURS, PEER = "this pack", "dynamicprompts"
PEER_TEXTS = 100

Expand = Callable[[str, int], str]
"""expand(text, seed)"""


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


def our_way(folder: Path) -> Expand:
    """Return a way that expands like Wildcard Processor: one look at the folder for all texts."""
    files = WildcardFiles([folder])
    return lambda text, seed: expand(text, files, seed).text


def peers_way(folder: Path) -> Expand:
    """Return a way that expands with the package `dynamicprompts`."""
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards.wildcard_manager import WildcardManager

    generator: Any = RandomPromptGenerator(wildcard_manager=WildcardManager(folder))
    return lambda text, seed: str(generator.generate(text, 1, seeds=[seed])[0])


def text_of(number: int, names: list[str]) -> str:
    """Return a text that no other number has."""
    first, second = names[number % len(names)], names[(7 * number + 1) % len(names)]
    return f"image {number} of a __{first}__, {{red|2::blue|green}}, near a __{second}__"


def expand_texts(way: str, folder: Path, count: int, names: list[str]) -> dict[str, Any]:
    """Expand so many texts in this process; return the times and how much memory grew."""
    make = our_way if way == OURS else peers_way
    before = peak_ram_bytes()
    begun = time.perf_counter()
    expand_one = make(folder)
    expand_one(text_of(0, names), 0)
    first = time.perf_counter()
    results = [expand_one(text_of(number, names), number) for number in range(1, count + 1)]
    end = time.perf_counter()
    assert all("__" not in text and "{" not in text for text in results)
    more_mb = (peak_ram_bytes() - before) / 1e6
    return {"first_s": first - begun, "seconds": end - first, "more_mb": more_mb}


def many_texts(folder: Path, names: int, lines: int, texts: int) -> list[dict[str, Any]]:
    """Expand many texts with each kind of files, in each way, in separate processes."""
    kinds = {"one YAML file": folder / "yaml", "small text files": folder / "small"}
    for kind in kinds.values():
        kind.mkdir()
    (kinds["one YAML file"] / "all.yaml").write_text(collection(names, lines, 0), "utf-8")
    chance = random.Random(0)
    for number in range(SMALL_FILES):
        text = "\n".join(f"{' '.join(chance.choices(WORDS, k=6))} {line}" for line in range(lines))
        (kinds["small text files"] / f"small {number}.txt").write_text(text, "utf-8")
    trials = [(OURS, texts // 10), (OURS, texts)]
    if importlib.util.find_spec(PEER):
        trials.append((PEER, min(PEER_TEXTS, texts)))
    rows: list[dict[str, Any]] = []
    for kind, inside in kinds.items():
        for way, count in trials:
            command = [sys.executable, __file__, "--way", way, "--folder", str(inside)]
            command += ["--texts", str(count), "--names", str(names)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            rows.append({"files": kind, "way": way, "texts": count, **found})
    return rows


def names_in(folder: Path, names: int) -> list[str]:
    """Return the names that texts use: those of the small files, or of the collection."""
    if not (folder / "all.yaml").exists():
        return [f"small {number}" for number in range(SMALL_FILES)]
    each = max(1, names // GROUPS)
    return [f"group {number - number % each}/name {number}" for number in range(names)]


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as Markdown tables."""
    rows = [[name, f"{seconds * 1e3:.1f}"] for name, seconds in result["steps"].items()]
    texts = [
        [
            row["files"],
            row["way"],
            f"{row['texts']:,}",
            f"{row['first_s'] * 1e3:.0f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / row['texts'] * 1e6:.0f}",
            f"{row['more_mb']:.0f}",
        ]
        for row in result["texts"]
    ]
    head = ["files", "way", "texts", "first text, ms", "all others, s", "us per text", "MB more"]
    return (
        f"{result['machine']}, {describe_rounds(result['rounds'])}; {result['names']:,} names, "
        f"{result['lines']:,} lines, {result['file_mb']:.1f} MB\n"
        f"{table(['step', 'ms'], rows)}\n"
        f"Memory: {result['stays_mb']:.0f} MB stay, {result['most_mb']:.0f} MB while it is read."
        f"\n\n{table(head, texts)}"
    )


def missed(result: dict[str, Any]) -> list[str]:
    """Return one sentence for each missed target."""
    first, stays = result["steps"]["first lookup"], result["stays_mb"]
    sentences: list[str] = []
    if first >= WANTED_S:
        sentences.append(f"the first lookup takes {first:.2f} s, not {WANTED_S:.0f}")
    if stays >= WANTED_MB:
        sentences.append(f"{stays:.0f} MB stay in memory, not {WANTED_MB:.0f}")
    for row in result["texts"]:
        taken = row["seconds"] / row["texts"] * TEXTS
        if row["way"] == OURS and taken >= WANTED_TEXTS_S:
            sentences.append(f"{row['files']}: {taken:.1f} s for {TEXTS:,} texts")
    return sentences


def main() -> int:
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Time and memory of wildcards.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int, default=2000)
    parser.add_argument("--lines", type=int, default=50, help="lines of each name")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--output", type=Path, default=OUTPUT / "wildcards.json")
    parser.add_argument("--way", choices=[OURS, PEER], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        names = names_in(args.folder, args.names)
        print(json.dumps(expand_texts(args.way, args.folder, args.texts, names)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), args.names, args.lines, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        texts = many_texts(Path(folder), args.names, args.lines, args.texts)
    result: dict[str, Any] = {
        "machine": describe_machine(), "rounds": args.rounds, "names": args.names,
        "lines": args.names * args.lines, **measured, "texts": texts,
    }  # fmt: skip
    write(args.output, result)
    print(to_markdown(result))
    sentences = missed(result)
    print(f"first lookup below {WANTED_S:.0f} s and {WANTED_MB:.0f} MB, {TEXTS:,} texts below "
          f"{WANTED_TEXTS_S:.0f} s: "
          f"{'MISSED, ' + '; '.join(sentences) if sentences else 'met'}")  # fmt: skip
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
