"""A scripted Ollama for tests: a real socket on loopback, and every fault that was ever seen.

    with FaultyOllama([vision_model("llava"), text_model("llama3.2")], version="0.33.0") as server:
        server.script("chat", "busy", Reply(text="A cat.", token_s=0.05))
        ...talk to server.url...
        assert server.loads == {"llava:latest": 1}

What is not scripted behaves as Ollama's HTTP API does (releases 0.6 to 0.33, see `version`).
Requests are sorted into kinds: chat, generate, load, unload, tags, show, ps, version, pull, root,
other. A script is a queue of replies per kind; `always` is a reply (or a function of the request)
that stays. Standard library only. By hand:

    python tests/faulty_ollama.py --port 11434 --script FILE.json

where FILE holds {"version": ..., "models": [{"name": ..., ...}], "script": {"chat": [...]}} and a
reply is the name of a fault (see FAULTS) or an object with the fields of Reply.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import errno
import hashlib
import json
import math
import re
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

GB = 1_000_000_000
MAX_HEADER_BYTES = 65536
BIG_LINE_BYTES = 20_000_000
ACCEPT_S = 0.1
SAME_PORT_S = 10.0  # how long listen_again tries where somebody holds its port
POLL_S = 0.01  # how often a queued request looks whether its model is free

Version = tuple[int, ...]
Kind = Literal[
    "chat", "generate", "load", "unload", "tags", "show", "ps", "version", "pull", "root", "other"
]
Ending = Literal["done", "no_done", "hang", "hang_mid_line", "reset", "cut", "half_utf8", "error"]


@dataclass
class RecordedRequest:
    """One request as the server saw it; times are time.monotonic() seconds."""

    method: str
    path: str
    headers: dict[str, str]
    raw_body: bytes
    body: Any
    kind: Kind
    connection: int
    started: float
    images: list[bytes] = field(default_factory=list[bytes])
    status: int | None = None
    first_byte: float | None = None
    ended: float | None = None
    tokens_sent: int = 0
    client_closed: bool = False
    closed_at: float | None = None
    query: str = ""

    @property
    def model(self) -> str:
        """The model's name as the client wrote it, or an empty text."""
        if not isinstance(self.body, dict):
            return ""
        name = self.body.get("model") or self.body.get("name") or ""
        return name if isinstance(name, str) else ""

    @property
    def options(self) -> dict[str, Any]:
        """The request's options, or an empty dictionary."""
        options = self.body.get("options") if isinstance(self.body, dict) else None
        return options if isinstance(options, dict) else {}

    @property
    def image_sizes(self) -> list[tuple[int, int] | None]:
        """Width and height of every PNG or JPEG that came, None for anything else."""
        return [image_size(data) for data in self.images]


Answer = str | Callable[[RecordedRequest], str]


@dataclass(frozen=True)
class FakeModel:
    """A model that this server pretends to have."""

    name: str
    capabilities: tuple[str, ...] = ("completion",)
    answer: Answer = "It is a test."
    thinking: str = "Let me see."
    always_thinks: bool = False  # as gpt-oss: think=false does not switch it off
    thinking_template: bool = True  # False: thinking always comes inline as <think>...</think>
    size: int = 4 * GB
    context_length: int = 8192
    family: str = "llama"
    load_s: float = 0.0
    unload_s: float = 0.0
    remote_host: str = ""  # a cloud model's stub has one
    vanished: bool = False  # still in /api/tags, and 404 everywhere else
    never_unloads: bool = False  # unload says 200, and /api/ps shows the model for ever
    listed_digest: str | None = None  # Lemonade has one for all its models; "": the list has none

    @property
    def key(self) -> str:
        """The name with its tag, as Ollama lists it."""
        return full_name(self.name)

    @property
    def digest(self) -> str:
        """A stable made-up digest, unless `listed_digest` is given."""
        if self.listed_digest is not None:
            return self.listed_digest
        return hashlib.sha256(self.key.encode()).hexdigest()


def vision_model(name: str = "llava", **fields: Any) -> FakeModel:
    """A model that takes pictures."""
    fields.setdefault("answer", "A red circle on a white background.")
    return FakeModel(name, ("completion", "vision"), **fields)


def text_model(name: str = "llama3.2", **fields: Any) -> FakeModel:
    """A model that takes text only."""
    fields.setdefault("answer", "A crimson disc floats on snow.")
    return FakeModel(name, ("completion",), **fields)


def thinking_model(name: str = "qwen3", **fields: Any) -> FakeModel:
    """A text model that can think."""
    return FakeModel(name, ("completion", "thinking"), **fields)


def cloud_model(name: str = "gpt-oss:120b-cloud", **fields: Any) -> FakeModel:
    """A stub of a model that runs elsewhere: never loaded here, never in /api/ps."""
    fields.setdefault("remote_host", "https://ollama.com:443")
    return FakeModel(name, ("completion",), size=384, **fields)


@dataclass(frozen=True)
class Reply:
    """What the server does with one request; the defaults are a good answer.

    status: 300 and more is sent at once, before any load (unless `loads_first`), with {"error"}
        as body, or no body where `error` is None.
    text, tokens: the answer, or its exact pieces (one NDJSON line each); None: the model's own.
    prompt_s: silence before the first byte, after the load. token_s: before each token.
    ending: what follows the tokens, or the first `after` of them.
    hang: nothing is ever sent, not even a header. drop: the connection is closed without an answer.
    lines: raw NDJSON lines instead of tokens and done. body: a raw body instead of anything else.
    """

    text: Answer | None = None
    tokens: tuple[str, ...] | None = None
    thinking: str | None = None
    done_reason: str | None = "stop"
    done_fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counts: bool = True
    durations: bool = True
    load_s: float | None = None
    prompt_s: float = 0.0
    token_s: float = 0.0
    ending: Ending = "done"
    after: int | None = None
    hang: bool = False
    drop: bool = False
    reset: bool = False
    status: int = 200
    error: str | None = None
    error_fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    loads_first: bool = False
    lines: tuple[bytes, ...] | None = None
    body: bytes | Callable[[], bytes] | None = None
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    gzip: bool = False
    chunk_bytes: int | None = None
    raw_separators: bool = False  # Go escapes U+2028; other servers and proxies do not


Scripted = Reply | str | Callable[[RecordedRequest], "Reply | str | None"]

OUT_OF_MEMORY_STARTUP = (
    "llama-server reported out-of-memory during startup: "
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 7168.00 MiB on device 0: "
    "cudaMalloc failed: out of memory"
)
RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal"
    " error, check ollama server logs for details"
)
SIGNIN_URL = "https://ollama.com/connect?name=test&key=dGVzdA"
PROXY_PAGE = b"<html><head><title>502 Proxy Error</title></head><body>Squid</body></html>"

