"""Whether ComfyUI's page waits for Ollama: it there, off, and hanging.

    python dev.py bench page [--repetitions N]

Three ComfyUI servers (COMFYUI_PATH, else ~/comfy/ComfyUI), all with this pack: one finds a scripted
Ollama, one a port on which nobody listens, one a port that takes connections and never answers. In
turns, the order changing, each is asked for /object_info of one node that lists models, for that of
all nodes, and to queue a prompt with such a node (one that sleeps before it keeps it from asking
Ollama). Between two requests of a kind the list of models has become stale, and twice so long a
time passes that a failure is forgotten.

Prints medians, writes bench-output/page.json, and fails when the three are 5 ms apart or more for a
kind of request by each of three measures (`judged` names them), or when waiting for a server showed
more than once. Without a ComfyUI there is nothing to measure.
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

from _measure import OUTPUT, from_tests, machine, table, write

STATES = ("present", "absent", "hanging")
NODE = "RefineryLLMImageRefine"
WHOLE = "GET /object_info"
STALE_S, FORGOTTEN_S = 1.05, 10.5
"""A little more than FRESH_S of nodes/host/model_lists.py; than a look that hangs, and REST_S."""
ALLOWED_MS = 5.0
WAITED_MS = 230.0
"""A request so much slower than the median has waited for a server: that takes 250 ms."""
SLEEP_S = 600.0

ORDERS = list(itertools.permutations(STATES))

Times = dict[str, dict[str, list[float]]]
"""Milliseconds by kind and state, in the order of the repetitions."""


@contextmanager
def ollamas() -> Iterator[dict[str, str]]:
    """URLs of the three by their state."""
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


def graph(node: Callable[..., Any], picture: str) -> dict[str, Any]:
    """A prompt that stays in the queue: everything waits for the node that sleeps."""
    return {
        "1": node("LoadImage", image=picture),
        "2": node(NODE, image=["1", 0], vision_model="llava", text_model="llama3.2",
                  user_instructions="Shorten it."),
        "3": node("PreviewAny", source=["2", 1]),
    }  # fmt: skip


def requests_of(host: Any, node: Callable[..., Any], picture: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by its name."""
    prompt = graph(node, picture)
    return {
        "GET /object_info/" + NODE: lambda: host.object_info(NODE),
        WHOLE: host.object_info,
        "POST /prompt": lambda: host.queue(prompt),
    }


def timed(request: Callable[[], Any]) -> float:
    """Milliseconds of one request."""
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
        if number in (repetitions // 3, 2 * repetitions // 3):
            time.sleep(FORGOTTEN_S)
        kinds = list(next(iter(ways.values())))
        # The whole list varies most and is asked for twice as often.
        for turn, kind in enumerate([*kinds, *(kind for kind in kinds if kind == WHOLE)]):
            begun = time.monotonic()
            for state in ORDERS[(number + turn) % len(ORDERS)]:
                taken[kind][state].append(timed(ways[state][kind]))
            time.sleep(max(0.0, STALE_S - (time.monotonic() - begun)))
    return taken


def judged(taken: Times) -> list[dict[str, Any]]:
    """Return a row for each kind: medians, how far apart, and the requests that waited.

    Other programs make every request slower now and then, so that medians of /object_info, which
    takes longest, wander by many ms: the difference is the smallest of those of the medians, of the
    fastest, and of the median within a repetition. A server that is waited for each time shows in
    all. `waited_ms` are the times above the median of requests that waited for a server once; whole
    lists are too uneven to tell.
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
    """Return what is above the target, a sentence each."""
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
    """Start three servers and measure; returns what is written as JSON."""
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
            picture = running.save_input(Image.new("RGB", (64, 64)))
            running.queue(
                {
                    "1": host.node("ProbeSleep", seconds=SLEEP_S, salt=0),
                    "2": host.node("PreviewAny", source=["1", 0]),
                }
            )
            ways[state] = requests_of(running, host.node, picture)
            first_ms[state] = {kind: timed(ask) for kind, ask in ways[state].items()}
        rows = judged(measure(ways, repetitions))
    return {
        "machine": machine(),
        "comfyui": ".".join(map(str, found.version)),
        "repetitions": repetitions,
        "rows": rows,
        "first_ms": first_ms,
        "missed": missed(rows),
    }


def shown(result: dict[str, Any]) -> str:
    """The result as Markdown."""
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
    """Measure, print and write; 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--output", type=Path, default=OUTPUT / "page.json")
    args = parser.parse_args()
    host = from_tests("comfyui/host.py")
    found = host.find_host()
    if isinstance(found, str):
        print(f"not measured: {found}")
        return 0
    result = run(found, host, args.repetitions)
    write(args.output, result)
    print(shown(result))
    print(f"under {ALLOWED_MS:.0f} ms apart, at most one wait for a server: "
          f"{'MISSED, ' + '; '.join(result['missed']) if result['missed'] else 'met'}")  # fmt: skip
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
