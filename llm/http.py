"""HTTP for the client: requests that can be cancelled at any moment, and one funnel for errors.

`requests` blocks until the first byte, and Ollama sends none while it loads a model and reads the
prompt. So each call runs in a thread of its own, and the caller's thread waits on a queue, polls
`cancelled` and keeps the deadlines. To cancel, the socket is shut down: the blocked read ends at
once, the server sees the connection close and stops its work. (`Session.close` from another thread
does nothing of the kind.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from .body import to_json
from .errors import (
    Cancelled,
    ConnectionBroke,
    OllamaError,
    ServerTimeout,
    ServerUnreachable,
    UnexpectedResponse,
    from_response,
    shorten,
)

if TYPE_CHECKING:
    import requests

    from .servers import Server

Json: TypeAlias = dict[str, Any]
CancelCheck: TypeAlias = Callable[[], bool]

POLL_S = 0.1
"""How often `cancelled` is asked at least, in seconds."""
GATHER_S = 0.02
"""Tokens that come quicker are handed on together: waking a thread costs more than reading one."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line, or a longer body, is refused: memory stays bounded whatever the server sends."""
_ERROR_BODY_BYTES = 64 * 1024
_OUTLIVES_S = 5.0
_PEEK_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait, in seconds.

    Attributes:
        connect_s: for the connection; a server on this machine or in the house needs milliseconds.
        first_byte_s: for the first byte of an answer; Ollama is silent while it loads a model and
            reads the prompt, and itself gives up on a load that has stalled for 5 minutes.
        silence_s: between two tokens.
        quick_s: for calls that need no model.
    """

    connect_s: float = 3.0
    first_byte_s: float = 600.0
    silence_s: float = 120.0
    quick_s: float = 10.0


class Transport:
    """One `requests.Session` to one server. Calls follow one another; use one per thread."""

    def __init__(self, server: Server, timeouts: Timeouts) -> None:
        self.url = server.url
        self.place = server.place
        self.timeouts = timeouts
        self._server = server
        self._session: requests.Session | None = None

    @property
    def key_withheld(self) -> bool:
        """A key is configured, but this connection is not safe enough for it."""
        return self._server.api_key is not None and not self._server.may_send_key

    def get(self, path: str, cancelled: CancelCheck | None = None) -> Json:
        """Return the JSON object at `path`."""
        return self._single("GET", path, None, cancelled, "answering " + path)

    def post(self, path: str, body: Json, cancelled: CancelCheck | None = None) -> Json:
        """Send `body`, return the JSON object that answers it."""
        return self._single("POST", path, body, cancelled, "answering " + path)

    def stream(
        self,
        path: str,
        body: Json,
        *,
        doing: str,
        first_byte_s: float | None = None,
        cancelled: CancelCheck | None = None,
    ) -> Iterator[Json]:
        """Send `body` and yield each JSON line of the answer as it arrives.

        Closing the iterator closes the connection, so that the server stops.

        Args:
            doing: what the server does meanwhile, for the message of a time-out.
            first_byte_s: other than in `timeouts`, in seconds.
        """
        limit = first_byte_s or self.timeouts.first_byte_s
        silence = max(self.timeouts.silence_s, first_byte_s or 0.0)
        model = str(body.get("model", ""))
        call = _Call(self, "POST", path, body, max(limit, silence))
        for line in call.lines(limit, silence, doing, cancelled):
            yield self._object(line, model, path)

    def close(self) -> None:
        """Close idle connections; safe to call twice."""
        if self._session is not None:
            self._session.close()
            self._session = None

    @property
    def session(self) -> requests.Session:
        """The session, made on first use: importing requests takes a while."""
        if self._session is None:
            self._session = _new_session(self._server)
        return self._session

    def _single(
        self,
        method: str,
        path: str,
        body: Json | None,
        cancelled: CancelCheck | None,
        doing: str,
    ) -> Json:
        limit = self.timeouts.quick_s
        call = _Call(self, method, path, body, limit)
        text = b"\n".join(call.lines(limit, limit, doing, cancelled))
        return self._object(text, str((body or {}).get("model", "")), path)

    def _object(self, text: bytes, model: str, path: str) -> Json:
        try:
            value: Any = json.loads(text)
        except (ValueError, RecursionError):
            said = shorten(text[:300].decode("utf-8", "replace"))
            raise UnexpectedResponse(self.place, 200, said, _NOT_OLLAMA) from None
        if not isinstance(value, dict):
            raise UnexpectedResponse(self.place, 200, shorten(str(value)[:300]), _NOT_OLLAMA)
        message = cast("Json", value)
        if message.get("error"):
            raise from_response(
                200,
                error_text(message) or text.decode("utf-8", "replace"),
                model=model,
                url=self.place,
                key_withheld=self.key_withheld,
                path=path,
                other_api=self.other_api,
            )
        return message

    def other_api(self) -> str:
        """Return which API a server speaks that lacks a path: "ollama" in part, "openai", or ""."""
        deadline = time.monotonic() + _PEEK_S
        if self._peek("/api/version", deadline).get("version"):
            return "ollama"
        # Empty where no model is loaded.
        if isinstance(self._peek("/v1/models", deadline).get("data"), list):
            return "openai"
        return ""

    def _peek(self, path: str, deadline: float) -> Json:
        """Return the JSON object at a path, or {} where none arrives before the deadline."""
        call = _Call(self, "GET", path, None, _PEEK_S, other_api=str)
        lines = call.lines(
            _PEEK_S, _PEEK_S, "answering " + path, lambda: time.monotonic() > deadline
        )
        try:
            value: Any = json.loads(b"\n".join(lines))
        except (OllamaError, ValueError, RecursionError):
            return {}
        return cast("Json", value) if isinstance(value, dict) else {}


def error_text(body: Json) -> str:
    """Return a server's own words from the body of an error, "" where there are none.

    >>> error_text({"error": "model 'x' not found"})  # Ollama
    "model 'x' not found"
    >>> error_text({"error": {"code": 404, "message": "File Not Found"}})  # OpenAI's form
    'File Not Found'
    >>> error_text({"detail": "Not Found"})  # FastAPI
    'Not Found'
    >>> error_text({"detail": [{"loc": ["body", "model"], "msg": "Field required"}]})
    'Field required'
    >>> error_text({"object": "error", "message": "Unknown path"})  # vLLM's older form
    'Unknown path'
    """
    for value in (body.get("error"), body.get("detail"), body.get("message")):
        parts = cast("list[Any]", value) if isinstance(value, list) else [value]
        words = [_message(part) for part in parts]
        if any(words):
            return "; ".join(filter(None, words))
    return ""


def _message(value: Any) -> str:
    if isinstance(value, dict):
        fields = cast("Json", value)
        value = fields.get("message") or fields.get("msg")
    return value if isinstance(value, str) else ""


_NOT_OLLAMA = (
    "This is not what Ollama answers: check OLLAMA_BASE_URL, and whether a proxy is between."
)


class _Call:
    """One request in a thread of its own, which feeds lines to the thread that asked."""

    def __init__(
        self,
        transport: Transport,
        method: str,
        path: str,
        body: Json | None,
        read_s: float,
        other_api: Callable[[], str] | None = None,
    ) -> None:
        self._transport = transport
        self._other_api = other_api or transport.other_api
        self._request = (method, transport.url + path, None if body is None else _encoded(body))
        self._model = str((body or {}).get("model", ""))
        self._path = path
        # The asking thread keeps the deadline; this one only must not outlive it for long.
        self._read_s = read_s + transport.timeouts.connect_s + _OUTLIVES_S
        self._lines: deque[bytes] = deque()
        self._wakes: queue.SimpleQueue[Exception | Literal["more", "end"]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    def lines(
        self,
        first_s: float,
        silence_s: float,
        doing: str,
        cancelled: CancelCheck | None,
    ) -> Iterator[bytes]:
        session = self._transport.session  # made here: the thread must not race for it
        worker = threading.Thread(
            target=self._run, args=(session,), name="image-refinery-http", daemon=True
        )
        worker.start()
        finished = False
        limit = first_s + self._transport.timeouts.connect_s
        try:
            while True:
                wake = self._next(limit, doing, cancelled)
                finished = wake != "more"
                for _ in range(len(self._lines)):
                    yield self._lines.popleft()
                if isinstance(wake, Exception):
                    raise wake
                if finished:
                    return
                limit = silence_s
        finally:
            if not finished:
                self.abort()
            # A shut socket ends the thread within a moment; only a name look-up or a connection
            # that is still being made can hold it, for connect_s at most.
            worker.join(timeout=POLL_S if not finished else None)

    def _next(
        self, limit_s: float, doing: str, cancelled: CancelCheck | None
    ) -> Exception | Literal["more", "end"]:
        """Wait for lines, or for the end: nothing is put into `_lines` after that."""
        deadline = time.monotonic() + limit_s
        while True:
            if cancelled is not None and cancelled():
                raise Cancelled(self._transport.place)
            left = deadline - time.monotonic()
            if left <= 0:
                raise ServerTimeout(self._transport.place, doing, limit_s)
            with contextlib.suppress(queue.Empty):
                return self._wakes.get(timeout=min(left, POLL_S))
            if self._lines:  # the last before a pause, for which nobody was woken
                return "more"

    def abort(self) -> None:
        """Close the connection from outside, now or as soon as there is one."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                _shut(self._socket)

    def connected(self, sock: socket.socket) -> None:
        """The connection tells which socket serves this call."""
        with self._lock:
            self._socket = sock
            if self._aborted:
                _shut(sock)

    def _run(self, session: requests.Session) -> None:
        import requests
        import urllib3

        _current.call = self
        method, url, data = self._request
        headers = None if data is None else {"Content-Type": "application/json"}
        timeouts = (self._transport.timeouts.connect_s, self._read_s)
        try:
            with session.request(
                method,
                url,
                data=data,
                headers=headers,
                stream=True,
                timeout=timeouts,
                allow_redirects=False,
            ) as response:
                self._check_status(response, self._model)
                woken = -GATHER_S
                for lines in _split_lines(response, self._transport.place):
                    self._lines.extend(lines)
                    if (now := time.monotonic()) - woken >= GATHER_S:
                        woken = now
                        self._wakes.put("more")
            self._wakes.put("end")
        except OllamaError as error:
            self._wakes.put(error)
        except requests.exceptions.ReadTimeout:
            self._wakes.put(ServerTimeout(self._transport.place, "answering", self._read_s))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self._wakes.put(self._failure(error))
        except Exception as error:  # noqa: BLE001 - a mistake of ours: now, not as a time-out later
            self._wakes.put(error)
        finally:
            _current.call = None

    def _check_status(self, response: requests.Response, model: str) -> None:
        status = response.status_code
        if status < 300:
            return
        if status < 400:
            target = shorten(response.headers.get("Location", ""))
            raise UnexpectedResponse(
                self._transport.place, status, target, "Set OLLAMA_BASE_URL to that address."
            )
        text = next(response.iter_content(_ERROR_BODY_BYTES), b"").decode("utf-8", "replace")
        said, signin_url = text, ""
        with contextlib.suppress(ValueError, RecursionError):
            body: Any = json.loads(text)
            if isinstance(body, dict):
                fields = cast("Json", body)
                said, signin_url = error_text(fields) or text, str(fields.get("signin_url", ""))
        raise from_response(
            status,
            said,
            model=model,
            url=self._transport.place,
            signin_url=signin_url,
            key_withheld=self._transport.key_withheld,
            path=self._path,
            other_api=self._other_api,
        )

    def _failure(self, error: Exception) -> OllamaError:
        place, cause = self._transport.place, _innermost(error)
        if self._socket is None:
            refused = isinstance(cause, ConnectionRefusedError)
            return ServerUnreachable(place, _reason(cause), refused=refused)
        return ConnectionBroke(place, _reason(cause))


