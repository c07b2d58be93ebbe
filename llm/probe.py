"""Find out which kind of server is at an address, from the structure of its responses.

A status is no proof: LM Studio answers 200 to every unknown path, llama-swap has a version like
Ollama's, and a single llama-server lists models like a router.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, TypeAlias, cast

from .errors import (
    Cancelled,
    LLMError,
    NoServer,
    Redirected,
    ServerTimeout,
    ServerUnreachable,
    UnexpectedResponse,
    UnknownServer,
)
from .failures import explain
from .http import CancelCheck, Http, Json, Timeouts
from .servers import Server

PORTS = (11434, 1234, 8080, 8000)
"""Where Ollama, LM Studio, llama-server and vLLM listen by default."""
PROBE_TIMEOUT_S = 2.0
"""For all probes of a server together."""
_KNOWN_S = 10.0
"""How long the proven kind of a given address is cached."""

_MISSING: Json = {}
"""The body returned for a path that the server does not have."""
_LOADING: Json = {}
"""The body returned for any path of a llama-server that is loading its model."""

_Get: TypeAlias = Callable[[str], Json]
_Proof: TypeAlias = tuple[str, Callable[[_Get], bool]]

_known: dict[str, tuple[str, float]] = {}
_lock = threading.Lock()


def identify(server: Server, cancelled: CancelCheck | None = None) -> Server:
    """Return `server` with its kind, and with its address if it has to be searched for.

    Sends only GET requests, none of which loads a model. A search uses only loopback addresses,
    and sends no key.

    Raises:
        NoServer: the search found nothing.
        LLMError: the address does not answer, or not like any known server.
        Cancelled: as for any request.
    """
    if server.search:
        for found in find_servers(cancelled):
            if server.kind in ("", found.kind):
                # OLLAMA_API_KEY is not for other servers that happen to run here.
                key = server.api_key if found.kind == "ollama" else None
                return replace(server, url=found.url, kind=found.kind, search=False, api_key=key)
        raise NoServer(server, PORTS)
    if server.kind:
        return server
    with _lock:
        kind, since = _known.get(server.url, ("", 0.0))
    if not kind or time.monotonic() - since > _KNOWN_S:
        kind = _kind_at(server, _PROOFS, cancelled)
        with _lock:
            _known[server.url] = kind, time.monotonic()
    return replace(server, kind=kind)


def find_servers(cancelled: CancelCheck | None = None) -> Iterator[Server]:
    """Yield the servers on this machine that prove their kind, in the order of `PORTS`."""
    # Each in a thread: Windows takes two seconds to refuse a connection.
    looks = [_in_thread(port) for port in PORTS]
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    for look in looks:
        while not wait([look], timeout=0.02).done and time.monotonic() < deadline:
            if cancelled is not None and cancelled():
                raise Cancelled
        if look.done() and (server := look.result()):
            yield server


def _in_thread(port: int) -> Future[Server | None]:
    future: Future[Server | None] = Future()
    server = Server(url=f"http://127.0.0.1:{port}", kind="")

    def look() -> None:
        try:
            kind = _kind_at(server, (_OLLAMA_LIST, *_PROOFS[1:]))
        except Exception:  # noqa: BLE001 - some other program listens there
            future.set_result(None)
        else:
            future.set_result(replace(server, name=kind, kind=kind))

    threading.Thread(target=look, name="image-refinery-probe", daemon=True).start()
    return future


def _kind_at(server: Server, proofs: Sequence[_Proof], cancelled: CancelCheck | None = None) -> str:
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    http = Http(server, Timeouts(connect_s=PROBE_TIMEOUT_S, quick_s=PROBE_TIMEOUT_S))
    refused: UnexpectedResponse | None = None
    version: Json = {}

    def ended() -> bool:
        return time.monotonic() > deadline or (cancelled is not None and cancelled())

    def get(path: str) -> Json:
        nonlocal refused, version
        try:
            value: Any = json.loads(http.get(path, ended))
            body = cast("Json", value) if isinstance(value, dict) else {}
            version = body if path == "/api/version" else version
            return body
        except UnexpectedResponse as error:
            if error.status == 503 and "Loading model" in error.said:
                return _LOADING
            if error.status == 404:
                return _MISSING
            if isinstance(error, Redirected) or error.status in (401, 403) or error.status >= 500:
                refused = error
        except ServerUnreachable:
            raise
        except (LLMError, ValueError, RecursionError):
            pass
        return {}

    try:
        for kind, proof in proofs:
            if proof(get):
                return kind
    except Cancelled:
        if cancelled is not None and cancelled():
            raise
        if set(version) == {"version"}:
            return "ollama"  # another path hangs; the run will report that
        doing = "telling what kind of server it is"
        raise ServerTimeout(server, doing, PROBE_TIMEOUT_S) from None
    finally:
        http.close()
    raise explain(refused, http, model="", path="") if refused else UnknownServer(server)


def _is_ollama(get: _Get) -> bool:
    if set(get("/api/version")) != {"version"}:
        return False
    # oai2ollama copies Ollama's lists, but not its chat.
    return not (get("/api/ps") is _MISSING and _is_openai(get))


def _is_ollama_with_list(get: _Get) -> bool:
    return _is_ollama(get) and _list(get("/api/tags"), "models") is not None


def _is_llama_swap(get: _Get) -> bool:
    return _list(get("/running"), "running") is not None


def _is_lmstudio(get: _Get) -> bool:
    models = _list(get("/api/v1/models"), "models")
    return models is not None and all("key" in model for model in models)


def _is_llama_server(get: _Get) -> bool:
    body = get("/models")
    if body is _LOADING:
        return True
    models = _list(body, "data") or ()
    return any(_is_routed(model) or _owner(model) == "llamacpp" for model in models)


def _is_vllm(get: _Get) -> bool:
    return any(_owner(model) == "vllm" for model in _list(get("/v1/models"), "data") or ())


def _is_openai(get: _Get) -> bool:
    return _list(get("/v1/models"), "data") is not None


_PROOFS: Sequence[_Proof] = (
    ("ollama", _is_ollama),
    ("llama-swap", _is_llama_swap),
    ("lmstudio", _is_lmstudio),
    ("llama-server", _is_llama_server),
    ("vllm", _is_vllm),
    ("openai", _is_openai),
)
_OLLAMA_LIST: _Proof = ("ollama", _is_ollama_with_list)
"""For a search: Open WebUI, often on port 8080, has a version like Ollama's but no list."""


def _list(body: Json, key: str) -> list[Json] | None:
    """Return the objects of a list in a body; None if there is no such list, or it is an error."""
    value = body.get(key)
    if not isinstance(value, list) or body.get("error"):
        return None
    entries = cast("list[Any]", value)
    return [cast("Json", entry) for entry in entries if isinstance(entry, dict)]


def _is_routed(model: Json) -> bool:
    status = model.get("status")
    return isinstance(status, dict) and "value" in status


def _owner(model: Json) -> str:
    return str(model.get("owned_by") or "")
