"""Client time of one described image: this pack's way beside the way of other node packs.

    python dev.py bench client [--rounds N] [--photo FILE]

Both ways begin with the same IMAGE tensor (1, side, side, 3) and end with the answer of a server
that takes no time of its own (a process that reads the request and answers at once), in one
process, taking turns. The other way is what every pack does that was looked at: the whole tensor to
uint8, PNG with PIL's defaults, base64, and the `ollama` package (where it is installed, else
requests). Prints a table, writes bench-output/client.json, and fails when the ratio of the client
times is below the wanted one: 10 at 1024 px, 8 at 2048 px.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import PIL
import torch
from _measure import OUTPUT, ROOT, machine, stub_comfyui, table, write
from _peers import CLIENT, as_base64, asking
from image_refinery.captioning.images import encode_image
from image_refinery.ollama_client import OllamaClient, Server, collect
from PIL import Image

PHOTO = ROOT / "examples" / "photo.jpg"
SIDES_PX = (512, 1024, 2048, 4096)
WANTED_RATIO = {1024: 10.0, 2048: 8.0}
COLUMNS = ("total_ms", "first_byte_ms", "body_bytes", "requests")
PROMPT, MODEL = "Describe this image.", "llava"
ANSWER = (
    b'{"model":"llava","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant",'
    b'"content":"A lake."},"done":true,"done_reason":"stop","eval_count":3}\n'
)
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)

Way = Callable[[torch.Tensor], int]


@dataclass(frozen=True)
class Request:
    """What the server noted of one request."""

    first_byte_s: float
    """When its first byte came, on the clock of `time.perf_counter`, which all processes share."""
    body_bytes: int


@dataclass(frozen=True)
class Call:
    """One picture's way from the tensor to the answer."""

    total_ms: float
    first_byte_ms: float
    body_bytes: int
    requests: int


def serve(listener: socket.socket) -> None:
    """Answer every request as soon as its body has been read, each connection in a thread.

    Of each request, one line of JSON goes to the standard output before it is answered.
    """
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    """Serve one connection until the client closes it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(1 << 20)
    with connection:
        while (head := read_head(connection)) is not None:
            request, left = head
            while left > 0:
                left -= connection.recv_into(buffer, min(left, len(buffer)))
            print(json.dumps(asdict(request)), flush=True)
            connection.sendall(REPLY)


def read_head(connection: socket.socket) -> tuple[Request, int] | None:
    """Read a request's header; return it and how much of its body is to come, None at the end."""
    data = b""
    came_s = 0.0
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        came_s = came_s or time.perf_counter()
        data += more
    head, _, begun = data.partition(b"\r\n\r\n")
    size = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    return Request(came_s, size), size - len(begun)


class Noted:
    """The server in a process of its own, and the requests it noted."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._lines.put(line)

    def taken(self) -> list[Request]:
        """Requests since the last look. One's line is written before it is answered."""
        found = [Request(**json.loads(self._lines.get(timeout=10)))]
        while not self._lines.empty():
            found.append(Request(**json.loads(self._lines.get())))
        return found


@contextmanager
def server() -> Iterator[Noted]:
    """Run `serve` in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Noted(process)
        finally:
            process.terminate()


def our_way(url: str) -> Way:
    """Convert and encode as the nodes do, and ask through OllamaClient."""
    stub_comfyui()
    from image_refinery.nodes.host.convert import pixels

    client = OllamaClient(Server(name="bench", url=url))

    def ask(image: torch.Tensor) -> int:
        encoded = encode_image(pixels(image)()).base64
        message = {"role": "user", "content": PROMPT, "images": [encoded]}
        assert collect(client.chat(MODEL, [message])).text == "A lake."
        return len(encoded)

    return ask


def peers_way(url: str) -> Way:
    """The whole tensor to uint8, then as `_peers.py` says."""
    post = asking(url)

    def ask(image: torch.Tensor) -> int:
        values = np.clip(image[0].cpu().numpy() * 255.0, 0, 255).astype(np.uint8)
        encoded = as_base64(Image.fromarray(values))
        assert post(MODEL, PROMPT, [encoded]) == "A lake."
        return len(encoded)

    return ask


def timed(way: Way, image: torch.Tensor, noted: Noted) -> Call:
    """Time one call."""
    begun = time.perf_counter()
    way(image)
    ended = time.perf_counter()
    taken = noted.taken()
    return Call(
        total_ms=(ended - begun) * 1000,
        first_byte_ms=(taken[0].first_byte_s - begun) * 1000,
        body_bytes=sum(request.body_bytes for request in taken),
        requests=len(taken),
    )


def compare(
    ways: dict[str, Way], image: torch.Tensor, rounds: int, noted: Noted
) -> dict[str, dict[str, float]]:
    """Let the ways take turns, each round in the other order, and return their medians."""
    calls: dict[str, list[Call]] = {name: [] for name in ways}
    for way in ways.values():
        timed(way, image, noted)  # warm: connections, lazy imports
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            calls[name].append(timed(ways[name], image, noted))
    return {
        name: {key: statistics.median(row[key] for row in map(asdict, of)) for key in COLUMNS}
        for name, of in calls.items()
    }


def run(photo: Path, rounds: int, sides: Sequence[int] = SIDES_PX) -> dict[str, Any]:
    """Measure every size; returns what is written as JSON."""
    with Image.open(photo) as file:
        original = file.convert("RGB")
    rows: list[dict[str, Any]] = []
    with server() as noted:
        ways = {"ours": our_way(noted.url), "peers": peers_way(noted.url)}
        for side in sides:
            picture = original.resize((side, side), Image.Resampling.LANCZOS)
            image = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255.0)[None]
            # PNG of 4096 px takes seconds: a third of the rounds is enough to see it.
            count = rounds if side < 4096 else max(3, rounds // 3)
            row = compare(ways, image, count, noted)
            ratio = row["peers"]["total_ms"] / row["ours"]["total_ms"]
            rows.append({"side_px": side, "rounds": count, **row, "ratio": ratio})
    return {
        "machine": machine(),
        "peers_client": CLIENT,
        "pillow": PIL.__version__,
        "rows": rows,
    }


def shown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    head = ["px", "rounds"]
    for way in ("ours", "peers"):
        head += [f"{way}, ms", "to the first byte, ms", "sent, MB", "requests"]
    rows: list[list[str]] = []
    for row in result["rows"]:
        cells = [str(row["side_px"]), str(row["rounds"])]
        for way in (row["ours"], row["peers"]):
            cells += [f"{way['total_ms']:.1f}", f"{way['first_byte_ms']:.1f}"]
            cells += [f"{way['body_bytes'] / 1e6:.2f}", f"{way['requests']:.0f}"]
        rows.append([*cells, f"{row['ratio']:.1f}"])
    return (
        f"{result['machine']}, Pillow {result['pillow']}, medians of the rounds, peers "
        f"through {result['peers_client']}\n{table([*head, 'ratio'], rows)}"
    )


def main() -> int:
    """Measure, print and write; 1 when a wanted ratio is missed."""
    parser = argparse.ArgumentParser(description="Client time beside that of other packs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES_PX))
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--output", type=Path, default=OUTPUT / "client.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
            serve(listener)
    result = run(args.photo, args.rounds, args.sides)
    write(args.output, result)
    print(shown(result))
    met = True
    for row in result["rows"]:
        if (wanted := WANTED_RATIO.get(row["side_px"])) is not None:
            met &= (reached := row["ratio"] >= wanted)
            print(f"{row['side_px']} px: {row['ratio']:.1f} times quicker, {wanted:.0f} wanted: "
                  f"{'met' if reached else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
