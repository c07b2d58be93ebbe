"""Scripted language-model servers for tests: one double for each kind of server but Ollama.

    with LmStudio(token_s=0.05) as server:
        server.script("chat", "loading", Reply(text="A cat."))
        ...send requests to server.url...
        assert server.loads == ["qwen/qwen2.5-vl-7b"] and server.loaded == server.loads

The servers (see KINDS): RouterServer (llama-server in router mode), LlamaServer (llama-server with
one model), LmStudio (0.4), LlamaSwap, Vllm, and OpenAiServer with only what all of them share.
What is not scripted behaves as the real server does. Requests are sorted into kinds: chat, list,
load, unload, status, other. A script is a queue of replies per kind; `always` is a reply (or a
function of the request) that stays. Standard library, and Pillow for images. By hand:

    python tests/scripted_servers.py lmstudio --port 1234 --script FILE.json

where FILE holds settings of the double, {"models": [{"name": ..., ...}], "script": {"chat": [...]},
"always": {...}}, and a reply is the name of a fault (see FAULTS) or an object with Reply's fields.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import itertools
import json
import re
import select
import socket
import socketserver
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import parse_qs, unquote

from PIL import Image

GB = 1_000_000_000
BIG_LINE_BYTES = 20_000_000
TOKENS_PER_IMAGE = 64
CREATED = 1_780_000_000  # every answer carries the same time
POLL_S = 0.02  # how often a waiting request checks its client and its model
JSON_TYPE = "application/json; charset=utf-8"

Kind = Literal["chat", "list", "load", "unload", "status", "other"]
Ending = Literal["done", "no_done", "end", "cut", "hang"]


@dataclass(eq=False)
class RecordedRequest:
    """One request as the server received it; times are time.monotonic() seconds.

    Attributes:
        images: The bytes of each image.
        colors: The dominant color of each image.
        taken: The fields of a chat that this kind of server knows.
        ignored: The fields of a chat that it accepts and ignores.
    """

    number: int
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw_body: bytes
    body: Any
    kind: Kind
    started: float
    images: list[bytes] = field(default_factory=list[bytes])
    colors: list[str] = field(default_factory=list[str])
    taken: dict[str, Any] = field(default_factory=dict[str, Any])
    ignored: dict[str, Any] = field(default_factory=dict[str, Any])
    status: int | None = None
    first_byte: float | None = None
    ended: float | None = None
    tokens_sent: int = 0
    client_closed: bool = False
    closed_at: float | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The body, or an empty dictionary where it is not an object."""
        return cast("dict[str, Any]", self.body) if isinstance(self.body, dict) else {}

    @property
    def model(self) -> str:
        """The model's name as the client wrote it, or an empty text."""
        name = self.fields.get("model") or self.query.get("model") or ""
        return name if isinstance(name, str) else ""

    @property
    def key(self) -> str:
        """The bearer key that the client sent, or an empty text."""
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return key if scheme.lower() == "bearer" else ""


Answer = str | Callable[[RecordedRequest], str]


@dataclass(frozen=True)
class ScriptedModel:
    """A model of a scripted server; a dictionary with these keys does as well.

    Attributes:
        context: The context that it was trained for, in tokens.
        thinking: The reasoning before each answer; True for a short text.
        answer: None names the color of each image, or says "It is a test." without an image.
        load_s: Seconds of a load; None takes the server's.
        exit_code: Not 0: each load fails with this code.
        embedding: An embedding model, which cannot chat.
    """

    name: str
    vision: bool = False
    size: int = 4 * GB
    context: int = 8192
    thinking: bool | str = False
    answer: Answer | None = None
    load_s: float | None = None
    exit_code: int = 0
    embedding: bool = False

    @property
    def reasoning(self) -> str:
        """The text of the reasoning, empty for a model that does not think."""
        if isinstance(self.thinking, str):
            return self.thinking
        return "Let me see." if self.thinking else ""


Models = Iterable[ScriptedModel | Mapping[str, Any]]


@dataclass(frozen=True)
class Reply:
    """What the server does with one request; the defaults are a good answer.

    The first group replaces the answer before any model is loaded; it works for every kind of
    request. The others are for chats.

    Attributes:
        status: 300 and more is sent with an error body, or with `body`.
        error: The message of that error body.
        body: Bytes, or a JSON value, instead of anything else.
        hang: Send nothing, not even a header. drop: Close the connection without an answer.
        prompt_s: Seconds before the first byte. token_s: Seconds before each token.
        text: The answer; `tokens` are its exact pieces. None takes the model's.
        reasoning: The reasoning; `reasoning_field` is where it is sent, and `think_tags` puts it
            into the text.
        insert: Raw bytes of the stream, sent after `after` tokens (None: after the last).
        ending: What follows the tokens, or the first `after` of them: "end" and "cut" stop there,
            with and without the end of the HTTP message.
        lines: Raw lines instead of the whole stream.
        stream: False: send one JSON body although the client asked for a stream.
        endless: Send tokens until the client closes the connection.
        newline: The end of each line. comments: Send a comment before each event.
        chunk_bytes: The size of the HTTP chunks, which then end anywhere in a line.
    """

    status: int = 200
    error: str | None = None
    error_type: str = "server_error"
    body: bytes | Callable[[], bytes] | Mapping[str, Any] | Sequence[Any] | None = None
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    hang: bool = False
    drop: bool = False
    prompt_s: float | None = None

    token_s: float | None = None
    text: Answer | None = None
    tokens: tuple[str, ...] | None = None
    reasoning: str | None = None
    reasoning_field: str | None = None
    think_tags: bool = False
    finish_reason: str | None = None
    usage: bool | None = None
    insert: bytes | Callable[[], bytes] = b""
    after: int | None = None
    ending: Ending = "done"
    lines: tuple[bytes, ...] | None = None
    stream: bool = True
    endless: bool = False
    newline: str = "\n"
    comments: bool = False
    chunk_bytes: int | None = None


Scripted = Reply | str | Callable[[RecordedRequest], "Reply | str | None"]

HTML_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
OUT_OF_MEMORY = "cudaMalloc failed: out of memory"
CONTEXT_ERROR = "the request exceeds the available context size, try increasing it"
STREAM_ERROR = b'{"error":{"code":500,"message":"the model crashed","type":"server_error"}}'
NOT_ASCII = "Un caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 on a table."

