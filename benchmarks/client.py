"""Client time to describe one image: this pack compared with other node packs.

    python dev.py bench client [--rounds N] [--photo FILE]

Both start with the same IMAGE tensor (1, side, side, 3) and end with the answer of a server that
needs no time (a process that reads the request and answers immediately). They run in one process
and take turns. The other way is what all the packs that we examined do: the whole tensor to uint8,
PNG with PIL's defaults, base64, and the `ollama` package (if it is installed, else requests).
`--rounds 9` takes a minute longer and varies less. Prints a table, writes bench-output/client.json,
and fails if the ratio of the client times is below the target: 10 at 1024 px, 8 at 2048 px.
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
from _measure import OUTPUT, ROOT, describe_machine, stub_comfyui, table, write
from _peers import CLIENT, chat_function, to_base64
from image_refinery.captioning.images import encode_image
from image_refinery.ollama_client import OllamaClient, Server, collect
from PIL import Image

PHOTO = ROOT / "examples" / "photo.jpg"
HUGE_PX = 4096
SIDES_PX = (512, 1024, 2048, HUGE_PX)
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
    """What the server recorded about one request."""

    first_byte_s: float
    """When its first byte arrived, by `time.perf_counter`, a clock that all processes share."""
    body_bytes: int


@dataclass(frozen=True)
class Call:
    """The figures of one image, from the tensor to the answer."""

    total_ms: float
    first_byte_ms: float
    body_bytes: int
    requests: int


def serve(listener: socket.socket) -> None:
    """Answer every request as soon as its body has been read, each connection in a thread.

    Before each answer, prints one line of JSON about the request.
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
    """Return a request's header and how many bytes of its body are still to come; None: the end."""
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


class RecordingServer:
    """The server in a separate process, and the requests that it recorded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._lines.put(line)

    def take(self) -> list[Request]:
        """Return the requests since the last call; each was recorded before its answer."""
        found = [Request(**json.loads(self._lines.get(timeout=10)))]
        while not self._lines.empty():
            found.append(Request(**json.loads(self._lines.get())))
        return found


@contextmanager
def start_server() -> Iterator[RecordingServer]:
    """Run `serve` in a separate process."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield RecordingServer(process)
        finally:
            process.terminate()


def our_way(url: str) -> Way:
    """Return a way that converts and encodes like the nodes, and chats through OllamaClient."""
    stub_comfyui()
    from image_refinery.nodes.host.convert import pixels

    client = OllamaClient(Server(name="bench", url=url))

    def describe(image: torch.Tensor) -> int:
        encoded = encode_image(pixels(image)()).base64
        message = {"role": "user", "content": PROMPT, "images": [encoded]}
        assert collect(client.chat(MODEL, [message])).text == "A lake."
        return len(encoded)

    return describe


def peers_way(url: str) -> Way:
    """Return a way that converts the whole tensor to uint8, then uses `_peers.py`."""
    chat = chat_function(url)

    def describe(image: torch.Tensor) -> int:
        values = np.clip(image[0].cpu().numpy() * 255.0, 0, 255).astype(np.uint8)
        encoded = to_base64(Image.fromarray(values))
        assert chat(MODEL, PROMPT, [encoded]) == "A lake."
        return len(encoded)

    return describe


def measure(way: Way, image: torch.Tensor, server: RecordingServer) -> Call:
    """Measure one call."""
    begun = time.perf_counter()
    way(image)
    ended = time.perf_counter()
    requests = server.take()
    return Call(
        total_ms=(ended - begun) * 1000,
        first_byte_ms=(requests[0].first_byte_s - begun) * 1000,
        body_bytes=sum(request.body_bytes for request in requests),
        requests=len(requests),
    )


def compare(
    ways: dict[str, Way], image: torch.Tensor, rounds: int, server: RecordingServer
) -> dict[str, dict[str, float]]:
    """Measure the ways in turns, in reverse order every other round; return their medians."""
    calls: dict[str, list[Call]] = {name: [] for name in ways}
    for way in ways.values() if image.shape[1] < HUGE_PX else ():
        measure(way, image, server)  # warm: connections, lazy imports, memory
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            calls[name].append(measure(ways[name], image, server))
    return {
        name: {key: statistics.median(row[key] for row in map(asdict, of)) for key in COLUMNS}
        for name, of in calls.items()
    }


def run(photo: Path, rounds: int, sides: Sequence[int] = SIDES_PX) -> dict[str, Any]:
    """Measure every size; return the results for the JSON file."""
    with Image.open(photo) as file:
        original = file.convert("RGB")
    rows: list[dict[str, Any]] = []
    with start_server() as server:
        ways = {"ours": our_way(server.url), "peers": peers_way(server.url)}
        for side in sides:
            resized = original.resize((side, side), Image.Resampling.LANCZOS)
            image = torch.from_numpy(np.asarray(resized).astype(np.float32) / 255.0)[None]
            # PNG of 4096 px takes seconds: a third of the rounds is enough to see it.
            count = rounds if side < HUGE_PX else max(2, rounds // 3)
            row = compare(ways, image, count, server)
            ratio = row["peers"]["total_ms"] / row["ours"]["total_ms"]
            rows.append({"side_px": side, "rounds": count, **row, "ratio": ratio})
    return {
        "machine": describe_machine(),
        "peers_client": CLIENT,
        "pillow": PIL.__version__,
        "rows": rows,
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table."""
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
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Client time compared with other packs.")
    parser.add_argument("--rounds", type=int, default=5)
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
    print(to_markdown(result))
    met = True
    for row in result["rows"]:
        if (wanted := WANTED_RATIO.get(row["side_px"])) is not None:
            met &= (reached := row["ratio"] >= wanted)
            print(f"{row['side_px']} px: {row['ratio']:.1f} times faster, target {wanted:.0f}: "
                  f"{'met' if reached else 'MISSED'}")  # fmt: skip
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