_current = threading.local()


def _encoded(body: Json) -> bytes:
    try:
        return to_json(body)
    except (ValueError, RecursionError) as error:
        raise OllamaError(
            f"This request cannot be written as JSON ({error}): make every number of the options "
            "finite, and the format less deep."
        ) from None


def _split_lines(response: requests.Response, url: str) -> Iterator[list[bytes]]:
    """Yield the non-empty lines of each piece of the body, split at newlines only.

    A chunked body (Ollama's own) is yielded chunk by chunk; any other is read in small pieces, or
    the library would wait for the end.
    """
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    has_length = "Content-Length" in response.headers
    size = 65536 if chunked or has_length else 64
    rest: list[bytes] = []
    held = 0
    for piece in response.iter_content(size):
        *complete, last = piece.split(b"\n")
        if complete:
            complete[0] = b"".join([*rest, complete[0]])
            rest, held = [], 0
            if lines := [line for line in complete if line.strip()]:
                yield lines
        if last:
            rest.append(last)
            held += len(last)
        if held > MAX_LINE_BYTES:
            said = f"a line of more than {MAX_LINE_BYTES // 2**20} MB"
            raise UnexpectedResponse(url, 200, said, _NOT_OLLAMA)
    if (line := b"".join(rest)).strip():
        yield [line]


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The plain method: ssl's own would first take the TLS state from under the reader.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _innermost(error: BaseException) -> BaseException:
    """The cause behind the errors that the libraries wrapped around it."""
    seen = error
    while True:
        inner = getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        inner = inner or seen.__cause__ or seen.__context__
        if inner is None:
            return seen
        seen = inner