FAULTS: dict[str, Reply] = {
    # the connection
    "hang": Reply(hang=True),
    "hang_after_header": Reply(after=0, ending="hang"),
    "hang_between_tokens": Reply(after=2, ending="hang"),
    "drop": Reply(drop=True),
    "cut_between_lines": Reply(after=2, ending="cut"),
    "cut_mid_line": Reply(after=2, insert=b'data: {"choices":[{"delta":{"con', ending="cut"),
    "end_mid_line": Reply(after=2, insert=b'data: {"choices":[{"delta":{"con', ending="end"),
    "cut_half_character": Reply(
        after=2, insert=b'data: {"choices":[{"delta":{"content":"caf\xc3', ending="cut"
    ),
    # whole bodies instead of an answer
    "loading": Reply(status=503, error="Loading model", error_type="unavailable_error"),
    "busy": Reply(status=429, error="too many requests", error_type="rate_limit_error"),
    "unauthorized": Reply(status=401, error="Invalid API Key", error_type="authentication_error"),
    "not_found": Reply(status=404, error="model not found", error_type="not_found_error"),
    "context_length": Reply(
        status=400, error=CONTEXT_ERROR, error_type="exceed_context_size_error"
    ),
    "out_of_memory": Reply(status=500, error=OUT_OF_MEMORY),
    "html": Reply(body=HTML_PAGE, content_type="text/html"),
    "html_502": Reply(status=502, body=HTML_PAGE, content_type="text/html"),
    "redirect": Reply(status=307, body=b"", headers={"Location": "http://127.0.0.1:9/"}),
    "error_body": Reply(body={"error": {"message": "the model crashed", "type": "server_error"}}),
    "error_text": Reply(body={"error": "the model crashed"}),
    "empty_body": Reply(body=b""),
    "wrong_list": Reply(body=[]),
    "wrong_body": Reply(
        body={
            "object": 7,
            "data": [7, {"id": None}, {"id": 3, "status": "loaded", "meta": []}],
            "models": [7, {"key": None, "loaded_instances": 3}, {"key": "odd", "capabilities": []}],
            "running": [7, {"model": None}],
            "version": 5,
            "is_sleeping": "no",
        }
    ),
    "no_stream": Reply(stream=False),
    # faults of the stream
    "error_line": Reply(after=2, insert=b"data: " + STREAM_ERROR + b"\n\n", ending="end"),
    "error_first": Reply(lines=(b"data: " + STREAM_ERROR, b"")),
    "error_field": Reply(after=2, insert=b"error: " + STREAM_ERROR + b"\n\n", ending="end"),
    "error_event": Reply(
        after=2, insert=b"event: error\ndata: " + STREAM_ERROR + b"\n\n", ending="end"
    ),
    "no_done": Reply(ending="no_done"),
    "no_finish": Reply(ending="end"),
    "no_line": Reply(lines=()),
    "empty": Reply(text="", reasoning=""),
    "usage_only": Reply(
        lines=(
            b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}',
            b"",
            b"data: [DONE]",
            b"",
        )
    ),
    "cut_short": Reply(finish_reason="length"),
    "endless": Reply(endless=True),
    "not_json": Reply(after=2, insert=b'data: {"choices": [\n\n'),
    "big_line": Reply(after=2, insert=lambda: b"data: " + b"x" * BIG_LINE_BYTES + b"\n\n"),
    "endless_line": Reply(after=2, insert=lambda: b"data: " + b"x" * BIG_LINE_BYTES, ending="hang"),
    "wrong_types": Reply(
        lines=(
            b'data: {"choices":[{"delta":{"content":7,"reasoning_content":[]}}],"usage":"x"}',
            b"",
            b'data: {"choices":{"delta":null}}',
            b"",
            b'data: {"choices":[null,{"delta":[]},{"finish_reason":4}],"timings":3}',
            b"",
            b"data: [1,2,3]",
            b"",
            b"data: [DONE]",
            b"",
        )
    ),
    # reasoning
    "reasoning_only": Reply(text="", reasoning="Well, the image", finish_reason="length"),
    "reasoning_content": Reply(reasoning="Let me see.", reasoning_field="reasoning_content"),
    "reasoning": Reply(reasoning="Let me see.", reasoning_field="reasoning"),
    "think_tags": Reply(reasoning="Let me see.", think_tags=True),
    "think_no_open": Reply(text="Let me see.\n</think>\n\nIt is a test."),
    "think_no_close": Reply(text="<think>\nLet me see.", finish_reason="length"),
    "think_split": Reply(tokens=("<th", "ink>", "Let me see.", "</", "think", ">", "A test.")),
    # legal, though rare: the answer must arrive complete
    "split_lines": Reply(chunk_bytes=7),
    "split_characters": Reply(text=NOT_ASCII, chunk_bytes=1),
    "crlf": Reply(newline="\r\n"),
    "comments": Reply(comments=True),
    "no_usage": Reply(usage=False),
    "no_space": Reply(
        lines=(
            b'data:{"choices":[{"index":0,"delta":{"role":"assistant","content":"A test."}}]}',
            b"",
            b'data:{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
            b"",
            b"data:[DONE]",
            b"",
        )
    ),
}


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SHARED_OPTIONS = words(
    "model messages stream stream_options temperature top_p max_tokens max_completion_tokens seed "
    "presence_penalty frequency_penalty stop response_format n logit_bias user"
)
LLAMACPP_OPTIONS = SHARED_OPTIONS | words(
    "top_k min_p typical_p repeat_penalty repeat_last_n cache_prompt chat_template_kwargs n_predict"
    " reasoning_format reasoning_effort grammar json_schema id_slot timings_per_token"
)
LMSTUDIO_OPTIONS = SHARED_OPTIONS | words("top_k repeat_penalty ttl")
VLLM_OPTIONS = SHARED_OPTIONS | words(
    "top_k min_p repetition_penalty min_tokens stop_token_ids ignore_eos chat_template_kwargs "
    "guided_json"
)

PALETTE = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 128, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "orange": (255, 140, 0),
    "purple": (128, 0, 128),
    "brown": (139, 69, 19),
    "pink": (255, 150, 200),
    "cyan": (0, 220, 220),
}


@dataclass(eq=False)
class _Instance:
    """A model in memory, or on its way into or out of it."""

    id: str
    model: ScriptedModel
    ready_at: float
    context: int
    ready: bool = False
    counted: bool = True  # False: loaded before the first request
    running: int = 0
    used_at: float = 0.0
    jit: bool = False
    ttl_s: float | None = None
    stopped: bool = False
    gone_at: float | None = None


class _ClientGoneError(Exception):
    """The client closed its end."""


class _HangupError(Exception):
    """The server ends the connection here."""


class _RefusedError(Exception):
    """An answer with an error status; `body` replaces the server's usual error body."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", body: Any = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.body = body


def split_tokens(text: str) -> tuple[str, ...]:
    """Words with the white space before them; nothing is lost."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8, with characters other than ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def dominant_color(data: bytes) -> str:
    """The name in PALETTE that most pixels of a JPEG or PNG are next to."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        small = image.convert("RGB").resize((16, 16), Image.Resampling.NEAREST)
    raw = small.tobytes()
    pixels = [tuple(raw[at : at + 3]) for at in range(0, len(raw), 3)]
    return Counter(map(nearest_color, pixels)).most_common(1)[0][0]


def nearest_color(pixel: tuple[int, ...]) -> str:
    """The name in PALETTE with the smallest distance."""

    def distance(name: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(pixel, PALETTE[name], strict=True))

    return min(PALETTE, key=distance)


def image_urls(messages: Any) -> list[Any]:
    """The URL of each image part of the messages."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    holders = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    return [holder.get("url") if isinstance(holder, dict) else holder for holder in holders]