FAULTS: dict[str, Reply] = {
    # the connection
    "hang": Reply(hang=True),
    "hang_mid_line": Reply(ending="hang_mid_line", after=2),
    "hang_between_tokens": Reply(ending="hang", after=2),
    "drop": Reply(drop=True),
    "reset": Reply(reset=True),
    "reset_mid_stream": Reply(ending="reset", after=2),
    "cut_mid_stream": Reply(ending="cut", after=2),
    "half_utf8": Reply(ending="half_utf8", after=2),
    # the stream
    "error_line": Reply(ending="error", after=2, error="an error was encountered while running"),
    "oom_line": Reply(ending="error", after=2, error=RUNNER_STOPPED),
    "no_done": Reply(ending="no_done"),
    "no_line": Reply(lines=()),
    "empty": Reply(text="", done_reason="stop"),
    "empty_length": Reply(text="", done_reason="length"),
    "thinking_only": Reply(text="", thinking="Well, the picture shows", done_reason="length"),
    "cut_short": Reply(done_reason="length"),
    "no_counts": Reply(counts=False, durations=False),
    "no_done_reason": Reply(done_reason=None),
    "one_byte": Reply(chunk_bytes=1),
    "gzip": Reply(gzip=True),
    "big_line": Reply(text=lambda _: "x" * BIG_LINE_BYTES),
    "endless_line": Reply(body=lambda: b'{"message":{"content":"' + b"x" * BIG_LINE_BYTES),
    "line_separators": Reply(
        tokens=("one\u0085two ", "three\u2028four\u2029 ", "five\x0b\x0c\x1csix"),
        raw_separators=True,
    ),
    "half_characters": Reply(
        lines=(
            b'{"message":{"content":"A \\ud83d"},"done":false}',
            b'{"message":{"content":"\\ude00 and \\ud83d alone"},"done":false}',
            b'{"message":{"content":""},"done":true,"done_reason":"stop"}',
        )
    ),
    "not_json": Reply(lines=(b"this is not JSON",)),
    "duplicate_keys": Reply(
        lines=(
            b'{"message":{"content":"first"},"message":{"content":"second"},"done":false}',
            b'{"message":{"content":""},"done":false,"done":true,"done_reason":"stop"}',
        )
    ),
    "wrong_types": Reply(
        lines=(
            b'{"model":7,"message":["not","an","object"],"response":{"not":"text"},"done":"no"}',
            b"[1,2,3]",
            b'{"message":{"content":12,"thinking":false},"response":12,"done":1,"eval_count":"x"}',
        )
    ),
    # for tags, ps, show and version
    "wrong_body": Reply(
        body=b'{"models":[7,{"name":null},{"model":3,"size":"big","details":[],"digest":{}},'
        b'{"name":"odd","size":-1,"capabilities":"vision","size_vram":"x","context_length":[]}],'
        b'"version":5,"capabilities":{"vision":true},"model_info":"none","details":7}'
    ),
    "wrong_list": Reply(body=b"[]"),
    # statuses
    "bad_request": Reply(status=400, error="invalid character 'x' looking for beginning of value"),
    "context_length": Reply(
        status=400,
        error="the prompt is longer than the context length currently available to the model; "
        "shorten the prompt or raise num_ctx",
    ),
    "context_length_old": Reply(status=400, error="the input length exceeds the context length"),
    "signin": Reply(status=401, error="unauthorized", error_fields={"signin_url": SIGNIN_URL}),
    "forbidden": Reply(status=403),
    "cloud_disabled": Reply(status=403, error="ollama cloud is disabled"),
    "not_found": Reply(status=404, error="model 'gone' not found"),
    "not_found_old": Reply(status=404, error='model "gone" not found, try pulling it first'),
    "too_many_requests": Reply(status=429, error="too many requests"),
    "client_gone": Reply(status=499, error="context canceled"),
    "oom_old": Reply(
        status=500,
        error="model requires more system memory (12.5 GiB) than is available (7.9 GiB)",
    ),
    "oom": Reply(status=500, error=OUT_OF_MEMORY_STARTUP),
    "oom_runtime": Reply(status=500, error=RUNNER_STOPPED),
    "load_failure": Reply(
        status=500, error="llama-server process has terminated: error loading model"
    ),
    "load_timeout": Reply(status=500, error="timed out waiting for llama-server to start"),
    "wrong_option": Reply(status=500, error='option "num_ctx" must be of type integer'),
    "bad_gateway": Reply(status=502, error="upstream unreachable"),
    "busy": Reply(
        status=503, error="server busy, please try again.  maximum pending requests exceeded"
    ),
    "proxy_page": Reply(status=502, body=PROXY_PAGE, content_type="text/html"),
    "html": Reply(body=PROXY_PAGE, content_type="text/html"),
}


@dataclass(frozen=True)
class Event:
    """Something that happened to a model: load, unload, load_aborted or evict."""

    at: float
    what: str
    model: str


@dataclass
class _Resident:
    """A loaded model, in the server's books."""

    model: FakeModel
    setup: tuple[Any, ...]
    num_ctx: int
    size_vram: int
    keep_alive_s: float = 300.0
    expires_at: float = math.inf
    running: int = 0
    expire: bool = False
    gone_at: float | None = None
    used_at: float = 0.0


class _ClientGoneError(Exception):
    """The client closed its end, or the server is being closed."""


class _HangupError(Exception):
    """The script ends the connection here."""


class _RefusedError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, error: str | None, **fields: Any) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.fields = fields


def full_name(name: str) -> str:
    """Add the tag that Ollama adds: `llava` is `llava:latest`."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def parse_version(version: str) -> Version:
    """`0.33.0-rc2` is (0, 33, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("-")[0]))


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from a PNG's or JPEG's own header."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def parse_keep_alive(value: Any) -> float | None:
    """Seconds (infinite for a negative value), None where it is absent; 400 as Go's parser."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.inf if value < 0 else float(value)
    if not isinstance(value, str):
        raise _RefusedError(400, f"json: cannot unmarshal {json.dumps(value)} into keep_alive")
    if value in ("0", "+0", "-0"):
        return 0.0
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([a-z]+(\d+(\.\d*)?|\.\d+))*([a-z]+)?", value):
        raise _RefusedError(400, f'time: invalid duration "{value}"')
    units = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    total = 0.0
    for number, unit in re.findall(r"([\d.]+)([a-z]*)", value):
        if not unit:
            raise _RefusedError(400, f'time: missing unit in duration "{value}"')
        if unit not in units:
            raise _RefusedError(400, f'time: unknown unit "{unit}" in duration "{value}"')
        total += float(number) * units[unit]
    return math.inf if value.startswith("-") else total


def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the white space before them; nothing is lost."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def go_json(value: Any, raw_separators: bool = False) -> bytes:
    """JSON as Go writes it: UTF-8, with <, >, & and U+2028/9 escaped, and U+0085 not."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&" if raw_separators else "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