def _reason(cause: BaseException) -> str:
    """A cause in words: "Connection refused"."""
    if isinstance(cause, socket.timeout):
        return "no connection within the time"
    if isinstance(cause, (ValueError, http.client.IncompleteRead)):
        return "it ended in the middle of the answer"  # not the parser's words for that
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return shorten(str(cause), 120) or type(cause).__name__


def _new_session(server: Server) -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Connection(_Remembers, HTTPConnection):
        pass

    class SecureConnection(_Remembers, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection  # pyright: ignore[reportAssignmentType]

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection  # pyright: ignore[reportAssignmentType]

    pools: dict[str, Any] = {"http": Pool, "https": SecurePool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = dict(pools)

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(*args, **kwargs)
            if manager.proxy is not None:  # SOCKS has pools of its own
                manager.pool_classes_by_scheme = dict(pools)
            return manager

        def close(self) -> None:
            # The library leaves this to the garbage collector, and the traceback of an error keeps
            # connections from it for a long time.
            for manager in (self.poolmanager, *self.proxy_manager.values()):
                for pool in [manager.pools[key] for key in manager.pools.keys()]:  # noqa: SIM118
                    pool.close()
            super().close()

    session = requests.Session()
    # A proxy never serves the own machine, and half of the "cannot connect" reports are one.
    session.trust_env = not server.is_loopback
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    if server.may_send_key and server.api_key:
        key = server.api_key

        def bearer(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Bearer {key}"
            return request

        session.auth = bearer
    elif server.login and server.may_send_key:
        session.auth = server.login
    return session


class _Remembers:
    """A connection that tells the call which it serves its socket."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._tell()

    def request(self, *args: Any, **kwargs: Any) -> Any:
        if self.sock is not None:  # kept alive from an earlier call
            self._tell()
        return super().request(*args, **kwargs)  # type: ignore[misc]

    def _tell(self) -> None:
        call: _Call | None = getattr(_current, "call", None)
        if call is not None:
            call.connected(self.sock)
