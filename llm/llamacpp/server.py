"""The loopback server that speaks the part of Ollama's API that our client uses."""

from __future__ import annotations

import ipaddress
import json
import logging
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from datetime import datetime, timezone
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from .chat import answer_fields, chat_body, check_capabilities
from .describe import loaded_entry, shown_model, tag_entry, timestamp
from .engine import ClientGone, Engine, Lease
from .library import Library, Model, UnknownModel, UnreadableModel
from .process import WorkerEnded
from .pull import NotPullable, PullError, pull_steps
from .watch import ClientWatch
from .wire import ApiError, ChatRequest, bad_request, parse_chat, parse_generate

log = logging.getLogger(__name__)

VERSION = "0.30.0"
"""What /api/version says: the release of Ollama whose behavior this server follows."""
LARGEST_BODY = 512 << 20
_JSON = "application/json; charset=utf-8"
_LINES = "application/x-ndjson"


class EmbeddedServer:
    """A server on a free loopback port; a context manager. Starting it loads no model."""

    def __init__(self, library: Library | None = None, *, pull_folder: Path | None = None) -> None:
        """
        Args:
            library: the models it offers; None: those of `Library()`.
            pull_folder: where /api/pull puts models; None: `models_folder()`.
        """
        self._http = _HttpServer(library or Library(), pull_folder)
        self._thread = threading.Thread(
            target=self._http.serve, name="embedded server", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The base URL, such as "http://127.0.0.1:40123"."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def worker_pids(self) -> list[int]:
        """Return the process ids of the loaded models."""
        return [loaded.pid for loaded in self._http.engine.loaded()]

    def close(self) -> None:
        """Cut every connection, end every worker process and give the port back; idempotent."""
        self._http.end()
        self._thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    timeout = 0  # handle_request takes what is there and does not wait

    def __init__(self, library: Library, pull_folder: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.library = library
        self.pull_folder = pull_folder
        self.engine = Engine()
        self._closing = False
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._wake, self._waker = socket.socketpair()

    def serve(self) -> None:
        # serve_forever wakes up twice a second to see whether it should end; this sleeps.
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._closing:
                selector.select()
                self.handle_request()
        self.server_close()
        self._wake.close()

    def end(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            connections = list(self._connections)
        self.engine.close()
        for connection in connections:
            _shut(connection)
        self._waker.close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            if not self._closing:
                self._connections.add(request)
            return not self._closing

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exc_info()[1], ConnectionError):
            log.debug("A client closed its connection.")
        else:
            log.exception("A request to the embedded server failed.")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version = "image-refinery"

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    @property
    def _app(self) -> _HttpServer:
        return cast("_HttpServer", self.server)

    def _dispatch(self, method: str) -> None:
        self._started = time.monotonic()
        self._answered = False
        try:
            self._route(method)
        except (ClientGone, ConnectionError):
            self.close_connection = True

    def _route(self, method: str) -> None:
        methods = self._ROUTES.get(urlsplit(self.path).path)
        try:
            # Read in any case: closing with a body unread would reset the connection, and the
            # answer with it.
            body = self._read_body()
            if not _is_loopback(self.headers.get("Host"), self.headers.get("Origin")):
                self._send(HTTPStatus.FORBIDDEN, b"", _JSON)
            elif methods is None:
                self._send(HTTPStatus.NOT_FOUND, b"404 page not found", "text/plain")
            elif method not in methods:
                self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"405 method not allowed", "text/plain")
            else:
                methods[method](self, body)
        except ApiError as error:
            self._fail(error)
        except UnknownModel as error:
            self._fail(ApiError(HTTPStatus.NOT_FOUND, str(error)))
        except UnreadableModel as error:
            self._fail(ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)))

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            self.close_connection = True
            raise ApiError(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is required")
        if int(length) > LARGEST_BODY:
            self.close_connection = True
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
        return self.rfile.read(int(length))

    # What is answered at once

    def _root(self, body: bytes) -> None:
        self._send(HTTPStatus.OK, b"Ollama is running", "text/plain; charset=utf-8")

    def _version(self, body: bytes) -> None:
        self._send_json({"version": VERSION})

    def _tags(self, body: bytes) -> None:
        self._send_json({"models": [tag_entry(model) for model in self._app.library.models()]})

    def _show(self, body: bytes) -> None:
        self._send_json(shown_model(self._app.library.find(_model_name(_json_object(body)))))

    def _ps(self, body: bytes) -> None:
        models = [loaded_entry(loaded) for loaded in self._app.engine.loaded()]
        self._send_json({"models": models})

    # What takes its time

    def _chat(self, body: bytes) -> None:
        self._answer(parse_chat(_json_object(body)), {"message": answer_fields("", "")})

    def _generate(self, body: bytes) -> None:
        self._answer(parse_generate(_json_object(body)), {"response": ""})

    def _answer(self, request: ChatRequest, empty: dict[str, Any]) -> None:
        model = self._app.library.find(request.model)
        if request.unknown_options:
            log.warning("Options without a meaning here: %s.", ", ".join(request.unknown_options))
        if not request.messages and request.keep_alive_s == 0:
            self._app.engine.unload(model)
            self._send_json(self._line(request, **empty, done=True, done_reason="unload"))
            return
        check_capabilities(request, model)
        with ClientWatch(self.connection) as client:
            engine = self._app.engine
            with engine.lease(model, request.load, request.keep_alive_s, client) as lease:
                if request.messages:
                    self._talk(request, model, lease, client)
                else:
                    self._send_json(self._line(request, **empty, done=True, done_reason="load"))

    def _talk(self, request: ChatRequest, model: Model, lease: Lease, client: ClientWatch) -> None:
        text: list[str] = []
        thinking: list[str] = []
        for line in self._chat_lines(request, model, lease, client):
            if request.stream:
                self._send_line(line)
            elif not line["done"]:
                text.append(line["message"]["content"])
                thinking.append(line["message"].get("thinking", ""))
            else:
                line["message"] = answer_fields("".join(text), "".join(thinking))
                self._send_json(line)
        if request.stream:
            self.wfile.write(b"0\r\n\r\n")

    def _chat_lines(
        self, request: ChatRequest, model: Model, lease: Lease, client: ClientWatch
    ) -> Iterator[dict[str, Any]]:
        """Yield Ollama's lines, the last of them with the counts and durations."""
        worker = lease.worker
        # llama.cpp looks for a closed connection only between batches and once a second, which for
        # a long prompt is seconds late; between tokens it notices at once.
        client.on_gone(worker.kill)
        try:
            with closing(worker.open_chat(chat_body(request, model))) as answer:
                for number, chunk in enumerate(answer):
                    if number == 0:
                        client.on_gone(answer.stop)
                    fields = answer_fields(chunk.text, chunk.thinking)
                    if chunk.final is None:
                        yield self._line(request, message=fields, done=False)
                    else:
                        yield self._line(
                            request,
                            message=fields,
                            done=True,
                            done_reason=chunk.final["finish_reason"],
                            **self._durations(chunk.final, lease),
                        )
        except WorkerEnded as error:
            if client.gone:
                raise ClientGone from error
            text = worker.end_reason()
            raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        finally:
            client.on_gone(None)

    def _durations(self, final: dict[str, Any], lease: Lease) -> dict[str, int]:
        """Return Ollama's counts, and durations in nanoseconds."""
        timings = final["timings"]
        return {
            "total_duration": round((time.monotonic() - self._started) * 1e9),
            "load_duration": round(lease.load_s * 1e9),
            "prompt_eval_count": final["usage"]["prompt_tokens"],
            "prompt_eval_duration": round(timings["prompt_ms"] * 1e6),
            "eval_count": final["usage"]["completion_tokens"],
            "eval_duration": round(timings["predicted_ms"] * 1e6),
        }

    def _pull(self, body: bytes) -> None:
        values = _json_object(body)
        name = _model_name(values)
        stream = values.get("stream") is not False
        last: dict[str, Any] = {}
        try:
            # Closed when a write to the client fails, which ends the download.
            with closing(_pull_lines(name, self._app.pull_folder)) as lines:
                for last in lines:
                    if stream:
                        self._send_line(last)
        except PullError as error:
            known = not isinstance(error, NotPullable)
            text = str(error) if known else "pull model manifest: file does not exist"
            raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text) from error
        if stream:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send_json(last)

    # Writing

    def _line(self, request: ChatRequest, **fields: Any) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        return {"model": request.model, "created_at": timestamp(now), **fields}

    def _fail(self, error: ApiError) -> None:
        if self._answered:
            self._send_line({"error": error.text})
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send_json({"error": error.text}, error.status)

    def _send_json(self, value: dict[str, Any], status: int = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(value).encode(), _JSON)

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self._answered = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_line(self, value: dict[str, Any]) -> None:
        """Send one line of a stream; the first brings the header, as in Ollama."""
        if not self._answered:
            self._answered = True
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", _LINES)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        line = json.dumps(value).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    _ROUTES: ClassVar[dict[str, dict[str, Callable[[_Handler, bytes], None]]]] = {
        "/": {"GET": _root, "HEAD": _root},
        "/api/version": {"GET": _version, "HEAD": _version},
        "/api/tags": {"GET": _tags, "HEAD": _tags},
        "/api/ps": {"GET": _ps},
        "/api/show": {"POST": _show},
        "/api/chat": {"POST": _chat},
        "/api/generate": {"POST": _generate},
        "/api/pull": {"POST": _pull},
    }


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def _is_loopback(host: str | None, origin: str | None) -> bool:
    """Whether a request comes from this machine's own programs: a web page must reach the server
    neither by a name of its own that resolves to loopback, nor from another origin.

    >>> _is_loopback("127.0.0.1:8000", None), _is_loopback("[::1]", None), _is_loopback("", None)
    (True, True, True)
    >>> _is_loopback("evil.example", None), _is_loopback("localhost", "https://evil.example")
    (False, False)
    """
    try:
        hosts = [urlsplit(f"//{host}").hostname] if host else []
        hosts += [urlsplit(origin).hostname] if origin else []
        return all(_is_loopback_name(name or "") for name in hosts)
    except ValueError:  # a malformed IPv6 address
        return False


def _is_loopback_name(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        raise bad_request("missing request body")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: also text that is not UTF-8
        raise bad_request(f"invalid JSON: {error}") from error
    if not isinstance(value, dict):
        raise bad_request("the request body must be a JSON object")
    return cast("dict[str, Any]", value)


def _model_name(body: dict[str, Any]) -> str:
    name = body.get("model") or body.get("name") or ""
    if not isinstance(name, str) or not name:
        raise bad_request("model is required")
    return name


def _pull_lines(name: str, folder: Path | None) -> Generator[dict[str, Any], None, None]:
    for step in pull_steps(name, folder=folder):
        line: dict[str, Any] = {"status": step.status}
        if step.digest:
            line |= {"digest": step.digest, "total": step.total, "completed": step.completed}
        yield line