OPTION_TYPES: dict[str, tuple[type, ...]] = {
    "num_ctx": (int,),
    "num_predict": (int,),
    "num_gpu": (int,),
    "top_k": (int,),
    "seed": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
    "min_p": (int, float),
    "repeat_penalty": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "stop": (list,),
}
TYPE_NAMES = {(int,): "integer", (int, float): "float32", (list,): "array"}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse a wrong type as Ollama does; unknown options are ignored."""
    for name, value in options.items():
        types = OPTION_TYPES.get(name)
        if types is None or value is None:
            continue
        whole = isinstance(value, float) and value.is_integer()  # JSON has one kind of number
        if isinstance(value, bool) or not (isinstance(value, types) or (whole and int in types)):
            raise _RefusedError(500, f'option "{name}" must be of type {TYPE_NAMES[types]}')


def check_format(value: Any) -> None:
    """Only "json" or a schema object."""
    if value not in (None, "", "json") and not isinstance(value, dict):
        text = json.dumps(value)
        raise _RefusedError(
            500, f'invalid format: {text}; expected "json" or a valid JSON Schema object'
        )


def decode_images(body: Any) -> list[bytes]:
    """Every picture in a request; 400 for a data: prefix, as Go's decoder."""
    if not isinstance(body, dict):
        return []
    holders: list[Any] = [body, *(body.get("messages") or [])]
    return [
        decode_image(text)
        for holder in holders
        if isinstance(holder, dict)
        for text in holder.get("images") or []
    ]


def decode_image(text: Any) -> bytes:
    """Strict base64 of the standard alphabet."""
    if not isinstance(text, str):
        raise _RefusedError(
            400, "json: cannot unmarshal into Go struct field of type api.ImageData"
        )
    wrong = re.search(r"[^A-Za-z0-9+/=\r\n]", text)
    if wrong:
        raise _RefusedError(400, f"illegal base64 data at input byte {wrong.start()}")
    try:
        return base64.b64decode(text)
    except binascii.Error:
        raise _RefusedError(400, f"illegal base64 data at input byte {len(text)}") from None


