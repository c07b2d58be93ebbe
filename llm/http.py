"""HTTP requests to one language-model server that can be cancelled at any moment.

`requests` blocks until the first byte, and a server sends none while it loads a model and processes
the prompt. So a thread makes each request. The caller's thread waits on a queue, polls `cancelled`
and keeps the deadlines. To cancel, it shuts the socket down: the blocked read ends, and the server
detects the closed connection and stops its work. (`Session.close` from another thread does not do
that.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeAlias, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter

from .errors import (
    BadRequest,
    Cancelled,
    ConnectionBroke,
    LLMError,
    Redirected,
    ServerTimeout,
    ServerUnreachable,
    UnexpectedResponse,
    WrongForm,
)
from .servers import Server

Json: TypeAlias = dict[str, Any]
CancelCheck: TypeAlias = Callable[[], bool]

POLL_S = 0.1
"""The longest time between two polls of `cancelled`, in seconds."""
GATHER_S = 0.01
"""How long lines gather in the socket, in seconds: a wake-up costs more CPU time than a token."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longer lines and bodies are refused, so that memory stays bounded whatever the server sends."""
_MAX_ERROR_BYTES = 64 * 1024
_WAITED_S = 0.0003
"""A read that took longer than this, in seconds, had to wait: no more data has arrived yet."""
_THREAD_GRACE_S = 5.0
"""How much longer the thread waits than the caller, so that the caller's deadline comes first."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait, in seconds.

    Attributes:
        connect_s: for the connection; a server on the local network needs milliseconds.
        first_byte_s: for the first byte of an answer. Ollama sends nothing while it loads a model
            and processes the prompt, and aborts a stalled load after 5 minutes.
        silence_s: between two tokens.
        quick_s: for calls that need no model.
    """

    connect_s: float = 3.0
    first_byte_s: float = 600.0
    silence_s: float = 120.0
    quick_s: float = 10.0


class Http:
    """One `requests.Session` to one server. Several threads may use it at a time.

    Every method raises `Cancelled`, ServerUnreachable, ServerTimeout, ConnectionBroke, or an
    `UnexpectedResponse` with the status and the body of any status but 2xx.
    """

    def __init__(self, server: Server, timeouts: Timeouts) -> None:
        self.server = server
        self.timeouts = timeouts
        self.session = _new_session(server)

    def get(self, path: str, cancelled: CancelCheck | None = None) -> bytes:
        """Return the body at `path`."""
        return self._body("GET", path, None, cancelled)

    def post(self, path: str, body: Json, cancelled: CancelCheck | None = None) -> bytes:
        """Send `body` as JSON and return the body of the response."""
        return self._body("POST", path, body, cancelled)

    def stream(
        self,
        path: str,
        body: Json,
        *,
        doing: str,
        first_byte_s: float | None = None,
        cancelled: CancelCheck | None = None,
    ) -> Generator[bytes]:
        """Send `body` as JSON and yield each line of the response as it arrives, except blank ones.

        Closing the iterator closes the connection, so that the server stops.

        Args:
            doing: what the server does during the request, for the message of a time-out.
            first_byte_s: overrides `timeouts.first_byte_s`, in seconds.
        """
        first_s = first_byte_s or self.timeouts.first_byte_s
        silence_s = max(self.timeouts.silence_s, first_byte_s or 0.0)
        yield from self._lines("POST", path, body, first_s, silence_s, doing, cancelled)

    def close(self) -> None:
        """Close idle connections. A later request opens a new one."""
        self.session.close()

    def _body(
        self, method: str, path: str, body: Json | None, cancelled: CancelCheck | None
    ) -> bytes:
        limit_s, doing = self.timeouts.quick_s, "answering " + path
        return b"\n".join(self._lines(method, path, body, limit_s, limit_s, doing, cancelled))

    def _lines(
        self,
        method: str,
        path: str,
        body: Json | None,
        first_s: float,
        silence_s: float,
        doing: str,
        cancelled: CancelCheck | None,
    ) -> Generator[bytes]:
        connect_s = self.timeouts.connect_s
        call = _Call(self, method, path, body, max(first_s, silence_s) + _THREAD_GRACE_S)
        call.start()
        limit_s = first_s + connect_s
        try:
            while (lines := call.wait(limit_s, cancelled)) is not None:
                yield from lines
                limit_s = silence_s
        except TimeoutError:
            raise ServerTimeout(self.server, doing, limit_s) from None
        finally:
            call.abort()


def json_object(text: bytes, server: Server) -> Json:
    """Return the JSON object in `text`.

    Raises:
        WrongForm: `text` is something else.
    """
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise WrongForm(server, text[:300].decode("utf-8", "replace")) from None
    if not isinstance(value, dict):
        raise WrongForm(server, str(value)[:300])
    return cast("Json", value)


def innermost(error: BaseException) -> BaseException:
    """Return the original cause of an error that libraries have wrapped."""
    while True:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        inner = inner or error.__cause__ or error.__context__
        if inner is None:
            return error
        error = inner


