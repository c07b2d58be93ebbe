"""Whether ComfyUI's page waits for Ollama: when Ollama is running, not running, and hanging.

    python dev.py bench page [--repetitions N]

Starts three ComfyUI servers (COMFYUI_PATH, else ~/comfy/ComfyUI), all with this pack: one finds a
scripted Ollama, one a closed port, one a port that accepts connections and never answers. In turns,
in changing order, the benchmark requests /object_info of one node that lists models, /object_info
of all nodes, and queues a prompt with such a node (a node that sleeps before it keeps it from
calling Ollama). The list of models becomes stale between two requests of a kind. Once, the
benchmark waits until the pack has forgotten an earlier failure. On a busy machine, `--repetitions
12` tells more.

Prints medians and writes bench-output/page.json. Fails if the three servers differ by 5 ms or more
for a kind of request by each of three measures (see `judge`), or if more than one request waited
for a server. Without a ComfyUI it measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _measure import OUTPUT, describe_machine, from_tests, table, write

STATES = ("present", "absent", "hanging")
NODE = "RefineryLLMImageRefine"
WHOLE = "GET /object_info"
STALE_S, FORGOTTEN_S = 1.05, 10.5
"""A little above FRESH_S of nodes/host/model_lists.py, and above a hanging request plus REST_S."""
ALLOWED_MS = 5.0
WAITED_MS = 230.0
"""A request that is this much slower than the median waited for a server: that takes 250 ms."""
SLEEP_S = 600.0

ORDERS = list(itertools.permutations(STATES))

Times = dict[str, dict[str, list[float]]]
"""Milliseconds by kind and state, in the order of the repetitions."""


@contextmanager
def ollamas() -> Iterator[dict[str, str]]:
    """Yield the URLs of the three servers by their state."""
    faulty = from_tests("faulty_ollama.py")
    with (
        faulty.FaultyOllama() as present,
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
    ):
        yield {
            "present": present.url,
            "absent": faulty.closed_port_url(),
            "hanging": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }


def graph(node: Callable[..., Any], image: str) -> dict[str, Any]:
    """Return a prompt that stays in the queue, behind the node that sleeps."""
    return {
        "1": node("LoadImage", image=image),
        "2": node(NODE, image=["1", 0], vision_model="llava", text_model="llama3.2",
                  user_instructions="Shorten it."),
        "3": node("PreviewAny", source=["2", 1]),
    }  # fmt: skip


def requests_of(host: Any, node: Callable[..., Any], image: str) -> dict[str, Callable[[], Any]]:
    """Return the requests to time, by name."""
    prompt = graph(node, image)
    return {
        "GET /object_info/" + NODE: lambda: host.object_info(NODE),
        WHOLE: host.object_info,
        "POST /prompt": lambda: host.queue(prompt),
    }


def time_request(request: Callable[[], Any]) -> float:
    """Return the milliseconds of one request."""
    begun = time.perf_counter()
    request()
    return (time.perf_counter() - begun) * 1000


def measure(ways: dict[str, dict[str, Callable[[], Any]]], repetitions: int) -> Times:
    """Time every request of every state in turns.

    Args:
        ways: requests by state and kind.
    """
    taken: Times = defaultdict(lambda: defaultdict(list))
    for number in range(repetitions):
        if number == repetitions // 2:
            time.sleep(FORGOTTEN_S)
        kinds = list(next(iter(ways.values())))
        # The whole list varies most, so it is requested twice as often.
        for turn, kind in enumerate([*kinds, *(kind for kind in kinds if kind == WHOLE)]):
            begun = time.monotonic()
            for state in ORDERS[(number + turn) % len(ORDERS)]:
                taken[kind][state].append(time_request(ways[state][kind]))
            time.sleep(max(0.0, STALE_S - (time.monotonic() - begun)))
    return taken


def judge(taken: Times) -> list[dict[str, Any]]:
    """Return a row for each kind: medians, their difference, and the requests that waited.

    Other programs slow down single requests, so that the medians of /object_info, the slowest kind,
    vary by many ms. Therefore the difference is the smallest of three: between the medians, between
    the fastest requests, and the median difference within a repetition. If every request waits for
    a server, all three show it. `waited_ms` has the times above the median of single requests that
    waited for a server. The times of whole lists vary too much for that.
    """
    rows: list[dict[str, Any]] = []
    for kind, states in taken.items():
        medians = {state: statistics.median(times) for state, times in states.items()}
        fastest = {state: min(times) for state, times in states.items()}
        apart = [max(of.values()) - min(of.values()) for of in (medians, fastest)]
        apart.append(
            max(
                abs(statistics.median(b - a for a, b in zip(states[x], states[y], strict=True)))
                for x, y in itertools.combinations(STATES, 2)
            )
        )
        waited = [
            time_ms - medians[state]
            for state, times in states.items()
            for time_ms in times
            if time_ms - medians[state] > WAITED_MS and kind != WHOLE
        ]
        rows.append(
            {
                "request": kind,
                "median_ms": medians,
                "slowest_ms": {state: max(times) for state, times in states.items()},
                "fastest_ms": fastest,
                "difference_ms": min(apart),
                "waited_ms": waited,
            }
        )
    return rows


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Return one sentence for each missed target."""
    sentences = [
        f"{row['request']}: {row['difference_ms']:.1f} ms apart"
        for row in rows
        if row["difference_ms"] >= ALLOWED_MS
    ]
    waited = [waited_ms for row in rows for waited_ms in row["waited_ms"]]
    if len(waited) > 1:
        sentences.append(f"{len(waited)} requests waited for a server")
    return sentences