def prompt_words(messages: Any) -> int:
    """How many words the messages hold."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    texts = [content for content in contents if isinstance(content, str)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts += [part.get("text") or "" for part in parts if part.get("type") == "text"]
    return sum(len(text.split()) for text in texts)


def decode_data_url(url: Any) -> bytes:
    """The bytes of a data: URL with base64; ValueError for anything else."""
    match = re.fullmatch(r"data:image/\w+;base64,(.*)", url if isinstance(url, str) else "", re.S)
    if match is None:
        raise ValueError("not a data: URL of an image")
    try:
        return base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def example_of(schema: Any, text: str) -> Any:
    """A value that a JSON schema allows, with `text` for each string."""
    if not isinstance(schema, dict):
        return text
    known = cast("dict[str, Any]", schema)
    if known.get("enum"):
        return known["enum"][0]
    if known.get("type") == "object" or "properties" in known:
        properties = known.get("properties") or {"answer": {"type": "string"}}
        return {name: example_of(inner, text) for name, inner in properties.items()}
    if known.get("type") == "array":
        return [example_of(known.get("items"), text)]
    plain: dict[Any, Any] = {"number": 0.5, "integer": 1, "boolean": True, "null": None}
    return plain.get(known.get("type"), text)


def client_gone(sock: socket.socket, seconds: float) -> bool:
    """Wait up to `seconds`; True as soon as the other end is closed."""
    try:
        readable, _, _ = select.select([sock], [], [], seconds)
        if readable and not sock.recv(1, socket.MSG_PEEK):
            return True
    except (OSError, ValueError):  # reset, or closed in another thread
        return True
    if readable:  # the next request is here already
        time.sleep(seconds)
    return False


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(self, server: ScriptedServer, handler: _Handler, record: RecordedRequest) -> None:
        self.server = server
        self.handler = handler
        self.record = record
        self.reply = Reply()
        self.instance: _Instance | None = None

    def wait(self, seconds: float) -> None:
        """Wait, unless the client closes, the model is unloaded or the server stops."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if self.server.closing or (self.instance is not None and self.instance.stopped):
                raise _HangupError
            if client_gone(self.handler.connection, max(0.0, min(left, POLL_S))):
                if self.server.closing:
                    raise _HangupError
                self.gone()
            if time.monotonic() >= deadline:
                return

    def hang(self) -> None:
        """Wait until the client gives up."""
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
            self.handler.wfile.write(data)
        except OSError:
            self.gone()

    def header(self, status: int, content_type: str, length: int | None) -> None:
        """Send the status line and header; without a length the body is chunked."""
        self.record.status = status
        lines = [f"HTTP/1.1 {status} {'OK' if status == 200 else 'Status'}"]
        lines += [f"{name}: {value}" for name, value in self.reply.headers.items()]
        lines.append(f"Content-Type: {content_type}")
        lines.append(
            "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        )
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def whole(self, status: int, body: bytes, content_type: str = JSON_TYPE) -> None:
        """Send a complete answer."""
        self.header(status, content_type, len(body))
        self.send(body)

    def json(self, value: Any, status: int = 200) -> None:
        """Send an object."""
        self.whole(status, to_json(value))

    def text(self, text: str, status: int = 200) -> None:
        """Send plain text."""
        self.whole(status, text.encode(), "text/plain; charset=utf-8")

    def start_stream(self) -> None:
        """Begin an answer of server-sent events."""
        self.header(200, "text/event-stream", None)

    def raw(self, data: bytes) -> None:
        """Send a piece of the stream, in HTTP chunks of the size that the script asks for."""
        step = self.reply.chunk_bytes or len(data) or 1
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def event(self, value: Any) -> None:
        """Send one event: an object, or raw bytes such as [DONE]."""
        data = value if isinstance(value, bytes) else to_json(value)
        end = self.reply.newline.encode()
        comment = b": ping" + end + end if self.reply.comments else b""
        self.raw(comment + b"data: " + data + end + end)

    def end_stream(self) -> None:
        """Close a chunked answer properly."""
        self.send(b"0\r\n\r\n")


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and hands them to the scripted server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def handle_any(self) -> None:
        """Answer one request."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            if len(raw) < length:
                raise _ClientGoneError
            cast("_HttpServer", self.server).owner.answer(self, raw)
        except (_ClientGoneError, _HangupError, OSError):
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = handle_any  # noqa: N815 - the names of http.server


class _HttpServer(ThreadingHTTPServer):
    """Knows its sockets and threads, so that they can be ended."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, owner: ScriptedServer, port: int) -> None:
        self.owner = owner
        self.sockets: set[socket.socket] = set()
        self.threads: set[threading.Thread] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of this machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for one connection."""
        self.sockets.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        self.threads.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.sockets.discard(request)
            self.threads.discard(threading.current_thread())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections; anything else is an error of the double."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Stop listening, close every connection and wait for the threads."""
        self.shutdown()
        self.server_close()
        for sock in list(self.sockets):
            with suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self.threads):
            thread.join(timeout=10)


Handler = Callable[[_Exchange], None]
Server = TypeVar("Server", bound="ScriptedServer")