class _Call(threading.Thread):
    """The thread that sends one request and reads its response."""

    def __init__(
        self, client: Http, method: str, path: str, body: Json | None, read_s: float
    ) -> None:
        super().__init__(name="image-refinery-http", daemon=True)
        self._server = client.server
        self._send = partial(
            client.session.request,
            method,
            client.server.url + path,
            data=None if body is None else _encoded(body),
            headers=None if body is None else {"Content-Type": "application/json"},
            stream=True,
            timeout=(client.timeouts.connect_s, read_s),
            allow_redirects=False,
        )
        self._read: queue.SimpleQueue[list[bytes] | Exception | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._ended = self._aborted = False

    def wait(self, limit_s: float, cancelled: CancelCheck | None) -> list[bytes] | None:
        """Return the next lines, None at the end; raise the thread's error, or TimeoutError."""
        deadline = time.monotonic() + limit_s
        while True:
            if cancelled is not None and cancelled():
                raise Cancelled
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            with contextlib.suppress(queue.Empty):
                read = self._read.get(timeout=min(left_s, POLL_S))
                self._ended = not isinstance(read, list)
                if isinstance(read, Exception):
                    raise read
                return read

    def abort(self) -> None:
        """Close the connection, unless the response was read to its end."""
        if not self._ended:
            with self._lock:
                self._aborted = True
                if self._socket is not None:
                    _shut(self._socket)
        # Only a DNS lookup or a pending connection can delay the thread, for connect_s at most.
        self.join(timeout=None if self._ended else POLL_S)

    def uses(self, sock: socket.socket) -> None:
        """Remember the socket of this request; its connection calls this."""
        with self._lock:
            self._socket = sock
            if self._aborted:
                _shut(sock)

    def run(self) -> None:
        try:
            with self._send() as response:
                _check_status(response, self._server)
                asked = time.monotonic()
                for lines in split_lines(response, self._server):
                    self._read.put(lines)
                    if time.monotonic() - asked > _WAITED_S:
                        time.sleep(GATHER_S)
                    asked = time.monotonic()
            self._read.put(None)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self._read.put(self._failure(innermost(error)))
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            self._read.put(error)

    def _failure(self, cause: BaseException) -> LLMError:
        if self._socket is not None:
            return ConnectionBroke(self._server, _in_words(cause))
        refused = isinstance(cause, ConnectionRefusedError)
        return ServerUnreachable(self._server, _in_words(cause), refused=refused)


def _check_status(response: requests.Response, server: Server) -> None:
    status = response.status_code
    if status >= 400:
        body = next(response.iter_content(_MAX_ERROR_BYTES), b"")
        raise UnexpectedResponse(server, status, body.decode("utf-8", "replace"))
    if status >= 300:
        raise Redirected(server, status, response.headers.get("Location", ""))


def split_lines(response: requests.Response, server: Server) -> Iterator[list[bytes]]:
    """Yield the lines of each part of a body, split at newlines only, without blank ones.

    A chunked body (Ollama's) is read chunk by chunk. Other bodies are read in small parts, or the
    library would wait for the end.
    """
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    size = 65536 if chunked or "Content-Length" in response.headers else 64
    rest: list[bytes] = []
    held = 0
    for piece in response.iter_content(size):
        *complete, last = piece.split(b"\n")
        if complete:
            complete[0] = b"".join([*rest, complete[0]])
            rest, held = [], 0
            if lines := [line for line in complete if line.strip()]:
                yield lines
        rest.append(last)
        held += len(last)
        if held > MAX_LINE_BYTES:
            raise WrongForm(server, f"a line of more than {MAX_LINE_BYTES // 2**20} MB")
    if (line := b"".join(rest)).strip():
        yield [line]


def _encoded(body: Json) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request cannot be written as JSON ({error}).") from None


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The plain method: that of an SSL socket would remove the TLS state that the reader uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _in_words(cause: BaseException) -> str:
    """Return a cause in plain words, such as "Connection refused"."""
    if isinstance(cause, socket.timeout):
        return "the connection timed out"
    if isinstance(cause, (ValueError, http.client.IncompleteRead)):
        return "it ended in the middle of the answer"  # clearer than the parser's message
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return " ".join(str(cause).split())[:120] or type(cause).__name__


class _ReportsSocket:
    """A connection that reports its socket to the `_Call` that uses it."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._report()

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if self.sock is not None:  # kept alive from an earlier call
            self._report()
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def _report(self) -> None:
        call = threading.current_thread()
        if isinstance(call, _Call):
            call.uses(self.sock)


@lru_cache
def _reporting(connection: type) -> type:
    return type(connection.__name__, (_ReportsSocket, connection), {})


class _Adapter(HTTPAdapter):
    """Makes connections that report their sockets, directly or through a proxy."""

    def __init__(self) -> None:
        self._pools: set[Any] = set()
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if pool not in self._pools:
            self._pools.add(pool)
            pool.ConnectionCls = _reporting(pool.ConnectionCls)
        return pool

    def close(self) -> None:
        # urllib3 leaves this to the garbage collector, and a traceback may keep a pool alive.
        while self._pools:
            self._pools.pop().close()
        super().close()


def _new_session(server: Server) -> requests.Session:
    session = requests.Session()
    # Never use a proxy for this machine: it causes half of all "cannot connect" reports.
    session.trust_env = not server.is_loopback
    session.mount("http://", _Adapter())
    session.mount("https://", _Adapter())
    if server.may_send_key and server.api_key:
        session.auth = partial(_with_key, server.api_key)
    elif server.may_send_key and server.login:
        session.auth = server.login
    return session


def _with_key(key: str, request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {key}"
    return request