def run(found: Any, host: Any, repetitions: int) -> dict[str, Any]:
    """Start three servers and measure; return the results for the JSON file."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        urls = stack.enter_context(ollamas())
        ways: dict[str, dict[str, Callable[[], Any]]] = {}
        first_ms: dict[str, dict[str, float]] = {}
        for state in STATES:
            running = stack.enter_context(
                host.ComfyHost(found, Path(folder, state), env={"OLLAMA_BASE_URL": urls[state]})
            )
            image = running.save_input(Image.new("RGB", (64, 64)))
            running.queue(
                {
                    "1": host.node("ProbeSleep", seconds=SLEEP_S, salt=0),
                    "2": host.node("PreviewAny", source=["1", 0]),
                }
            )
            ways[state] = requests_of(running, host.node, image)
            first_ms[state] = {kind: time_request(request) for kind, request in ways[state].items()}
        rows = judge(measure(ways, repetitions))
    return {
        "machine": describe_machine(),
        "comfyui": ".".join(map(str, found.version)),
        "repetitions": repetitions,
        "rows": rows,
        "first_ms": first_ms,
        "missed": missed(rows),
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    rows = [
        [
            row["request"],
            *(f"{row['median_ms'][state]:.1f}" for state in STATES),
            *(f"{row['fastest_ms'][state]:.1f}" for state in STATES),
            f"{row['difference_ms']:.1f}",
            *(f"{row['slowest_ms'][state]:.1f}" for state in STATES),
            *(f"{result['first_ms'][state][row['request']]:.1f}" for state in STATES),
        ]
        for row in result["rows"]
    ]
    head = ["ms", *(f"median, {state}" for state in STATES)]
    head += [*(f"fastest, {state}" for state in STATES), "difference"]
    head += [f"{which}, {state}" for which in ("slowest", "very first") for state in STATES]
    count = result["repetitions"]
    return (
        f"{result['machine']}, ComfyUI {result['comfyui']}, {count} repetitions "
        f"({2 * count} of {WHOLE})\n{table(head, rows)}"
    )


def main() -> int:
    """Measure, print and write; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT / "page.json")
    args = parser.parse_args()
    host = from_tests("comfyui/host.py")
    found = host.find_host()
    if isinstance(found, str):
        print(f"not measured: {found}")
        return 0
    result = run(found, host, args.repetitions)
    write(args.output, result)
    print(to_markdown(result))
    print(f"less than {ALLOWED_MS:.0f} ms apart, at most one wait for a server: "
          f"{'MISSED, ' + '; '.join(result['missed']) if result['missed'] else 'met'}")  # fmt: skip
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