class ScriptedServer:
    """What all kinds share; a context manager. Public attributes may change while it runs.

    Attributes:
        requests: Every request, in the order of arrival.
        aborted: The requests whose client closed its connection before the answer was complete.
        load_s, unload_s: Seconds of a load and an unload. prompt_s: Seconds before the first
            token. token_s: Seconds before each token.
        api_key: The bearer key that every request needs; None: none.
    """

    kind = ""
    default_port = 8080
    options = SHARED_OPTIONS
    reasoning_field = "reasoning_content"
    first_content: str | None = ""
    sends_timings = False
    can_disable_thinking = False
    default_models = (ScriptedModel("qwen2.5-vl", vision=True), ScriptedModel("llama-3.2"))

    def __init__(
        self,
        models: Models | None = None,
        *,
        port: int = 0,
        api_key: str | None = None,
        load_s: float = 0.0,
        unload_s: float = 0.0,
        prompt_s: float = 0.0,
        token_s: float = 0.0,
        loaded: Iterable[str] = (),
    ) -> None:
        """Prepare a server; `loaded` names the models that are in memory from the start."""
        chosen = self.default_models if models is None else map(to_model, models)
        self.models = {model.name: model for model in chosen}
        self.port = port
        self.api_key = api_key
        self.load_s = load_s
        self.unload_s = unload_s
        self.prompt_s = prompt_s
        self.token_s = token_s
        self.requests: list[RecordedRequest] = []
        self.aborted: list[RecordedRequest] = []
        self.closing = False
        self.failed: dict[str, int] = {}
        self._loads: list[str] = []
        self._unloads: list[str] = []
        self._instances: dict[str, _Instance] = {}
        self._queues: dict[str, deque[Scripted]] = {}
        self._standing: dict[str, Scripted] = {}
        self._numbers = itertools.count(1)
        self._changed = threading.Condition(threading.RLock())
        self._http: _HttpServer | None = None
        for name in loaded:
            self._begin_load(self.models[name], name, load_s=0.0, counted=False)

    # life

    def __enter__(self: Server) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; the port is then in `port`."""
        self.closing = False
        self._http = _HttpServer(self, self.port)
        self.port = self._http.server_port
        threading.Thread(
            target=self._http.serve_forever, args=(POLL_S,), daemon=True, name="scripted-server"
        ).start()

    def close(self) -> None:
        """Stop listening and end every connection."""
        http, self._http = self._http, None
        if http is not None:
            self.closing = True
            http.end()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within this block every connection is refused; what is loaded stays loaded."""
        self.close()
        try:
            yield
        finally:
            self.start()

    # script

    def script(self, kind: Kind | Literal["*"], *replies: Scripted) -> None:
        """Queue replies for the next requests of this kind; "*" is any kind."""
        with self._changed:
            self._queues.setdefault(kind, deque()).extend(map(known, replies))

    def always(self, kind: Kind | Literal["*"], reply: Scripted) -> None:
        """Answer every request of this kind so, when no queued reply is left."""
        with self._changed:
            self._standing[kind] = known(reply)

    def forget_script(self) -> None:
        """Remove every scripted reply."""
        with self._changed:
            self._queues.clear()
            self._standing.clear()

    # what happened

    @property
    def loads(self) -> list[str]:
        """The loads that requests caused and that were completed, in order."""
        with self._changed:
            self._settle()
            return list(self._loads)

    @property
    def unloads(self) -> list[str]:
        """The completed unloads, in order."""
        with self._changed:
            self._settle()
            return list(self._unloads)

    @property
    def loaded(self) -> list[str]:
        """What is in memory now."""
        with self._changed:
            self._settle()
            return [instance.id for instance in self._instances.values() if instance.ready]

    def finish_loads(self) -> None:
        """End the loads that are running, so that no test waits for a long `load_s`."""
        with self._changed:
            for instance in self._instances.values():
                instance.ready_at = min(instance.ready_at, time.monotonic())
            self._settle()
            self._changed.notify_all()

    def finish_unloads(self) -> None:
        """End the unloads that are running, so that no test waits for a long `unload_s`."""
        with self._changed:
            for instance in self._instances.values():
                if instance.gone_at is not None:
                    instance.gone_at = min(instance.gone_at, time.monotonic())
            self._settle()
            self._changed.notify_all()

    def of(self, *kinds: Kind) -> list[RecordedRequest]:
        """The requests of these kinds, in the order of arrival."""
        with self._changed:
            return [record for record in self.requests if record.kind in kinds]

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
        """Wait for something to become true of this server; False after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not condition():  # without the lock: it may send a request to this server
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, POLL_S))
        return True

    def wait_for(self, kind: Kind, count: int = 1, timeout_s: float = 30.0) -> RecordedRequest:
        """Wait for the n-th request of a kind to arrive, and return it."""
        if not self.wait_until(lambda: len(self.of(kind)) >= count, timeout_s):
            raise AssertionError(f"no {kind} request number {count} within {timeout_s} s")
        return self.of(kind)[count - 1]

    def note_closed(self, record: RecordedRequest) -> None:
        """Record that the client closed its connection before the answer was complete."""
        with self._changed:
            record.client_closed = True
            record.closed_at = time.monotonic()
            self.aborted.append(record)
            self._changed.notify_all()

    # requests

    def answer(self, handler: _Handler, raw: bytes) -> None:
        """Record one request and answer it."""
        path, _, query = handler.path.partition("?")
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        record = RecordedRequest(
            number=next(self._numbers),
            method=handler.command,
            path=unquote(path),
            query={name: values[-1] for name, values in parse_qs(query).items()},
            headers={name.lower(): value for name, value in handler.headers.items()},
            raw_body=raw,
            body=body,
            kind=kind_of(handler.command, path),
            started=time.monotonic(),
        )
        exchange = _Exchange(self, handler, record)
        with self._changed:
            self.requests.append(record)
            exchange.reply = self._next_reply(record) or exchange.reply
            self._changed.notify_all()
        try:
            self._act(exchange)
        except _RefusedError as refused:
            self._refuse(exchange, refused)
        finally:
            with self._changed:
                if exchange.instance is not None:
                    exchange.instance.running -= 1
                    exchange.instance.used_at = time.monotonic()
                record.ended = time.monotonic()
                self._changed.notify_all()

    def _next_reply(self, record: RecordedRequest) -> Reply | None:
        for kind in (record.kind, "*"):
            queue = self._queues.get(kind)
            scripted = queue.popleft() if queue else None
            if scripted is not None:
                return resolve(scripted, record)
        for kind in (record.kind, "*"):
            if kind in self._standing:
                return resolve(self._standing[kind], record)
        return None

    def _act(self, exchange: _Exchange) -> None:
        record, reply = exchange.record, exchange.reply
        if self.api_key is not None and self._is_locked(record) and record.key != self.api_key:
            raise self._no_access()
        if reply.drop:
            raise _HangupError
        if reply.hang:
            exchange.hang()
        if record.kind != "chat" or reply.body is not None or reply.status >= 300:
            exchange.wait(reply.prompt_s or 0.0)
        if reply.body is not None:
            exchange.whole(reply.status, body_bytes(reply.body), reply.content_type)
            return
        if reply.status >= 300:
            message = reply.error or f"status {reply.status}"
            exchange.json(self.error_body(reply.status, message, reply.error_type), reply.status)
            return
        self._check_ready(exchange)
        handler = self.route(record)
        if handler is None:
            self._unknown_path(exchange)
            return
        handler(exchange)

    # what the kinds change

    def route(self, record: RecordedRequest) -> Handler | None:
        """The function that answers this method and path, or None."""
        return self.routes().get(f"{record.method} {record.path}")

    def routes(self) -> dict[str, Handler]:
        """A function per method and path."""
        return {"POST /v1/chat/completions": self._chat, "GET /v1/models": self._v1_models}

    def error_body(self, status: int, message: str, kind: str) -> Any:
        """An error body in this server's format."""
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}

    def _refuse(self, exchange: _Exchange, refused: _RefusedError) -> None:
        body = refused.body
        if body is None:
            body = self.error_body(refused.status, refused.message, refused.kind)
        exchange.json(body, refused.status)

    def _is_locked(self, record: RecordedRequest) -> bool:
        """Whether this request needs the key."""
        return record.path != "/health"

    def _no_access(self) -> _RefusedError:
        return _RefusedError(401, "Invalid API Key", "authentication_error")

    def _unknown_path(self, exchange: _Exchange) -> None:
        raise _RefusedError(404, f"Invalid URL ({exchange.record.method} {exchange.record.path})")

    def _check_ready(self, exchange: _Exchange) -> None:
        """Refuse every request while the server itself starts."""

    def _check_chat(self, exchange: _Exchange) -> None:
        """Refuse the fields of a chat that this server does not accept."""

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        """The instance for a chat, which may begin a load; None: try again. Lock held."""
        raise NotImplementedError

    def _load_failed(self, instance: _Instance) -> _RefusedError:
        return _RefusedError(500, f"failed to load {instance.id}", "server_error")

    def _no_images(self, model: ScriptedModel) -> _RefusedError:
        return _RefusedError(400, f"{model.name} does not support image input")

    def _bad_image(self) -> _RefusedError:
        return _RefusedError(400, "Failed to load image or audio file")

    def _v1_models(self, exchange: _Exchange) -> None:
        models = [self._v1_model(model) for model in self.models.values()]
        exchange.json({"object": "list", "data": models})

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": CREATED, "owned_by": "somebody"}

    # memory: call these with the lock held

    def _settle(self) -> None:
        """Finish the loads and unloads that are due."""
        now = time.monotonic()
        for instance in list(self._instances.values()):
            if not instance.ready and now >= instance.ready_at and instance.gone_at is None:
                if instance.model.exit_code:
                    self.failed[instance.id] = instance.model.exit_code
                    del self._instances[instance.id]
                    continue
                instance.ready, instance.used_at = True, now
                if instance.counted:
                    self._loads.append(instance.id)
            idle = now - instance.used_at if instance.ready and not instance.running else 0.0
            if instance.ttl_s is not None and instance.gone_at is None and idle > instance.ttl_s:
                self._begin_unload(instance)
            if instance.gone_at is not None and now >= instance.gone_at:
                del self._instances[instance.id]
                if instance.ready:
                    self._unloads.append(instance.id)
                self._changed.notify_all()

    def _begin_load(
        self,
        model: ScriptedModel,
        name: str,
        *,
        load_s: float | None = None,
        context: int | None = None,
        **fields: Any,
    ) -> _Instance:
        if load_s is None:
            load_s = self.load_s if model.load_s is None else model.load_s
        self.failed.pop(name, None)
        ready_at = time.monotonic() + load_s
        instance = _Instance(name, model, ready_at, context or model.context, **fields)
        self._instances[name] = instance
        self._settle()
        return instance

    def _begin_unload(self, instance: _Instance) -> None:
        """Take a model out of memory; requests that use it end without an answer."""
        instance.stopped = True
        if instance.gone_at is None:
            instance.gone_at = time.monotonic() + self.unload_s
        self._changed.notify_all()

    def _unload_and_wait(self, exchange: _Exchange, instances: Iterable[_Instance]) -> None:
        """Unload, and return when the memory is free. Call without the lock."""
        going = list(instances)
        with self._changed:
            for instance in going:
                self._begin_unload(instance)
            self._settle()
        while any(self._instances.get(instance.id) is instance for instance in going):
            exchange.wait(POLL_S)
            with self._changed:
                self._settle()

    def _claim(self, exchange: _Exchange) -> _Instance:
        """The loaded instance that answers a chat; waits for its load. Call without the lock."""
        while True:
            with self._changed:
                self._settle()
                instance = self._pick(exchange.record)
                if instance is not None:
                    instance.running += 1
                    exchange.instance = instance
                    break
            exchange.wait(POLL_S)
        while not instance.ready:
            with self._changed:
                self._settle()
                if self._instances.get(instance.id) is not instance:
                    raise self._load_failed(instance)
            if not instance.ready:
                exchange.wait(POLL_S)
        return instance

    # chat

    def _chat(self, exchange: _Exchange) -> None:
        record = exchange.record
        if not isinstance(record.body, dict):
            raise _RefusedError(400, "the body is not a JSON object")
        if not isinstance(record.fields.get("messages"), list) or not record.fields["messages"]:
            raise _RefusedError(400, "'messages' is required")
        for name, value in record.fields.items():
            (record.taken if name in self.options else record.ignored)[name] = value
        self._check_chat(exchange)
        model = self._claim(exchange).model
        urls = image_urls(record.fields["messages"])
        if urls and not model.vision:
            raise self._no_images(model)
        for url in urls:
            try:
                data = decode_data_url(url)
                record.colors.append(dominant_color(data))
            except (ValueError, OSError):  # Pillow raises OSError for what is no image
                raise self._bad_image() from None
            record.images.append(data)
        if record.fields.get("stream") and exchange.reply.stream:
            self._send_stream(exchange, model)
        else:
            self._send_whole(exchange, model)

    def _text(self, exchange: _Exchange, model: ScriptedModel) -> str:
        record = exchange.record
        chosen = model.answer if exchange.reply.text is None else exchange.reply.text
        if callable(chosen):
            chosen = chosen(record)
        if chosen is None:
            chosen = " ".join(f"A {color} image." for color in record.colors) or "It is a test."
        wanted: Any = record.taken.get("response_format") or {}
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if exchange.reply.text is None and kind in ("json_schema", "json_object"):
            schema = (wanted.get("json_schema") or {}).get("schema") or {"type": "object"}
            return json.dumps(example_of(schema, chosen))
        return chosen

    def _pieces(self, exchange: _Exchange, model: ScriptedModel) -> Iterator[tuple[str, str]]:
        """Each token with the field of `delta` that it is sent in."""
        record, reply = exchange.record, exchange.reply
        reasoning = model.reasoning if reply.reasoning is None else reply.reasoning
        if self.can_disable_thinking and reply.reasoning is None:
            template = record.taken.get("chat_template_kwargs") or {}
            reasoning = "" if template.get("enable_thinking") is False else reasoning
        text = self._text(exchange, model)
        if reply.think_tags:
            text, reasoning = f"<think>\n{reasoning}\n</think>\n\n{text}", ""
        where = reply.reasoning_field or self.reasoning_field
        yield from ((where, token) for token in split_tokens(reasoning))
        tokens = split_tokens(text) if reply.tokens is None else reply.tokens
        yield from (("content", token) for token in tokens)
        while reply.endless:
            yield "content", " more"

    def _tokens(
        self, exchange: _Exchange, model: ScriptedModel
    ) -> tuple[Iterator[tuple[str, str]], str]:
        """The tokens within max_tokens, and the finish reason."""
        reply, taken = exchange.reply, exchange.record.taken
        if reply.endless:
            return self._pieces(exchange, model), "length"
        pieces = list(self._pieces(exchange, model))
        limit = taken.get("max_tokens") or taken.get("max_completion_tokens") or -1
        kept = pieces[:limit] if limit > 0 else pieces
        reason = "stop" if len(kept) == len(pieces) else "length"
        return iter(kept), reply.finish_reason or reason

    def _token_s(self, exchange: _Exchange) -> float:
        token_s = self.token_s if exchange.reply.token_s is None else exchange.reply.token_s
        return max(token_s, 0.002) if exchange.reply.endless else token_s

    def _prompt_s(self, exchange: _Exchange) -> float:
        return self.prompt_s if exchange.reply.prompt_s is None else exchange.reply.prompt_s

    def _usage(self, exchange: _Exchange) -> dict[str, Any]:
        record = exchange.record
        prompt = prompt_words(record.fields["messages"]) + TOKENS_PER_IMAGE * len(record.images)
        total = prompt + record.tokens_sent
        counts = {"prompt_tokens": prompt, "completion_tokens": record.tokens_sent}
        return {**counts, "total_tokens": total}

    def _timings(self, exchange: _Exchange) -> dict[str, Any]:
        """What llama.cpp adds to the last chunk."""
        if not self.sends_timings:
            return {}
        usage, pace = self._usage(exchange), self._token_s(exchange) or 0.001
        count = usage["completion_tokens"]
        timings = {
            "cache_n": 0,
            "prompt_n": usage["prompt_tokens"],
            "prompt_ms": (self._prompt_s(exchange) or 0.001) * 1000,
            "predicted_n": count,
            "predicted_ms": count * pace * 1000,
            "predicted_per_second": 1 / pace,
        }
        return {"timings": timings}

    def _envelope(self, exchange: _Exchange, what: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{exchange.record.number}",
            "object": what,
            "created": CREATED,
            "model": self._model_name(exchange),
        }

    def _model_name(self, exchange: _Exchange) -> str:
        """The model's name in answers."""
        return exchange.record.model

    def _send_stream(self, exchange: _Exchange, model: ScriptedModel) -> None:
        record, reply = exchange.record, exchange.reply
        envelope = self._envelope(exchange, "chat.completion.chunk")

        def chunk(delta: Mapping[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return {**envelope, "choices": [] if delta is None else [choice]}

        exchange.wait(self._prompt_s(exchange))
        exchange.start_stream()
        if reply.lines is not None:
            exchange.raw(b"".join(line + b"\n" for line in reply.lines))
            exchange.end_stream()
            return
        exchange.event(chunk({"role": "assistant", "content": self.first_content}))
        pieces, reason = self._tokens(exchange, model)
        inserted = False
        for where, token in pieces:
            if record.tokens_sent == reply.after:
                inserted = True
                self._insert(exchange)
            exchange.wait(self._token_s(exchange))
            exchange.event(chunk({where: token}))
            record.tokens_sent += 1
        if not inserted:
            self._insert(exchange)
        options = record.taken.get("stream_options") or {}
        with_usage = bool(options.get("include_usage")) if reply.usage is None else reply.usage
        timings = self._timings(exchange)
        exchange.event({**chunk({}, reason), **({} if with_usage else timings)})
        if with_usage:
            exchange.event({**chunk(None), "usage": self._usage(exchange), **timings})
        if reply.ending == "done":
            exchange.event(b"[DONE]")
        exchange.end_stream()

    def _insert(self, exchange: _Exchange) -> None:
        """Send what the script puts into the stream, and end there if it says so."""
        reply = exchange.reply
        exchange.raw(reply.insert() if callable(reply.insert) else reply.insert)
        if reply.ending == "hang":
            exchange.hang()
        if reply.ending == "end":
            exchange.end_stream()
        if reply.ending in ("end", "cut"):
            raise _HangupError

    def _send_whole(self, exchange: _Exchange, model: ScriptedModel) -> None:
        record, texts = exchange.record, dict[str, str]()
        pieces, reason = self._tokens(exchange, model)
        exchange.wait(self._prompt_s(exchange))
        for where, token in pieces:
            exchange.wait(self._token_s(exchange))
            texts[where] = texts.get(where, "") + token
            record.tokens_sent += 1
        message = {"role": "assistant", "content": "", **texts}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        usage = {} if exchange.reply.usage is False else {"usage": self._usage(exchange)}
        envelope = self._envelope(exchange, "chat.completion")
        exchange.json({**envelope, "choices": [choice], **usage, **self._timings(exchange)})


def kind_of(method: str, path: str) -> Kind:
    """Sort a request by what it asks for; a path means the same for each server that has it."""
    if path.endswith("/chat/completions"):
        return "chat"
    if path in ("/models/load", "/api/v1/models/load", "/wake_up"):
        return "load"
    if path.startswith("/api/models/unload"):
        return "unload"
    if path in ("/models/unload", "/api/v1/models/unload", "/unload", "/sleep"):
        return "unload"
    if method == "GET" and path in ("/models", "/v1/models", "/api/v1/models", "/running"):
        return "list"
    if path in ("/props", "/health", "/version", "/api/version", "/is_sleeping", "/models/sse"):
        return "status"
    return "other"


def to_model(value: ScriptedModel | Mapping[str, Any]) -> ScriptedModel:
    """A model from its fields."""
    return value if isinstance(value, ScriptedModel) else ScriptedModel(**value)


def known(reply: Scripted) -> Scripted:
    """The reply itself; KeyError here and not in a server's thread for a name that is no fault."""
    return FAULTS[reply] if isinstance(reply, str) else reply


def resolve(scripted: Scripted, record: RecordedRequest) -> Reply | None:
    """The reply that a script means for one request."""
    if callable(scripted):
        scripted = scripted(record) or Reply()
    return FAULTS[scripted] if isinstance(scripted, str) else scripted


def body_bytes(body: Any) -> bytes:
    """A scripted body as it is sent."""
    if callable(body):
        body = body()
    return body if isinstance(body, bytes) else to_json(body)


class _LlamaCpp(ScriptedServer):
    """What llama-server does in both modes."""

    options = LLAMACPP_OPTIONS
    first_content = None
    sends_timings = True
    can_disable_thinking = True

    def routes(self) -> dict[str, Handler]:
        return super().routes() | {
            "POST /chat/completions": self._chat,
            "GET /models": self._v1_models,
            "GET /props": self._props,
            "GET /health": lambda exchange: exchange.json({"status": "ok"}),
            "GET /": lambda exchange: exchange.whole(200, b"<html>llama.cpp</html>", "text/html"),
        }

    def error_body(self, status: int, message: str, kind: str) -> Any:
        return {"error": {"code": status, "message": message, "type": kind}}

    def _unknown_path(self, exchange: _Exchange) -> None:
        raise _RefusedError(404, "File Not Found", "not_found_error")

    def _no_images(self, model: ScriptedModel) -> _RefusedError:
        message = "image input is not supported - hint: if this is unexpected, you may need to "
        return _RefusedError(500, message + "provide the mmproj", "server_error")

    def _props(self, exchange: _Exchange) -> None:
        raise NotImplementedError

    def _model_props(self, model: ScriptedModel, context: int, sleeping: bool) -> dict[str, Any]:
        return {
            "default_generation_settings": {
                "params": {"top_k": 40, "min_p": 0.05},
                "n_ctx": context,
            },
            "total_slots": 1,
            "model_alias": model.name,
            "model_path": f"/models/{model.name}.gguf",
            "modalities": {"vision": model.vision, "video": False, "audio": False},
            "chat_template": "{{ messages }}",
            "build_info": "b7000-scripted",
            "is_sleeping": sleeping,
        }

    def _architecture(self, model: ScriptedModel) -> dict[str, Any]:
        inputs = ["text", "image"] if model.vision else ["text"]
        return {"input_modalities": inputs, "output_modalities": ["text"]}

    def _meta(self, model: ScriptedModel, context: int) -> dict[str, Any]:
        counts = {"vocab_type": 2, "n_vocab": 32000, "n_embd": 4096, "n_params": model.size}
        sizes = {"n_ctx": context, "n_ctx_train": model.context, "size": model.size}
        return {**counts, **sizes, "ftype": "Q4_K - Medium"}


class RouterServer(_LlamaCpp):
    """llama-server in router mode: started without a model, it loads and unloads by request.

    Attributes:
        models_max: With as many models in memory, a load first unloads the least recently used.
        autoload: Whether a chat, or GET /props?model=, loads its model.
        context: The context of loaded models; None: what they were trained for.
    """

    kind = "router"

    def __init__(
        self,
        models: Models | None = None,
        *,
        models_max: int = 4,
        autoload: bool = True,
        context: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(models, **settings)
        self.models_max = models_max
        self.autoload = autoload
        self.context = context

    def routes(self) -> dict[str, Handler]:
        return super().routes() | {
            "POST /models/load": self._load,
            "POST /models/unload": self._unload,
            "GET /models/sse": self._events,
        }

    def _v1_models(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            data = [self._v1_model(model) for model in self.models.values()]
        exchange.json({"data": data, "object": "list"})

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        instance = self._instances.get(model.name)
        listed: dict[str, Any] = {
            "id": model.name,
            "aliases": [],
            "tags": [],
            "object": "model",
            "owned_by": "llamacpp",
            "created": CREATED,
            "status": self._status(model),
            "architecture": self._architecture(model),
            "source": "models_dir",
            "can_remove": False,
        }
        if instance is not None and instance.ready:
            listed["meta"] = self._meta(model, instance.context)
        return listed

    def _status(self, model: ScriptedModel) -> dict[str, Any]:
        instance = self._instances.get(model.name)
        status: dict[str, Any] = {"value": "unloaded", "args": ["llama-server", "-c", "0"]}
        if instance is not None:
            status["value"] = "loaded" if instance.ready else "loading"
        elif model.name in self.failed:
            status |= {"failed": True, "exit_code": self.failed[model.name]}
        return status

    def _find(self, name: str, status: int = 400, message: str = "") -> ScriptedModel:
        if not name:
            raise _RefusedError(400, "model name is missing from the request")
        if name not in self.models:
            raise _RefusedError(status, message or f"model '{name}' not found")
        return self.models[name]

    def _make_room(self) -> bool:
        """Whether another model may be loaded; otherwise one is on its way out. Lock held."""
        if len(self._instances) < self.models_max:
            return True
        if all(instance.gone_at is None for instance in self._instances.values()):
            oldest = min(self._instances.values(), key=lambda instance: instance.used_at)
            self._begin_unload(oldest)
            self._settle()
        return len(self._instances) < self.models_max

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        model = self._find(record.model)
        instance = self._instances.get(model.name)
        if instance is not None:
            return instance if instance.gone_at is None else None
        wanted = record.query.get("autoload")
        if not (self.autoload if wanted is None else wanted in ("true", "1")):
            raise _RefusedError(400, "model is not loaded")
        if not self._make_room():
            return None
        return self._begin_load(model, model.name, context=self.context)

    def _load_failed(self, instance: _Instance) -> _RefusedError:
        return _RefusedError(500, f"model name={instance.id} failed to load", "server_error")

    def _load(self, exchange: _Exchange) -> None:
        name = exchange.record.model
        if name not in self.models:
            raise _RefusedError(404, "model is not found", "not_found_error")
        while True:
            with self._changed:
                self._settle()
                if name in self._instances:
                    raise _RefusedError(400, "model is already running")
                if self._make_room():
                    self._begin_load(self.models[name], name, context=self.context)
                    break
            exchange.wait(POLL_S)
        exchange.json({"success": True})

    def _unload(self, exchange: _Exchange) -> None:
        model = self._find(exchange.record.model, message="model is not found")
        with self._changed:
            self._settle()
            instance = self._instances.get(model.name)
            if instance is None:
                raise _RefusedError(400, "model is not running")
            self._begin_unload(instance)
            self._settle()
        exchange.json({"success": True})

    def _props(self, exchange: _Exchange) -> None:
        if "model" not in exchange.record.query:
            params = {"role": "router", "max_instances": self.models_max}
            settings = {"params": {}, "n_ctx": 0}
            names = {"model_alias": "llama-server", "model_path": "none"}
            exchange.json({**params, **names, "default_generation_settings": settings})
            return
        instance = self._claim(exchange)
        exchange.json(self._model_props(instance.model, instance.context, False))

    def _events(self, exchange: _Exchange) -> None:
        """Send each change of a status, and the progress of loads, until the client closes."""
        exchange.start_stream()
        last: dict[str, Any] = {}
        while True:
            for name, model in self.models.items():
                with self._changed:
                    self._settle()
                    data: dict[str, Any] = {"status": self._status(model)["value"]}
                    instance = self._instances.get(name)
                    if instance is not None and not instance.ready:
                        data["progress"] = self._progress(instance)
                if last.setdefault(name, data) != data:
                    last[name] = data
                    exchange.event({"model": name, "event": "model_status", "data": data})
            exchange.wait(POLL_S)

    def _progress(self, instance: _Instance) -> dict[str, Any]:
        model = instance.model
        whole = (self.load_s if model.load_s is None else model.load_s) or 1.0
        left = max(0.0, instance.ready_at - time.monotonic())
        stages = ["text_model", "mmproj_model"] if model.vision else ["text_model"]
        return {"stages": stages, "current": "text_model", "value": round(1 - left / whole, 1)}


class LlamaServer(_LlamaCpp):
    """llama-server with one model, which it loads when it starts (`load_s`).

    Attributes:
        sleeping: Set it to True to put the model to sleep, as `--sleep-idle-seconds` does.
        context: The context that it was started with; None: what the model was trained for.
    """

    kind = "llama-server"
    default_models = (ScriptedModel("qwen2.5-vl", vision=True),)

    def __init__(
        self, models: Models | None = None, *, context: int | None = None, **settings: Any
    ) -> None:
        super().__init__(models, **settings)
        (self.model,) = self.models.values()
        self.context = context or self.model.context

    def start(self) -> None:
        with self._changed:
            if not self._instances and not self.sleeping:
                self._begin_load(self.model, self.model.name, counted=False)
        super().start()

    @property
    def sleeping(self) -> bool:
        """Whether the model is out of memory until the next chat."""
        return self._sleeping

    @sleeping.setter
    def sleeping(self, value: bool) -> None:
        with self._changed:
            self._settle()
            self._sleeping = value
            for instance in self._instances.values() if value else ():
                self._begin_unload(instance)
            self._settle()

    _sleeping = False

    def _check_ready(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            loads = [each for each in self._instances.values() if not each.ready]
            starts = any(not instance.counted for instance in loads)
        if starts and exchange.record.path not in ("/models", "/v1/models"):
            raise _RefusedError(
                503,
                "Loading model",
                body={
                    "error": {"message": "Loading model", "type": "unavailable_error", "code": 503}
                },
            )

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        instance = self._instances.get(self.model.name)
        if instance is not None:
            return instance if instance.gone_at is None else None
        self._sleeping = False
        return self._begin_load(self.model, self.model.name)

    def _model_name(self, exchange: _Exchange) -> str:
        return self.model.name

    def _v1_models(self, exchange: _Exchange) -> None:
        capabilities = ["completion", "multimodal"] if self.model.vision else ["completion"]
        entry = {"name": self.model.name, "model": self.model.name, "capabilities": capabilities}
        data = [self._v1_model(self.model)]
        exchange.json({"models": [entry], "object": "list", "data": data})

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        with self._changed:
            self._settle()
            ready = bool(self.loaded) or self.sleeping
        return {
            "id": model.name,
            "aliases": [model.name],
            "tags": [],
            "object": "model",
            "architecture": self._architecture(model),
            "created": CREATED,
            "owned_by": "llamacpp",
            "meta": self._meta(model, self.context) if ready else None,
        }

    def _props(self, exchange: _Exchange) -> None:
        exchange.json(self._model_props(self.model, self.context, self.sleeping))


class LmStudio(ScriptedServer):
    """LM Studio 0.4: several instances of a model, and 200 for every unknown path.

    Attributes:
        jit: Whether a chat loads its model (just in time).
        auto_evict: Whether such a load unloads the models that other chats have loaded, which is
            LM Studio's own default.
        default_context: The context of a load that asks for none.
    """

    kind = "lmstudio"
    default_port = 1234
    options = LMSTUDIO_OPTIONS
    default_models = (
        ScriptedModel("qwen/qwen2.5-vl-7b", vision=True, context=32768),
        ScriptedModel("llama-3.2-3b-instruct", context=131072, size=2 * GB),
        ScriptedModel("text-embedding-nomic-embed-text-v1.5", embedding=True, size=80_000_000),
    )

    def __init__(
        self,
        models: Models | None = None,
        *,
        jit: bool = True,
        auto_evict: bool = True,
        default_context: int = 4096,
        **settings: Any,
    ) -> None:
        super().__init__(models, **settings)
        self.jit = jit
        self.auto_evict = auto_evict
        self.default_context = default_context

    def routes(self) -> dict[str, Handler]:
        return super().routes() | {
            "GET /api/v1/models": self._list,
            "POST /api/v1/models/load": self._load,
            "POST /api/v1/models/unload": self._unload,
        }

    def error_body(self, status: int, message: str, kind: str) -> Any:
        code = "model_not_found" if status == 404 else None
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}

    def _unknown_path(self, exchange: _Exchange) -> None:
        record = exchange.record
        message = f"Unexpected endpoint or method. ({record.method} {record.path})"
        exchange.json({"error": message})

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "owned_by": "organization_owner"}

    def _list(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            models = [self._listing(model) for model in self.models.values()]
        exchange.json({"models": models})

    def _listing(self, model: ScriptedModel) -> dict[str, Any]:
        publisher, _, short = model.name.rpartition("/")
        instances = [
            {"id": instance.id, "config": self._config(instance)}
            for instance in self._instances.values()
            if instance.model is model and instance.ready
        ]
        listing: dict[str, Any] = {
            "type": "embedding" if model.embedding else "llm",
            "publisher": publisher or "lmstudio-community",
            "key": model.name,
            "display_name": short.replace("-", " ").title(),
            "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
            "size_bytes": model.size,
            "params_string": "7B",
            "loaded_instances": instances,
            "max_context_length": model.context,
            "format": "gguf",
        }
        if not model.embedding:
            listing["capabilities"] = {"vision": model.vision, "trained_for_tool_use": True}
        return listing

    def _config(self, instance: _Instance) -> dict[str, Any]:
        config: dict[str, Any] = {"context_length": instance.context}
        if not instance.model.embedding:
            config |= {"eval_batch_size": 512, "flash_attention": True}
        return config

    def _free_id(self, name: str) -> str:
        number = 1
        while (free := name if number == 1 else f"{name}:{number}") in self._instances:
            number += 1
        return free

    def _start(self, model: ScriptedModel, context: Any = None, **fields: Any) -> _Instance:
        asked = context if isinstance(context, int) and context > 0 else self.default_context
        context = min(asked, model.context)
        return self._begin_load(model, self._free_id(model.name), context=context, **fields)

    def _load(self, exchange: _Exchange) -> None:
        record = exchange.record
        model = self.models.get(record.model)
        if model is None:
            raise _RefusedError(404, f"Model not found: {record.model}")
        with self._changed:
            instance = self._start(model, record.fields.get("context_length"))
        while not instance.ready:
            exchange.wait(POLL_S)
            with self._changed:
                self._settle()
                if self._instances.get(instance.id) is not instance:
                    raise self._load_failed(instance)
        answer: dict[str, Any] = {
            "type": "embedding" if model.embedding else "llm",
            "instance_id": instance.id,
            "load_time_seconds": round(time.monotonic() - record.started, 3),
            "status": "loaded",
        }
        if record.fields.get("echo_load_config"):
            answer["load_config"] = self._config(instance)
        exchange.json(answer)

    def _unload(self, exchange: _Exchange) -> None:
        name = exchange.record.fields.get("instance_id")
        with self._changed:
            self._settle()
            instance = self._instances.get(name) if isinstance(name, str) else None
        if instance is None:
            raise _RefusedError(404, f"No loaded instance with the id {name!r}")
        self._unload_and_wait(exchange, [instance])
        exchange.json({"instance_id": instance.id})

    def _check_chat(self, exchange: _Exchange) -> None:
        wanted = exchange.record.fields.get("response_format")
        if isinstance(wanted, dict) and wanted.get("type") not in ("json_schema", "text"):
            error = "'response_format.type' must be 'json_schema' or 'text'"
            raise _RefusedError(400, error, body={"error": error})

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        name = record.model
        for instance in self._instances.values():
            if name in (instance.id, instance.model.name) and instance.gone_at is None:
                return instance
        model = self.models.get(name)
        if model is None or model.embedding:
            raise _RefusedError(404, f'Model "{name}" not found')
        if not self.jit:
            message = "No models loaded. Please load a model in the developer page or use lms load."
            raise _RefusedError(404, message)
        others = [instance for instance in self._instances.values() if instance.jit]
        if self.auto_evict and others:
            for instance in others:
                if not instance.running:
                    self._begin_unload(instance)
            self._settle()
            if any(instance.id in self._instances for instance in others):
                return None
        return self._start(model, jit=True, ttl_s=record.fields.get("ttl"))

    def _load_failed(self, instance: _Instance) -> _RefusedError:
        return _RefusedError(500, f'Failed to load model "{instance.id}".', "model_load_failed")

    def _no_images(self, model: ScriptedModel) -> _RefusedError:
        message = "Model does not support images. Please use a model that does."
        return _RefusedError(400, message, body={"error": message})

    def _bad_image(self) -> _RefusedError:
        message = "'url' field must be a base64 encoded image."
        return _RefusedError(400, message, body={"error": message})


class LlamaSwap(ScriptedServer):
    """llama-swap: one model at a time, loaded by the first chat.

    Attributes:
        old: True: without the paths under /api, as before these existed; only GET /unload.
        lists_starting: Whether GET /running lists a model that still loads.
    """

    kind = "llama-swap"
    options = LLAMACPP_OPTIONS
    first_content = None
    sends_timings = True
    can_disable_thinking = True

    def __init__(
        self,
        models: Models | None = None,
        *,
        old: bool = False,
        lists_starting: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(models, **settings)
        self.old = old
        self.lists_starting = lists_starting

    def route(self, record: RecordedRequest) -> Handler | None:
        one = "/api/models/unload/"
        if record.method == "POST" and record.path.startswith(one) and not self.old:
            return self._unload_one
        return super().route(record)

    def routes(self) -> dict[str, Handler]:
        routes = super().routes() | {
            "GET /running": self._running,
            "GET /unload": self._unload_all,
            "GET /health": lambda exchange: exchange.text("OK"),
        }
        if not self.old:
            routes |= {
                "GET /api/version": self._version,
                "POST /api/models/unload": self._unload_all,
            }
        return routes

    def error_body(self, status: int, message: str, kind: str) -> Any:
        return {"error": {"code": status, "message": message, "type": kind}}

    def _refuse(self, exchange: _Exchange, refused: _RefusedError) -> None:
        """Its own errors are plain text unless the client accepts only JSON."""
        if refused.body is not None:
            exchange.json(refused.body, refused.status)
        elif "application/json" in exchange.record.headers.get("accept", ""):
            exchange.json({"error": refused.message}, refused.status)
        else:
            exchange.text(refused.message, refused.status)

    def _no_access(self) -> _RefusedError:
        return _RefusedError(401, "unauthorized: invalid or missing API key")

    def _unknown_path(self, exchange: _Exchange) -> None:
        exchange.text("404 page not found", 404)

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": CREATED, "owned_by": "llama-swap"}

    def _version(self, exchange: _Exchange) -> None:
        version = {"version": "175", "commit": "abc1234", "build_date": "2026-08-01T12:00:00Z"}
        exchange.json(version)

    def _running(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            entries = [
                {"model": instance.id, "state": self._state(instance), "ttl": 0, "name": ""}
                for instance in self._instances.values()
                if self.lists_starting or instance.ready
            ]
        exchange.json({"running": entries})

    def _state(self, instance: _Instance) -> str:
        if instance.gone_at is not None:
            return "stopping"
        return "ready" if instance.ready else "starting"

    def _unload_one(self, exchange: _Exchange) -> None:
        name = exchange.record.path.removeprefix("/api/models/unload/")
        if name not in self.models:
            raise _RefusedError(404, "Model not found")
        with self._changed:
            self._settle()
            instances = [each for each in self._instances.values() if each.id == name]
        self._unload_and_wait(exchange, instances)
        exchange.text("OK")

    def _unload_all(self, exchange: _Exchange) -> None:
        with self._changed:
            self._settle()
            instances = list(self._instances.values())
        self._unload_and_wait(exchange, instances)
        if exchange.record.method == "GET":
            exchange.text("OK")
        else:
            exchange.json({"msg": "ok"})

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        if not record.model:
            raise _RefusedError(400, "missing or invalid 'model' key")
        if record.model not in self.models:
            message = f"could not find suitable inference handler for {record.model}"
            raise _RefusedError(400, message)
        for instance in list(self._instances.values()):
            if instance.id == record.model and instance.gone_at is None:
                return instance
            if not instance.running:
                self._begin_unload(instance)
        self._settle()
        if self._instances:
            return None
        return self._begin_load(self.models[record.model], record.model)

    def _load_failed(self, instance: _Instance) -> _RefusedError:
        return _RefusedError(502, "unable to start process: upstream command exited prematurely")

    def _no_images(self, model: ScriptedModel) -> _RefusedError:
        message = "image input is not supported"  # llama-server's answer is passed on
        body = self.error_body(500, message, "server_error")
        return _RefusedError(500, message, body=body)

    def _bad_image(self) -> _RefusedError:
        message = "Failed to load image or audio file"
        body = self.error_body(400, message, "invalid_request_error")
        return _RefusedError(400, message, body=body)


class Vllm(ScriptedServer):
    """vLLM with one model, which is loaded from the start.

    Attributes:
        sleep_mode: Whether it was started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1.
        context: max_model_len; None: what the model was trained for.
    """

    kind = "vllm"
    default_port = 8000
    options = VLLM_OPTIONS
    can_disable_thinking = True
    default_models = (ScriptedModel("Qwen/Qwen2.5-VL-7B-Instruct", vision=True, context=32768),)

    def __init__(
        self,
        models: Models | None = None,
        *,
        sleep_mode: bool = False,
        context: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(models, **settings)
        (self.model,) = self.models.values()
        self.sleep_mode = sleep_mode
        self.context = context or self.model.context
        with self._changed:
            self._begin_load(self.model, self.model.name, load_s=0.0, counted=False)

    @property
    def sleeping(self) -> bool:
        """Whether the weights are out of the GPU's memory."""
        return not self.loaded

    def routes(self) -> dict[str, Handler]:
        routes = super().routes() | {
            "GET /version": lambda exchange: exchange.json({"version": "0.11.0"}),
            "GET /health": lambda exchange: exchange.whole(200, b""),
        }
        if self.sleep_mode:
            routes |= {
                "GET /is_sleeping": lambda exchange: exchange.json({"is_sleeping": self.sleeping}),
                "POST /sleep": self._sleep,
                "POST /wake_up": self._wake_up,
            }
        return routes

    def error_body(self, status: int, message: str, kind: str) -> Any:
        return {"error": {"message": message, "type": kind, "param": None, "code": status}}

    def _is_locked(self, record: RecordedRequest) -> bool:
        return record.path.startswith("/v1")

    def _no_access(self) -> _RefusedError:
        return _RefusedError(401, "Unauthorized", body={"error": "Unauthorized"})

    def _unknown_path(self, exchange: _Exchange) -> None:
        exchange.json({"detail": "Not Found"}, 404)

    def _v1_model(self, model: ScriptedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": CREATED,
            "owned_by": "vllm",
            "root": model.name,
            "parent": None,
            "max_model_len": self.context,
        }

    def _sleep(self, exchange: _Exchange) -> None:
        with self._changed:
            instances = list(self._instances.values())
        self._unload_and_wait(exchange, instances)
        exchange.whole(200, b"")

    def _wake_up(self, exchange: _Exchange) -> None:
        with self._changed:
            if not self._instances:
                self._begin_load(self.model, self.model.name)
        while self.sleeping:
            exchange.wait(POLL_S)
        exchange.whole(200, b"")

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        if record.model not in ("", self.model.name):
            message = f"The model `{record.model}` does not exist."
            raise _RefusedError(404, message, "NotFoundError")
        instance = self._instances.get(self.model.name)
        if instance is None or instance.gone_at is not None:
            raise _RefusedError(500, "The engine is sleeping", "InternalServerError")
        return instance

    def _no_images(self, model: ScriptedModel) -> _RefusedError:
        message = f"{model.name} is not a multimodal model"
        return _RefusedError(400, message, "BadRequestError")


class OpenAiServer(ScriptedServer):
    """Only the model list and chat; every model is always ready.

    Attributes:
        strict: Whether it refuses options outside OpenAI's own instead of ignoring them.
    """

    kind = "openai"
    default_port = 8000

    def __init__(
        self, models: Models | None = None, *, strict: bool = False, **settings: Any
    ) -> None:
        super().__init__(models, **settings)
        self.strict = strict
        with self._changed:
            for model in self.models.values():
                self._begin_load(model, model.name, load_s=0.0, counted=False)

    def _check_chat(self, exchange: _Exchange) -> None:
        if self.strict and exchange.record.ignored:
            names = ", ".join(exchange.record.ignored)
            raise _RefusedError(400, f"Unrecognized request arguments supplied: {names}")

    def _pick(self, record: RecordedRequest) -> _Instance | None:
        if record.model not in self._instances:
            message = f"The model `{record.model}` does not exist or you do not have access to it."
            raise _RefusedError(404, message)
        return self._instances[record.model]


KINDS: dict[str, type[ScriptedServer]] = {
    each.kind: each for each in (RouterServer, LlamaServer, LmStudio, LlamaSwap, Vllm, OpenAiServer)
}


def reply_from(value: Any) -> Scripted:
    """A reply from a script file: a fault's name, or Reply's fields, over "fault" if given."""
    if isinstance(value, str):
        return known(value)
    fields: dict[str, Any] = dict(value)
    base = FAULTS[fields.pop("fault")] if "fault" in fields else Reply()
    if "tokens" in fields:
        fields["tokens"] = tuple(fields["tokens"])
    return replace(base, **fields)


def server_from(kind: str, script: Mapping[str, Any], **more: Any) -> ScriptedServer:
    """A server as a script file describes it."""
    settings = {**script, **more}
    replies, standing = settings.pop("script", {}), settings.pop("always", {})
    server = KINDS[kind](**settings)
    for name, values in replies.items():
        server.script(name, *map(reply_from, values))
    for name, value in standing.items():
        server.always(name, reply_from(value))
    return server


def main() -> int:
    """Serve until Ctrl+C, printing each request."""
    parser = argparse.ArgumentParser(description="A scripted language-model server on loopback.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--port", type=int, help="0 takes any free port; default: the kind's own")
    parser.add_argument("--key", help="the API key that every request needs")
    parser.add_argument("--script", type=Path, help="JSON file: settings, models and replies")
    args = parser.parse_args()
    script = json.loads(args.script.read_text("utf-8")) if args.script else {}
    port = KINDS[args.kind].default_port if args.port is None else args.port
    shown = 0
    with server_from(args.kind, script, port=port, api_key=args.key) as server:
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
    """Write a line and flush it, since a parent process may wait for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