def kind_of(method: str, path: str, body: Any) -> Kind:
    """Sort a request by what it asks for."""
    simple: dict[str, Kind] = {
        "/": "root",
        "/api/tags": "tags",
        "/api/show": "show",
        "/api/ps": "ps",
        "/api/version": "version",
        "/api/pull": "pull",
    }
    if path in simple:
        return simple[path]
    if path not in ("/api/chat", "/api/generate"):
        return "other"
    chat = path == "/api/chat"
    if not isinstance(body, dict) or body.get("messages" if chat else "prompt"):
        return "chat" if chat else "generate"
    try:
        return "unload" if parse_keep_alive(body.get("keep_alive")) == 0 else "load"
    except _RefusedError:
        return "load"


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(self, server: FaultyOllama, sock: socket.socket, record: RecordedRequest) -> None:
        self.server = server
        self.sock = sock
        self.record = record
        self.reply = Reply()
        self.keep_open = record.headers.get("connection", "").lower() != "close"
        self._gzip: Any = None

    def wait(self, seconds: float) -> None:
        """Do nothing for a while; _ClientGoneError at once when the client closes."""
        if client_gone(self.sock, seconds):
            self.gone()

    def hang(self) -> None:
        """Wait for ever, that is: for the client to give up."""
        while True:
            self.wait(3600)

    def gone(self) -> None:
        """Note that the client has left, and end this exchange."""
        self.server.note_closed(self.record)
        raise _ClientGoneError

    def send(self, data: bytes) -> None:
        """Write to the socket; _ClientGoneError when nobody reads any more."""
        if self.record.first_byte is None:
            self.record.first_byte = time.monotonic()
        try:
            self.sock.sendall(data)
        except OSError:
            self.gone()

    def header(self, status: int, content_type: str | None, length: int | None) -> None:
        """Send the status line and header; without a length the body is chunked."""
        self.record.status = status
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Status'}"]
        if content_type:
            lines.append(f"Content-Type: {content_type}")
        lines += [f"{name}: {value}" for name, value in self.reply.headers.items()]
        if self.reply.gzip:
            lines.append("Content-Encoding: gzip")
        lines.append(
            "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        )
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def start_stream(self, content_type: str = "application/x-ndjson") -> None:
        """Begin a chunked answer."""
        if self.reply.gzip:
            self._gzip = zlib.compressobj(wbits=31)
        self.header(200, self.reply.content_type or content_type, None)

    def chunk(self, data: bytes) -> None:
        """Send a piece of a chunked answer, in chunks of the size that the script asks for."""
        if self._gzip is not None:
            data = self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        step = self.reply.chunk_bytes or len(data) or 1
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def line(self, value: Any) -> None:
        """Send one NDJSON line."""
        self.chunk(go_json(value, self.reply.raw_separators) + b"\n")

    def end_stream(self) -> None:
        """Close a chunked answer properly."""
        if self._gzip is not None:
            data = self._gzip.flush()
            self.send(b"%x\r\n%b\r\n" % (len(data), data))
        self.send(b"0\r\n\r\n")

    def whole(self, status: int, body: bytes, content_type: str | None) -> None:
        """Send a complete answer."""
        if self.reply.gzip:
            packer = zlib.compressobj(wbits=31)
            body = packer.compress(body) + packer.flush()
        self.header(status, content_type if body else None, len(body))
        if self.record.method == "HEAD":
            return
        step = self.reply.chunk_bytes or len(body) or 1
        for at in range(0, len(body), step):
            self.send(body[at : at + step])

    def json(self, value: Any) -> None:
        """Send an object, or as much of it as the script's ending lets through."""
        body, content_type = go_json(value), "application/json; charset=utf-8"
        if self.reply.lines is not None:
            body = b"\n".join(self.reply.lines)
        if self.reply.ending in ("hang", "hang_mid_line", "cut", "reset"):
            self.header(200, content_type, len(body))
            self.send(body[: len(body) // 2])
            self.stop_here()
        self.whole(200, body, content_type)

    def stop_here(self) -> None:
        """End in the middle of something, as the script says."""
        if self.reply.ending in ("hang", "hang_mid_line"):
            self.hang()
        if self.reply.ending == "reset":
            self.reset()
        raise _HangupError

    def error(self, status: int, error: str | None, fields: Mapping[str, Any]) -> None:
        """Send an error as Ollama words it: {"error": ...}, or no body at all."""
        body = b"" if error is None else go_json({"error": error, **fields})
        self.whole(status, body, "application/json; charset=utf-8")

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _HangupError


def client_gone(sock: socket.socket, seconds: float) -> bool:
    """Wait up to `seconds`; True as soon as the other end is closed."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            readable, _, _ = select.select([sock], [], [], max(0.0, min(left, 60.0)))
            if readable and not sock.recv(1, socket.MSG_PEEK):
                return True
        except (OSError, ValueError):  # reset, or closed in another thread
            return True
        if left <= 0:
            return False
        if readable:  # the next request is here already; select would return at once
            time.sleep(min(left, POLL_S))


class FaultyOllama:
    """The server; a context manager. Public attributes may be changed while it runs."""

    def __init__(
        self,
        models: Iterable[FakeModel] | None = None,
        *,
        version: str = "0.33.0",
        port: int = 0,
        vram_bytes: int = 16 * GB,
        parallel: int = 1,
        max_queue: int = 512,
        default_num_ctx: int = 4096,
        keep_alive_s: float = 300.0,
        api_key: str | None = None,
        signed_in: bool = True,
        pullable: Iterable[FakeModel] = (),
        host: str = "127.0.0.1",
    ) -> None:
        chosen = [vision_model(), text_model()] if models is None else list(models)
        self.models: dict[str, FakeModel] = {model.key: model for model in chosen}
        self.pullable: dict[str, FakeModel] = {model.key: model for model in pullable}
        self.version = version
        self.vram_bytes = vram_bytes
        self.parallel = parallel
        self.max_queue = max_queue
        self.default_num_ctx = default_num_ctx
        self.keep_alive_s = keep_alive_s
        self.api_key = api_key
        self.signed_in = signed_in
        self.host = host
        self.requests: list[RecordedRequest] = []
        self.peak_running: Counter[str] = Counter()
        self._events: list[Event] = []
        self._residents: dict[str, _Resident] = {}
        self._loading: str | None = None
        self._pending = 0
        self._queues: dict[str, deque[tuple[str | None, Scripted]]] = {}
        self._standing: dict[str, list[tuple[str | None, Scripted]]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._threads: set[threading.Thread] = set()
        self._sockets: set[socket.socket] = set()
        self._connections = 0
        self._closing = False
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self.port = port

    # life

    def __enter__(self) -> FaultyOllama:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen; the port is then in `port`."""
        self._closing = False
        self._listen()

    def close(self) -> None:
        """Stop listening, end every connection and wait for the threads."""
        self._closing = True
        self.stop_listening()

    def stop_listening(self) -> None:
        """From now on connections are refused, and those that are open are closed."""
        listener, self._listener = self._listener, None
        if listener is None or self._acceptor is None:
            return
        shut_socket(listener)  # on Linux this wakes the acceptor; elsewhere its timeout does
        self._acceptor.join(timeout=10)
        listener.close()
        with self._changed:
            sockets, threads = list(self._sockets), list(self._threads)
        for sock in sockets:
            shut_socket(sock)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=10)

    def listen_again(self) -> None:
        """Undo stop_listening, on the same port.

        Meanwhile the system may have given the port to somebody's outgoing connection.
        """
        deadline = time.monotonic() + SAME_PORT_S
        while True:
            try:
                self._listen()
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within this block every connection is refused."""
        self.stop_listening()
        try:
            yield
        finally:
            self.listen_again()

    def _listen(self) -> None:
        listener = socket.create_server((self.host, self.port), backlog=64)
        listener.settimeout(ACCEPT_S)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._acceptor = self._spawn(self._accept, listener)

    def _spawn(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        def body() -> None:
            try:
                target(*args)
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, daemon=True, name="faulty-ollama")
        with self._changed:
            self._threads.add(thread)
        thread.start()
        return thread

    # script

    def script(
        self, kind: Kind | Literal["*"], *replies: Scripted, model: str | None = None
    ) -> None:
        """Queue replies for the next requests of this kind (and model); "*" is any kind."""
        with self._changed:
            queue = self._queues.setdefault(kind, deque())
            queue.extend((model and full_name(model), known(reply)) for reply in replies)

    def always(
        self, kind: Kind | Literal["*"], reply: Scripted, *, model: str | None = None
    ) -> None:
        """Answer every request of this kind so, when no queued reply is left."""
        with self._changed:
            entry = (model and full_name(model), known(reply))
            self._standing.setdefault(kind, []).insert(0, entry)

    def forget_script(self) -> None:
        """Behave well again."""
        with self._changed:
            self._queues.clear()
            self._standing.clear()

    # what happened

    @property
    def events(self) -> list[Event]:
        """Loads, unloads, evictions and aborted loads in the order of their time."""
        with self._changed:
            self._settle()
            return sorted(self._events, key=lambda event: event.at)

    @property
    def loads(self) -> dict[str, int]:
        """Completed loads per model (name with tag)."""
        return self._tally("load")

    @property
    def unloads(self) -> dict[str, int]:
        """Completed unloads per model, evictions and expiries among them."""
        return self._tally("unload")

    @property
    def aborted_loads(self) -> dict[str, int]:
        """Loads that ended because the client went away."""
        return self._tally("load_aborted")

    def _tally(self, what: str) -> dict[str, int]:
        return dict(Counter(event.model for event in self.events if event.what == what))

    @property
    def loaded(self) -> list[str]:
        """The models that /api/ps would show now."""
        with self._changed:
            self._settle()
            return list(self._residents)

    @property
    def free_vram_bytes(self) -> int:
        """What is left of `vram_bytes`."""
        with self._changed:
            self._settle()
            return self.vram_bytes - sum(entry.size_vram for entry in self._residents.values())

    def of(self, *kinds: Kind) -> list[RecordedRequest]:
        """The requests of these kinds, in the order of their arrival."""
        with self._changed:
            return [record for record in self.requests if record.kind in kinds]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Wait for something to become true of this server; False after the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.02))
            return True

    def wait_for(self, kind: Kind, count: int = 1, timeout_s: float = 30.0) -> RecordedRequest:
        """Wait for the n-th request of a kind to arrive, and return it."""
        if not self.wait_until(lambda: len(self.of(kind)) >= count, timeout_s):
            raise AssertionError(f"no {kind} request number {count} within {timeout_s} s")
        return self.of(kind)[count - 1]

    def note_closed(self, record: RecordedRequest) -> None:
        """Record that the client closed its connection before the answer was complete."""
        with self._changed:
            if not self._closing and self._listener is not None:
                record.client_closed = True
                record.closed_at = time.monotonic()
            self._changed.notify_all()

    # connections

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._sockets.add(sock)
                self._connections += 1
                number = self._connections
            self._spawn(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            with sock:
                while self._exchange(sock, number):
                    pass
        finally:
            with self._changed:
                self._sockets.discard(sock)

    def _exchange(self, sock: socket.socket, number: int) -> bool:
        """Serve one request; False when the connection has ended."""
        try:
            record = read_request(sock, number)
        except (OSError, ValueError):
            return False
        if record is None:
            return False
        exchange = _Exchange(self, sock, record)
        with self._changed:
            self.requests.append(record)
            self._changed.notify_all()
        try:
            self._answer(exchange)
        except (_ClientGoneError, _HangupError):
            return False
        finally:
            with self._changed:
                record.ended = time.monotonic()
                self._changed.notify_all()
        return exchange.keep_open

    def _answer(self, exchange: _Exchange) -> None:
        record = exchange.record
        reply = self._next_reply(record)
        if reply is not None:
            exchange.reply = reply
        try:
            self._act(exchange)
        except _RefusedError as refused:
            exchange.error(refused.status, refused.error, refused.fields)

    def _next_reply(self, record: RecordedRequest) -> Reply | None:
        model = full_name(record.model)
        with self._changed:
            scripted = self._take(record.kind, model) or self._take("*", model)
        if callable(scripted):
            scripted = scripted(record)
        if scripted is None or isinstance(scripted, Reply):
            return scripted
        return FAULTS[scripted]

    def _take(self, kind: str, model: str) -> Scripted | None:
        queue = self._queues.get(kind, deque())
        for at, (wanted, reply) in enumerate(queue):
            if wanted is None or wanted == model:
                del queue[at]
                return reply
        for wanted, reply in self._standing.get(kind, []):
            if wanted is None or wanted == model:
                return reply
        return None

    def _act(self, exchange: _Exchange) -> None:
        record, reply = exchange.record, exchange.reply
        if not host_allowed(record.headers.get("host", "")):
            raise _RefusedError(403, None)
        if self.api_key and record.headers.get("authorization") != f"Bearer {self.api_key}":
            raise _RefusedError(401, "unauthorized")
        if reply.drop:
            raise _HangupError
        if reply.reset:
            exchange.reset()
        talk = record.kind in ("chat", "generate", "load")
        if not talk or (reply.status >= 300 and not reply.loads_first):
            exchange.wait(reply.prompt_s)
            if self._scripted_whole(exchange):
                return
        handlers: dict[str, Callable[[_Exchange], None]] = {
            "root": self._root,
            "tags": self._tags,
            "show": self._show,
            "ps": self._ps,
            "version": self._version,
            "pull": self._pull,
            "load": self._load,
            "unload": self._unload,
            "chat": self._talk,
            "generate": self._talk,
        }
        handler = handlers.get(record.kind)
        if handler is None:
            exchange.whole(404, b"404 page not found", "text/plain")
            return
        handler(exchange)

    def _scripted_whole(self, exchange: _Exchange) -> bool:
        """Send what the script holds instead of an answer, if it does."""
        reply = exchange.reply
        if reply.hang:
            exchange.hang()
        if reply.body is not None:
            content_type = reply.content_type or "application/json; charset=utf-8"
            body = reply.body() if callable(reply.body) else reply.body
            exchange.whole(reply.status, body, content_type)
            return True
        if reply.status >= 300:
            exchange.error(reply.status, reply.error, reply.error_fields)
            return True
        return False

    # the plain endpoints

    def since(self, *version: int) -> bool:
        """Whether the pretended release is this one or newer."""
        return parse_version(self.version) >= version

    def _root(self, exchange: _Exchange) -> None:
        exchange.whole(200, b"Ollama is running", "text/plain; charset=utf-8")

    def _version(self, exchange: _Exchange) -> None:
        exchange.json({"version": self.version})

    def _tags(self, exchange: _Exchange) -> None:
        exchange.json({"models": [self._listing(model) for model in self.models.values()]})

    def _listing(self, model: FakeModel) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": model.key,
            "model": model.key,
            "modified_at": "2026-08-01T12:00:00.000000000Z",
            "size": model.size,
            "details": self._details(model),
        }
        if model.digest:
            entry["digest"] = model.digest
        if self.since(0, 30):
            entry["capabilities"] = list(model.capabilities)
        if model.remote_host:
            entry |= {"remote_host": model.remote_host, "remote_model": model.name}
        return entry

    def _details(self, model: FakeModel) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": model.family,
            "families": [model.family],
            "parameter_size": "7B",
            "quantization_level": "Q4_K_M",
        }

    def _show(self, exchange: _Exchange) -> None:
        model = self._find(exchange.record)
        shown: dict[str, Any] = {
            "modelfile": f"FROM {model.key}",
            "parameters": 'stop                           "</s>"',
            "template": "{{ .Prompt }}",
            "details": self._details(model),
            "model_info": {
                "general.architecture": model.family,
                f"{model.family}.context_length": model.context_length,
            },
            "modified_at": "2026-08-01T12:00:00.000000000Z",
        }
        if self.since(0, 6, 4):
            shown["capabilities"] = list(model.capabilities)
        if model.remote_host:
            shown |= {"remote_host": model.remote_host, "remote_model": model.name}
        exchange.json(shown)

    def _ps(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            residents = list(self._residents.values())
        exchange.json({"models": [self._running(entry) for entry in residents]})

    def _running(self, entry: _Resident) -> dict[str, Any]:
        model, now = entry.model, time.time()
        left = min(entry.expires_at - time.monotonic(), 3e9)
        running: dict[str, Any] = {
            "name": model.key,
            "model": model.key,
            "size": model.size,
            "digest": model.digest,
            "details": self._details(model),
            "expires_at": datetime.fromtimestamp(now + left, timezone.utc).isoformat(),
            "size_vram": entry.size_vram,
        }
        if self.since(0, 10):
            running["context_length"] = entry.num_ctx
        return running

    def _find(self, record: RecordedRequest) -> FakeModel:
        if not isinstance(record.body, dict):
            raise _RefusedError(
                400, "missing request body" if not record.raw_body else "invalid JSON"
            )
        if not record.model and record.path == "/api/chat":
            raise _RefusedError(400, "model is required")
        wanted = full_name(record.model).lower()
        model = next((m for key, m in self.models.items() if key.lower() == wanted), None)
        if model is None or model.vanished:
            # Both texts are in use; which release changed it is not known, so 0.6 stands for "old".
            old = not self.since(0, 7)
            text = f'model "{record.model}" not found, try pulling it first'
            raise _RefusedError(404, text if old else f"model '{record.model}' not found")
        return model

    def _pull(self, exchange: _Exchange) -> None:
        if not isinstance(exchange.record.body, dict) or not exchange.record.model:
            raise _RefusedError(400, "missing request body")
        key = full_name(exchange.record.model)
        model = self.pullable.get(key) or self.models.get(key)
        exchange.start_stream()
        exchange.line({"status": "pulling manifest"})
        if model is None:
            exchange.line({"error": "pull model manifest: file does not exist"})
            exchange.end_stream()
            return
        layer = {"status": f"pulling {model.digest[:12]}", "digest": f"sha256:{model.digest}"}
        for step in range(5):
            exchange.wait(exchange.reply.token_s)
            done = model.size * step // 4
            exchange.line({**layer, "total": model.size, "completed": done})
            exchange.record.tokens_sent += 1
        for status in ("verifying sha256 digest", "writing manifest"):
            exchange.line({"status": status})
        self.models[key] = model
        exchange.line({"status": "success"})
        exchange.end_stream()

    # who is loaded

    def _settle(self) -> None:
        """Bring the books up to now: expiries begin, unloads finish. Call with the lock held."""
        now = time.monotonic()
        for key, entry in list(self._residents.items()):
            if entry.gone_at is None and entry.running == 0 and now >= entry.expires_at:
                self._begin_unload(entry, entry.expires_at)
            if entry.gone_at is not None and now >= entry.gone_at:
                del self._residents[key]
                self._events.append(Event(entry.gone_at, "unload", key))
                self._changed.notify_all()

    def _begin_unload(self, entry: _Resident, at: float) -> None:
        if entry.model.never_unloads or entry.gone_at is not None:
            return
        entry.expire = True
        if entry.running == 0:
            entry.gone_at = at + entry.model.unload_s

    def _setup(self, model: FakeModel, body: Mapping[str, Any]) -> tuple[int, tuple[Any, ...]]:
        """num_ctx, and everything else whose change reloads a model."""
        options = body.get("options") or {}
        num_ctx = int(options.get("num_ctx") or self.default_num_ctx)
        if "vision" in model.capabilities:
            num_ctx = max(num_ctx, 2048)
        num_ctx = min(num_ctx, model.context_length)
        names = ("num_gpu", "num_batch", "num_thread", "use_mmap")
        return num_ctx, (num_ctx, body.get("shift"), *(options.get(name) for name in names))

    @contextmanager
    def _using(self, exchange: _Exchange, model: FakeModel) -> Iterator[float]:
        """Hold a loaded model for one request; yields the seconds that its load took."""
        body = exchange.record.body
        keep_alive_s = parse_keep_alive(body.get("keep_alive"))
        num_ctx, setup = self._setup(model, body)
        begun = time.monotonic()
        entry = self._acquire(exchange, model, num_ctx, setup)
        took_s = time.monotonic() - begun
        try:
            yield took_s
        finally:
            with self._changed:
                entry.running -= 1
                entry.used_at = time.monotonic()
                if keep_alive_s is not None:
                    entry.keep_alive_s = keep_alive_s
                entry.expires_at = entry.used_at + entry.keep_alive_s
                if entry.expire or entry.keep_alive_s == 0:
                    self._begin_unload(entry, entry.used_at)
                self._changed.notify_all()

    def _acquire(
        self, exchange: _Exchange, model: FakeModel, num_ctx: int, setup: tuple[Any, ...]
    ) -> _Resident:
        with self._changed:
            if self._pending >= self.max_queue:
                busy = FAULTS["busy"]
                raise _RefusedError(busy.status, busy.error)
            self._pending += 1
        try:
            while True:
                with self._changed:
                    entry = self._try_acquire(model, setup)
                    if entry is not None:
                        return entry
                    if self._loading is None and model.key not in self._residents:
                        self._loading = model.key
                        break
                exchange.wait(POLL_S)
            return self._do_load(exchange, model, num_ctx, setup)
        finally:
            with self._changed:
                self._pending -= 1

    def _try_acquire(self, model: FakeModel, setup: tuple[Any, ...]) -> _Resident | None:
        self._settle()
        entry = self._residents.get(model.key)
        if entry is None or entry.gone_at is not None or entry.expire:
            return None
        if entry.setup != setup and not model.never_unloads:
            self._begin_unload(entry, time.monotonic())
            self._settle()
            return None
        if entry.running >= self.parallel:
            return None
        return self._occupy(entry)

    def _occupy(self, entry: _Resident) -> _Resident:
        entry.running += 1
        key = entry.model.key
        self.peak_running[key] = max(self.peak_running[key], entry.running)
        return entry

    def _do_load(
        self, exchange: _Exchange, model: FakeModel, num_ctx: int, setup: tuple[Any, ...]
    ) -> _Resident:
        try:
            self._make_room(exchange, model)
            seconds = exchange.reply.load_s
            exchange.wait(model.load_s if seconds is None else seconds)
        except _ClientGoneError:
            with self._changed:
                self._events.append(Event(time.monotonic(), "load_aborted", model.key))
            raise
        else:
            with self._changed:
                size_vram = min(model.size, self.free_vram_bytes)
                entry = _Resident(model, setup, num_ctx, size_vram, self.keep_alive_s)
                self._residents[model.key] = self._occupy(entry)
                self._events.append(Event(time.monotonic(), "load", model.key))
                return entry
        finally:
            with self._changed:
                self._loading = None
                self._changed.notify_all()

    def _make_room(self, exchange: _Exchange, model: FakeModel) -> None:
        """Evict idle models, oldest first, until this one fits; the rest goes to the CPU."""
        while True:
            with self._changed:
                if self.free_vram_bytes >= model.size:
                    return
                idle = [
                    entry
                    for entry in self._residents.values()
                    if entry.running == 0 and not entry.model.never_unloads
                ]
                if not idle:
                    return
                oldest = min(idle, key=lambda entry: entry.used_at)
                if oldest.gone_at is None:
                    self._events.append(Event(time.monotonic(), "evict", oldest.model.key))
                    self._begin_unload(oldest, time.monotonic())
                    continue
            exchange.wait(POLL_S)

    def _load(self, exchange: _Exchange) -> None:
        model = self._find(exchange.record)
        check_options(exchange.record.options)
        if model.remote_host:
            self._check_cloud(model)
        else:
            with self._using(exchange, model):
                exchange.wait(exchange.reply.prompt_s)
                if self._scripted_whole(exchange):
                    return
        exchange.json(self._empty_answer(exchange.record, "load"))

    def _unload(self, exchange: _Exchange) -> None:
        model = self._find(exchange.record)
        with self._changed:
            self._settle()
            entry = self._residents.get(model.key)
            if entry is not None:
                self._begin_unload(entry, time.monotonic())
        exchange.json(self._empty_answer(exchange.record, "unload"))

    def _empty_answer(self, record: RecordedRequest, reason: str) -> dict[str, Any]:
        text = {"message": {"role": "assistant", "content": ""}}
        body: dict[str, Any] = text if record.path == "/api/chat" else {"response": ""}
        return {**stamp(record), **body, "done": True, "done_reason": reason}

    def _check_cloud(self, model: FakeModel) -> None:
        if model.remote_host and not self.signed_in:
            raise _RefusedError(401, "unauthorized", signin_url=SIGNIN_URL)

    # chat and generate

    def _talk(self, exchange: _Exchange) -> None:
        record = exchange.record
        model = self._find(record)
        if not all(isinstance(message, dict) for message in record.body.get("messages") or []):
            raise _RefusedError(
                400, "json: cannot unmarshal into Go struct field of type api.Message"
            )
        record.images = decode_images(record.body)
        parse_keep_alive(record.body.get("keep_alive"))
        thinks = self._thinking_mode(model, record)
        check_options(record.options)
        self._check_cloud(model)
        if model.remote_host:
            self._generate(exchange, model, thinks, 0.0)
            return
        with self._using(exchange, model) as load_s:
            check_format(record.body.get("format"))
            if record.images and "vision" not in model.capabilities and self.since(0, 30):
                raise _RefusedError(500, "image input is not supported by this model")
            self._generate(exchange, model, thinks, load_s)

    def _thinking_mode(
        self, model: FakeModel, record: RecordedRequest
    ) -> Literal["none", "inline", "apart"]:
        """Where this release puts the model's thinking for this request."""
        think = record.body.get("think")
        can = "thinking" in model.capabilities
        if not self.since(0, 9):  # the field is not known yet
            return "inline" if can else "none"
        if think not in (None, True, False, "low", "medium", "high", "max", ""):
            text = '(must be "high", "medium", "low", true, or false)'
            raise _RefusedError(400, f"invalid think value: {json.dumps(think)} {text}")
        if isinstance(think, str) and think and not self._think_level_allowed(model, think):
            raise _RefusedError(400, f'think value "{think}" is not supported for this model')
        if think and not can:
            old = not self.since(0, 10)  # which release changed the text is not known
            name = f"registry.ollama.ai/library/{model.name}" if old else f'"{record.model}"'
            raise _RefusedError(400, f"{name} does not support thinking")
        if not can or (think is False and not model.always_thinks):
            return "none"
        if not model.thinking_template or (think is None and not self.since(0, 12, 4)):
            return "inline"
        return "apart"

    def _think_level_allowed(self, model: FakeModel, level: str) -> bool:
        if not self.since(0, 11, 4) or (level == "max" and not self.since(0, 20)):
            return False
        return self.since(0, 12, 7) or "gpt-oss" in model.name

    def _generate(self, exchange: _Exchange, model: FakeModel, mode: str, load_s: float) -> None:
        record, reply = exchange.record, exchange.reply
        begun = time.monotonic()
        exchange.wait(reply.prompt_s)
        if self._scripted_whole(exchange):
            return
        thinking, tokens, reason = self._material(record, model, reply, mode)
        prompt_s = time.monotonic() - begun
        if record.body.get("stream", True) is False:
            exchange.wait(reply.token_s * (len(thinking) + len(tokens)))
            if reply.ending == "error":
                raise _RefusedError(500, reply.error)
            exchange.json(
                {
                    **stamp(record),
                    **piece(record, "".join(tokens), "".join(thinking)),
                    **self._done(reply, reason, record, thinking, tokens, load_s, prompt_s),
                }
            )
            return
        if self._stream(exchange, thinking, tokens) == "done" and reply.lines is None:
            exchange.line(
                {
                    **stamp(record),
                    **piece(record, "", ""),
                    **self._done(reply, reason, record, thinking, tokens, load_s, prompt_s),
                }
            )
        exchange.end_stream()

    def _material(
        self, record: RecordedRequest, model: FakeModel, reply: Reply, mode: str
    ) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
        """Thinking tokens, answer tokens and the reason for the end."""
        answer = model.answer if reply.text is None else reply.text
        text = answer(record) if callable(answer) else answer
        tokens = split_tokens(text) if reply.tokens is None else reply.tokens
        thought = model.thinking if reply.thinking is None else reply.thinking
        if reply.thinking is not None and mode == "none":
            mode = "apart"  # the script insists
        thinking = split_tokens(thought) if mode == "apart" else ()
        if mode == "inline":
            tokens = (f"<think>{thought}</think>\n\n", *tokens)
        limit = record.options.get("num_predict", -1)
        if 0 < limit < len(thinking) + len(tokens):
            thinking = thinking[: int(limit)]
            return thinking, tokens[: int(limit) - len(thinking)], "length"
        return thinking, tokens, reply.done_reason

    def _stream(
        self, exchange: _Exchange, thinking: tuple[str, ...], tokens: tuple[str, ...]
    ) -> Ending:
        """Send the tokens and whatever bad ending the script wants, and return which it was."""
        record, reply = exchange.record, exchange.reply
        if reply.lines is not None:
            exchange.start_stream()
            for line in reply.lines:
                exchange.wait(reply.token_s)
                exchange.chunk(line + b"\n")
            return "done"
        pieces = [("", token) for token in thinking] + [(token, "") for token in tokens]
        pieces = pieces if reply.after is None else pieces[: reply.after]
        for at, (text, thought) in enumerate(pieces):
            exchange.wait(reply.token_s)
            if at == 0:  # nothing at all is sent before the first token
                exchange.start_stream()
            exchange.line({**stamp(record), **piece(record, text, thought), "done": False})
            record.tokens_sent += 1
        if not pieces:
            exchange.start_stream()
        self._end_badly(exchange)
        return reply.ending

    def _end_badly(self, exchange: _Exchange) -> None:
        """Some endings break the connection; after the others it serves on, as Ollama's does."""
        ending, record = exchange.reply.ending, exchange.record
        if ending == "hang":
            exchange.hang()
        line = go_json({**stamp(record), **piece(record, "caf\u00e9 now", ""), "done": False})
        middle = line.index(b"\xc3") + 1  # half of the e with its accent
        if ending in ("hang_mid_line", "cut"):
            exchange.chunk(line[:middle])
        if ending in ("hang_mid_line", "cut", "reset"):
            exchange.stop_here()
        if ending == "half_utf8":
            exchange.chunk(line[:middle] + line[middle + 1 :] + b"\n")
        if ending == "error":
            exchange.line({"error": exchange.reply.error})

    def _done(
        self,
        reply: Reply,
        reason: str | None,
        record: RecordedRequest,
        thinking: tuple[str, ...],
        tokens: tuple[str, ...],
        load_s: float,
        prompt_s: float,
    ) -> dict[str, Any]:
        done: dict[str, Any] = {"done": True}
        if reason is not None:
            done["done_reason"] = reason
        eval_s = reply.token_s * (len(thinking) + len(tokens))
        if reply.durations:
            done |= {
                "total_duration": nanoseconds(load_s + prompt_s + eval_s),
                "load_duration": nanoseconds(load_s),
                "prompt_eval_duration": nanoseconds(prompt_s),
                "eval_duration": nanoseconds(eval_s),
            }
        if reply.counts:
            done["prompt_eval_count"] = prompt_tokens(record)
            done["eval_count"] = len(thinking) + len(tokens)
        return {**done, **reply.done_fields}


def known(reply: Scripted) -> Scripted:
    """Refuse the name of a fault that does not exist, where the mistake is made."""
    if isinstance(reply, str) and reply not in FAULTS:
        raise KeyError(f"no fault is called {reply!r}; there are {', '.join(FAULTS)}")
    return reply


def nanoseconds(seconds: float) -> int:
    """Ollama's unit of time, never zero (zero is left out there)."""
    return max(1, round(seconds * 1e9))


def prompt_tokens(record: RecordedRequest) -> int:
    """A rough count: words, and 576 per picture."""
    body = record.body
    messages = body.get("messages") or [{"content": body.get("prompt") or ""}]
    words = sum(len(str(message.get("content", "")).split()) for message in messages)
    return words + 576 * len(record.images)


def stamp(record: RecordedRequest) -> dict[str, Any]:
    """The fields that every line begins with."""
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return {"model": record.model, "created_at": now}


def piece(record: RecordedRequest, text: str, thinking: str) -> dict[str, Any]:
    """A piece of an answer in the form of the endpoint that was asked."""
    thought = {"thinking": thinking} if thinking else {}
    if record.path == "/api/chat":
        return {"message": {"role": "assistant", "content": text, **thought}}
    return {"response": text, **thought}


def host_allowed(header: str) -> bool:
    """A server bound to loopback takes local names and addresses only."""
    name = header.rpartition(":")[0] if re.search(r":\d+$", header) else header
    name = name.strip("[]").lower()
    if name in ("", "localhost") or name.endswith((".localhost", ".local", ".internal")):
        return True
    return bool(re.fullmatch(r"[\d.]+|[0-9a-f:]+", name)) or name == socket.gethostname().lower()


def read_request(sock: socket.socket, number: int) -> RecordedRequest | None:
    """Read one HTTP request; None when the client has nothing more to say."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return None
        data += more
        if len(data) > MAX_HEADER_BYTES and b"\r\n\r\n" not in data[: MAX_HEADER_BYTES + 4]:
            raise ValueError("header too long")
    started = time.monotonic()
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if headers.get("expect", "").lower() == "100-continue":
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        raw = read_chunked(sock, rest)
    else:
        raw = read_exactly(sock, rest, int(headers.get("content-length", "0")))
    path, _, query = target.partition("?")
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = None
    return RecordedRequest(
        method=method,
        path=path,
        headers=headers,
        raw_body=raw,
        body=body,
        kind=kind_of(method, path, body),
        connection=number,
        started=started,
        query=query,
    )


def read_exactly(sock: socket.socket, data: bytes, length: int) -> bytes:
    """The body of known length; `data` is what came with the header."""
    parts, have = [data], len(data)
    while have < length:
        more = sock.recv(min(1 << 20, length - have))
        if not more:
            raise ValueError("the client left in the middle of its request")
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def read_chunked(sock: socket.socket, data: bytes) -> bytes:
    """A chunked body."""
    body = b""
    while True:
        while b"\r\n" not in data:
            data += receive(sock)
        size, _, data = data.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        while len(data) < length + 2:
            data += receive(sock)
        if length == 0:
            return body
        body += data[:length]
        data = data[length + 2 :]


def receive(sock: socket.socket) -> bytes:
    """Some bytes, or ValueError when there are no more."""
    more = sock.recv(1 << 20)
    if not more:
        raise ValueError("the client left in the middle of its request")
    return more


def shut_socket(sock: socket.socket) -> None:
    """Wake whoever waits on a socket."""
    with suppress(OSError):  # not connected, or closed already: nobody waits on it
        sock.shutdown(socket.SHUT_RDWR)


def closed_port_url() -> str:
    """A URL on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def reply_from(value: Any) -> Scripted:
    """A reply from a script file: a fault's name, or Reply's fields, over "fault" if given."""
    if isinstance(value, str):
        return known(value)
    fields = dict(value)
    base = FAULTS[fields.pop("fault")] if "fault" in fields else Reply()
    if "tokens" in fields:
        fields["tokens"] = tuple(fields["tokens"])
    for name in ("body", "lines"):
        if name in fields:
            raise ValueError(f"a script file cannot hold raw bytes: {name}")
    return replace(base, **fields)


def server_from(script: Mapping[str, Any], port: int) -> FaultyOllama:
    """A server as a script file describes it."""
    settings = dict(script)
    replies = settings.pop("script", {})
    standing = settings.pop("always", {})
    for name in ("models", "pullable"):
        if name in settings:
            settings[name] = [
                FakeModel(**{**entry, "capabilities": tuple(entry.get("capabilities", ()))})
                for entry in settings[name]
            ]
    server = FaultyOllama(**settings, port=port)
    for kind, values in replies.items():
        server.script(kind, *map(reply_from, values))
    for kind, value in standing.items():
        server.always(kind, reply_from(value))
    return server


def main() -> int:
    """Serve until Ctrl+C, printing each request."""
    parser = argparse.ArgumentParser(description="A scripted Ollama on loopback.")
    parser.add_argument("--port", type=int, default=11434, help="0 takes any free port")
    parser.add_argument("--script", type=Path, help="JSON file: settings, models and replies")
    args = parser.parse_args()
    script = json.loads(args.script.read_text("utf-8")) if args.script else {}
    shown = 0
    with server_from(script, args.port) as server:
        say(f"listening on {server.url}")
        try:
            while True:
                time.sleep(0.2)
                for record in server.requests[shown:]:
                    say(f"{record.method} {record.path} [{record.kind}] {record.model}")
                    shown += 1
        except KeyboardInterrupt:
            return 0


def say(line: str) -> None:
    """Write a line at once, so that a waiting parent process sees it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
