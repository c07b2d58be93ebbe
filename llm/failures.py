"""Find out which error a server's response means."""

from __future__ import annotations

import contextlib
import json
import re
import time
from http import HTTPStatus
from typing import Any, cast

from .errors import (
    AccessDenied,
    Cancelled,
    ContextTooLong,
    EndpointMissing,
    LLMError,
    LoadFailed,
    ModelNotFound,
    NoThinking,
    NotInLibrary,
    NoVision,
    OutOfMemory,
    ServerBusy,
    UnexpectedResponse,
    shorten,
    status_phrase,
)
from .http import Http, Json

_PROBE_TIMEOUT_S = 2.0

_OUT_OF_MEMORY = re.compile(
    r"out.of.memory|more system memory|insufficient memory|cudamalloc|failed to allocate"
    r"|unable to allocate|not enough (?:memory|vram)|resource limitations",
    re.IGNORECASE,
)
_CONTEXT = re.compile(
    r"longer than the context|exceeds? the (?:available )?context|context length"
    r"|exceed_context_size|exceeds the maximum context",
    re.IGNORECASE,
)
_NO_VISION = re.compile(
    r"(?:not|n't) support (?:image|vision|multimodal)|image input is not supported"
    r"|missing data required for image|no vision|mmproj|not a multimodal model|at most 0 image",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model\b.*(?:not found|does not exist)|not found.*\bmodel|not find suitable inference handler",
    re.IGNORECASE,
)
_LOAD_FAILED = re.compile(
    r"failed to load(?: model|$)|unable to start process|no models loaded|model is not loaded",
    re.IGNORECASE,
)


def explain(error: UnexpectedResponse, http: Http, *, model: str, path: str) -> LLMError:
    """Return the error that a response means.

    The texts differ between Ollama's releases 0.5 to 0.33, so they are matched loosely, and each
    message quotes the server.

    Args:
        error: the response, with the whole body; status 200 for an error line inside a stream.
        http: to find out which API the server has if it lacks the path.
        model: the requested model, or "".
        path: the requested path.
    """
    if type(error) is not UnexpectedResponse:
        return error  # a redirect, or not JSON
    server, status = http.server, error.status
    said, signin_url = error.said, ""
    with contextlib.suppress(ValueError, RecursionError):
        body: Any = json.loads(said)
        if isinstance(body, dict):
            fields = cast("Json", body)
            said, signin_url = words_of(fields) or said, str(fields.get("signin_url") or "")
    said = shorten(said)
    # An error line in a stream has status 200, so the text decides if possible.
    if _OUT_OF_MEMORY.search(said):
        return OutOfMemory(model, server, said)
    if _CONTEXT.search(said):
        return ContextTooLong(server, status, said, model=model)
    if (status in (200, 400, 500) and "thinking" in said) or "think value" in said:
        return NoThinking(model, server)
    if status != HTTPStatus.NOT_FOUND and _NO_VISION.search(said):
        return NoVision(model, server)
    if "file does not exist" in said:
        return NotInLibrary(model, server, said)
    if model and _NO_MODEL.search(said):
        return ModelNotFound(model, server)
    if model and server.kind != "ollama" and _LOAD_FAILED.search(said):
        return LoadFailed(model, server, said.rstrip("."))
    # LM Studio answers 200 to an unknown path.
    if status == HTTPStatus.NOT_FOUND or said.startswith("Unexpected endpoint"):
        other = _other_api(http) if server.kind == "ollama" else ""
        return EndpointMissing(server, status, said, path, other)
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        return ServerBusy(model, server, said or status_phrase(status), status=status)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        denied = AccessDenied(server, status, said, model=model)
        denied.signin_url = signin_url
        denied.key_withheld = server.api_key is not None and not server.may_send_key
        return denied
    return UnexpectedResponse(server, status, said, model=model)


def words_of(body: Json) -> str:
    """Return a server's own message from the body of an error, or "".

    >>> words_of({"error": "model 'x' not found"})  # Ollama
    "model 'x' not found"
    >>> words_of({"error": {"code": 404, "message": "File Not Found"}})  # OpenAI's form
    'File Not Found'
    >>> words_of({"detail": "Not Found"})  # FastAPI
    'Not Found'
    >>> words_of({"detail": [{"loc": ["body", "model"], "msg": "Field required"}]})
    'Field required'
    >>> words_of({"object": "error", "message": "Unknown path"})  # vLLM's older form
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


def _other_api(http: Http) -> str:
    """Return the API of a server that lacks a path: "ollama" (a part of it), "openai", or ""."""
    deadline = time.monotonic() + _PROBE_TIMEOUT_S
    if _probe(http, "/api/version", deadline).get("version"):
        return "ollama"
    # Empty where no model is loaded.
    if isinstance(_probe(http, "/v1/models", deadline).get("data"), list):
        return "openai"
    return ""


def _probe(http: Http, path: str, deadline: float) -> Json:
    """Return the JSON object at a path, or {} if none arrives before the deadline."""
    with contextlib.suppress(LLMError, Cancelled, ValueError, RecursionError):
        value: Any = json.loads(http.get(path, lambda: time.monotonic() > deadline))
        return cast("Json", value) if isinstance(value, dict) else {}
    return {}
