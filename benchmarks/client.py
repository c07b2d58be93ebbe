"""Client time of one described image: this pack's way beside the way of other node packs.

    python dev.py bench client [--rounds N] [--photo FILE]

Both ways turn the same decoded picture into one answer of a server that takes no time of its own
(a process that reads the request and answers at once), in one process, taking turns. The other way
is PNG with PIL's defaults, base64, and the `ollama` package (where it is installed, else requests):
what every pack does that was looked at. Prints a table, writes bench-output/client.json, and fails
when the picture of 1024 px is not at least 8 times quicker.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import PIL
import requests
from image_refinery.ollama_client import OllamaClient, Server, collect
from image_refinery.ollama_client.images import encode_image
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples" / "photo.jpg"
OUTPUT = ROOT / "bench-output" / "client.json"
SIDES_PX = (512, 1024, 2048)
JUDGED_SIDE_PX, WANTED_RATIO = 1024, 8.0
PROMPT, MODEL = "Describe this image.", "llava"
ANSWER = (
    b'{"model":"llava","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant",'
    b'"content":"A lake."},"done":true,"done_reason":"stop","eval_count":3}\n'
)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)

Way = Callable[[Image.Image], int]


def serve(listener: socket.socket) -> None:
    """Answer every request as soon as its body has been read, each connection in a thread."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Serve one connection until the client closes it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(1 << 20)
    with connection:
        while (left := body_left(connection)) is not None:
            while left > 0:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
            connection.sendall(REPLY)


def body_left(connection: socket.socket) -> int | None:
    """Read a request's header; return how much of its body is still to come, None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, begun = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value) - len(begun)
    return 0


@contextmanager
def server() -> Iterator[str]:
    """Run `serve` in a process of its own, and yield its URL."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def our_way(url: str) -> Way:
    """Encode as the nodes do, and ask through OllamaClient; returns the bytes of base64 sent."""
    client = OllamaClient(Server(name="bench", url=url))

    def ask(picture: Image.Image) -> int:
        encoded = encode_image(picture).base64
        told = collect(
            client.chat(MODEL, [{"role": "user", "content": PROMPT, "images": [encoded]}])
        )
        assert told.text == "A lake."
        return len(encoded)

    return ask


def peers_way(url: str) -> Way:
    """PNG with PIL's defaults, base64, and the ollama package or else requests."""
    post = with_package(url) if importlib.util.find_spec("ollama") else with_requests(url)

    def ask(picture: Image.Image) -> int:
        file = io.BytesIO()
        picture.save(file, format="PNG")
        encoded = base64.b64encode(file.getvalue()).decode("utf-8")
        message = {"role": "user", "content": PROMPT, "images": [encoded]}
        assert post(message) == "A lake."
        return len(encoded)

    return ask


def with_package(url: str) -> Callable[[dict[str, Any]], str]:
    """Ask through the `ollama` package."""
    import ollama

    client: Any = ollama.Client(host=url)
    return lambda message: str(client.chat(model=MODEL, messages=[message])["message"]["content"])


def with_requests(url: str) -> Callable[[dict[str, Any]], str]:
    """Ask with a plain POST."""

    def post(message: dict[str, Any]) -> str:
        body = {"model": MODEL, "messages": [message], "stream": False}
        response = requests.post(f"{url}/api/chat", json=body, timeout=60)
        return cast("str", response.json()["message"]["content"])

    return post


def timed(way: Way, picture: Image.Image) -> tuple[float, int]:
    """Milliseconds and bytes of one call."""
    begun = time.perf_counter()
    sent = way(picture)
    return (time.perf_counter() - begun) * 1000, sent


def compare(ways: dict[str, Way], picture: Image.Image, rounds: int) -> dict[str, Any]:
    """Let the ways take turns, each round in the other order, and return their medians."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    sent: dict[str, int] = {}
    for way in ways.values():
        way(picture)  # warm: connections, lazy imports
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            milliseconds, sent[name] = timed(ways[name], picture)
            taken[name].append(milliseconds)
    return {
        name: {
            "median_ms": statistics.median(times),
            "fastest_ms": min(times),
            "slowest_ms": max(times),
            "base64_bytes": sent[name],
        }
        for name, times in taken.items()
    }


def run(photo: Path, rounds: int) -> dict[str, Any]:
    """Measure every size; returns what is written as JSON."""
    with Image.open(photo) as file:
        original = file.convert("RGB")
    rows: list[dict[str, Any]] = []
    with server() as url:
        ways = {"ours": our_way(url), "peers": peers_way(url)}
        for side in SIDES_PX:
            picture = original.resize((side, side), Image.Resampling.LANCZOS)
            if picture.size == original.size:
                picture = original
            row = compare(ways, picture, rounds)
            ratio = row["peers"]["median_ms"] / row["ours"]["median_ms"]
            rows.append({"side_px": side, **row, "ratio": ratio})
    return {
        "rounds": rounds,
        "peers_client": "ollama" if importlib.util.find_spec("ollama") else "requests",
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"{result['machine']}, Python {result['python']}, Pillow {result['pillow']}, medians of "
        f"{result['rounds']}, peers through {result['peers_client']}",
        "| px | ours, ms | sent, MB | peers, ms | sent, MB | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        cells = [str(row["side_px"])]
        for way in ("ours", "peers"):
            cells += [f"{row[way]['median_ms']:.1f}", f"{row[way]['base64_bytes'] / 1e6:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{row['ratio']:.1f}"]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write; 1 when the judged ratio is missed."""
    parser = argparse.ArgumentParser(description="Client time beside that of other packs.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
            serve(listener)
    result = run(args.photo, args.rounds)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(table(result))
    [judged] = [row["ratio"] for row in result["rows"] if row["side_px"] == JUDGED_SIDE_PX]
    met = judged >= WANTED_RATIO
    print(f"{JUDGED_SIDE_PX} px: {judged:.1f} times quicker, {WANTED_RATIO:.0f} wanted: "
          f"{'met' if met else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
