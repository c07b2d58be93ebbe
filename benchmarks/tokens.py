"""CPU time of this pack per token of a streamed answer.

    python dev.py bench tokens [--rounds N] [--seconds S] [--output FILE]

A server in a separate process streams an answer at 1,000 and at 100 tokens/s. The figure is all CPU
time (user and system, all threads) of the client process, from listing the server's models to the
unload: nothing is subtracted. The ways take turns, once at 100 tokens/s, in several rounds at the
rate that is judged:

- "live display": `captioning.run.process` with the node's watcher, which sends the growing text to
  ComfyUI's page (tests/comfy_stub replaces ComfyUI's server: it keeps the texts).
- "no display": the same with a watcher that does nothing.
- "ollama package": the chat stream of the `ollama` package, if it is installed. It does not
  separate thinking or detect loops, and cannot be cancelled.

Prints a table, writes bench-output/tokens.json, and fails if the live display at 1,000 tokens/s
costs more than 100 microseconds per token.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import OUTPUT, describe_machine, simulated, stub_comfyui, table, write
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Stage, TextJob
from image_refinery.captioning.run import process
from image_refinery.memory import StageMemory
from image_refinery.ollama_client import OllamaClient, Server

MODEL, PROMPT = "llama3.2", "Tell me about lakes."
RATES = (1000, 100)
JUDGED, JUDGED_RATE, WANTED_US = "live display", 1000, 100.0

Way = Callable[[], int]
"""Requests one answer; returns its length in characters."""


def our_way(url: str, tokens: int, watcher: Callable[[], Any]) -> Way:
    """Return a way that works like a node: find the model, load, chat, unload."""
    stage = Stage(model=MODEL, options={"num_predict": tokens})

    def request() -> int:
        with OllamaClient(Server(name="bench", url=url)) as client:
            job = TextJob(stage=stage, texts=[PROMPT])
            [result] = process(client, job, memory=StageMemory(), watcher=watcher())
        assert result.error is None, result.error
        return len(result.text)

    return request


def package_way(url: str, tokens: int) -> Way:
    """Return a way that reads the stream of the `ollama` package."""
    import ollama

    client: Any = ollama.Client(host=url)
    messages = [{"role": "user", "content": PROMPT}]

    def request() -> int:
        stream = client.chat(
            model=MODEL, messages=messages, stream=True, options={"num_predict": tokens}
        )
        return len("".join([part["message"]["content"] for part in stream]))

    return request


def live_watcher() -> Callable[[], Any]:
    """Return a function that makes the nodes' watcher, with the stub of ComfyUI."""
    stub_comfyui()
    from image_refinery.nodes.host import NodeWatcher

    return lambda: NodeWatcher("1")


def take_shown_texts() -> int:
    """Return how many texts were sent to the page since the last call."""
    from server import PromptServer  # the stub's

    sent: list[Any] = PromptServer.instance.sent_texts
    count = len(sent)
    sent.clear()
    return count


def measure(way: Way, tokens: int) -> dict[str, float]:
    """Return the CPU and wall time of one answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    characters = way()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert characters >= tokens, f"{tokens} tokens brought {characters} characters only"
    return {"cpu_us": cpu / tokens * 1e6, "wall_s": wall, "texts_shown": take_shown_texts()}


def compare(rate: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the ways in turns at one rate."""
    model = {"name": MODEL, "vision": False, "size": 2_000_000_000, "load_s": 0, "unload_s": 0}
    pace = {"prompt_s": 0, "token_s": 1 / rate, "batched_token_s": 1 / rate, "tokens": tokens}
    settings = {"vram_bytes": 8_000_000_000, "parallel": 1, "models": [model | pace]}
    taken: dict[str, list[dict[str, float]]] = {}
    with simulated(settings) as server:
        ways: dict[str, Way] = {
            "live display": our_way(server.url, tokens, live_watcher()),
            "no display": our_way(server.url, tokens, Watcher),
        }
        if importlib.util.find_spec("ollama"):
            ways["ollama package"] = package_way(server.url, tokens)
        warm = min(tokens, 20)
        for watcher in (live_watcher(), Watcher):
            our_way(server.url, warm, watcher)()  # warm: lazy imports
        if "ollama package" in ways:
            package_way(server.url, warm)()
        take_shown_texts()
        for number in range(rounds):
            for name in sorted(ways, reverse=bool(number % 2)):
                taken.setdefault(name, []).append(measure(ways[name], tokens))
    rows: list[dict[str, Any]] = []
    for name in ways:
        cpu = [one["cpu_us"] for one in taken[name]]
        wall = statistics.median(one["wall_s"] for one in taken[name])
        rows.append(
            {
                "way": name,
                "wanted_rate": rate,
                "reached_rate": tokens / wall,
                "tokens": tokens,
                "rounds": rounds,
                "cpu_us_per_token": statistics.median(cpu),
                "fastest_us": min(cpu),
                "slowest_us": max(cpu),
                "texts_shown": statistics.median(one["texts_shown"] for one in taken[name]),
            }
        )
    return rows


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
    head = [
        "tokens/s",
        "rounds",
        "way",
        "reached",
        "CPU per token, us",
        "least to most",
        "texts shown",
    ]
    rows = [
        [
            str(row["wanted_rate"]),
            str(row["rounds"]),
            row["way"],
            f"{row['reached_rate']:.0f}",
            f"{row['cpu_us_per_token']:.1f}",
            f"{row['fastest_us']:.1f} to {row['slowest_us']:.1f}",
            f"{row['texts_shown']:.0f}",
        ]
        for row in result["rows"]
    ]
    return f"{result['machine']}, medians of the rounds\n{table(head, rows)}"


def main() -> int:
    """Measure, print and write; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description="CPU time per token of an answer.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of each answer")
    parser.add_argument("--output", type=Path, default=OUTPUT / "tokens.json")
    args = parser.parse_args()
    rows = [
        row
        for rate in RATES
        for row in compare(
            rate, int(rate * args.seconds), args.rounds if rate == JUDGED_RATE else 1
        )
    ]
    result = {"machine": describe_machine(), "rows": rows}
    write(args.output, result)
    print(to_markdown(result))
    [judged] = [
        row["cpu_us_per_token"]
        for row in rows
        if (row["way"], row["wanted_rate"]) == (JUDGED, JUDGED_RATE)
    ]
    met = judged < WANTED_US
    print(f"{JUDGED} at {JUDGED_RATE} tokens/s: {judged:.1f} us of CPU time per token, target "
          f"below {WANTED_US:.0f}: {'met' if met else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
