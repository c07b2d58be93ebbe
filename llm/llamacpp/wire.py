"""What a client asks for, checked and turned into values, and the errors that Ollama answers with.

Texts and statuses are Ollama's own wherever a client could be looking for them.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast

NUM_CTX_DEFAULT = 4096
"""Ollama's context on a machine with little or no GPU memory."""
NUM_CTX_LOWEST = 4
NUM_CTX_LOWEST_WITH_VISION = 2048
"""Ollama never gives a vision model less: an image alone can take hundreds of tokens."""
ROLES = ("system", "assistant", "user", "tool")
THINK_LEVELS = ("low", "medium", "high", "max")

_IMAGE_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))

# Ollama's option -> llama.cpp's field of a chat request.
_INTEGER_SAMPLING = {
    "num_predict": "max_tokens",
    "top_k": "top_k",
    "seed": "seed",
    "repeat_last_n": "repeat_last_n",
}
_FLOAT_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_LOAD_INTEGERS = ("num_ctx", "num_gpu", "num_batch", "num_thread")
# Ollama's defaults, which differ from llama.cpp's.
_SAMPLING_DEFAULTS: dict[str, Any] = {
    "max_tokens": -1,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
}
_SEEDS = 2**32 - 1  # llama.cpp's seeds are 32 bits wide, and the highest means "random"

_DURATION = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|\u00b5s|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|\u00b5s|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ApiError(Exception):
    """An answer of the form {"error": text}, or an error line within a stream."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = int(status)
        self.text = text


def bad_request(text: str) -> ApiError:
    """Return the error for a request that cannot be understood."""
    return ApiError(HTTPStatus.BAD_REQUEST, text)


@dataclass(frozen=True)
class LoadOptions:
    """The options that belong to a loaded model; a change of one of them loads it anew.

    Attributes:
        num_ctx: context in tokens; None: the default.
        num_gpu: layers on the GPU; None: as many as fit.
        num_batch: tokens processed at once; None: llama.cpp's default.
        num_thread: CPU threads; None: llama.cpp's default, one per physical core.
        use_mmap: whether the weights are mapped instead of read.
    """

    num_ctx: int | None = None
    num_gpu: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    use_mmap: bool = True


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message; `images` are data URLs."""

    role: str
    content: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request to /api/chat or /api/generate.

    Attributes:
        model: the name as the client wrote it.
        messages: empty: only load, or unload.
        stream: whether the answer comes in lines.
        keep_alive_s: seconds to keep the model afterwards, `math.inf` for ever; None: as before.
        think: True, False, a level, or None where the client does not say.
        load: what the model is loaded with.
        sampling: llama.cpp's names and values, complete with Ollama's defaults.
        response_format: llama.cpp's `response_format`; None: free text.
        unknown_options: names that mean nothing here.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    keep_alive_s: float | None
    think: bool | str | None
    load: LoadOptions
    sampling: dict[str, Any] = field(repr=False)
    response_format: dict[str, Any] | None
    unknown_options: tuple[str, ...]

    @property
    def has_images(self) -> bool:
        """Whether any message carries an image."""
        return any(message.images for message in self.messages)


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """Check the body of /api/chat.

    Raises:
        ApiError: with Ollama's status and text.
    """
    if not _text(body, "model"):
        raise bad_request("model is required")
    if body.get("tools"):
        raise bad_request(f'"{body["model"]}" does not support tools')
    messages = _list(body, "messages")
    return _request(body, tuple(_message(message) for message in messages))


def parse_generate(body: dict[str, Any]) -> ChatRequest:
    """Check the body of /api/generate, of which only the empty forms (load, unload) are served.

    Raises:
        ApiError: with Ollama's status and text.
    """
    _text(body, "model")
    if _text(body, "prompt"):
        raise bad_request(
            "the embedded engine generates by /api/chat only; /api/generate loads and unloads"
        )
    return _request(body, ())


def _request(body: dict[str, Any], messages: tuple[Message, ...]) -> ChatRequest:
    options = _object({} if body.get("options") is None else body["options"], "options")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("stream must be true or false")
    served = {*_INTEGER_SAMPLING, *_FLOAT_SAMPLING, *_LOAD_INTEGERS, "use_mmap", "stop"}
    return ChatRequest(
        model=body.get("model") or "",
        messages=messages,
        stream=stream is not False,
        keep_alive_s=parse_keep_alive(body.get("keep_alive")),
        think=_think(body.get("think")),
        load=_load_options(options),
        sampling=_sampling(options),
        response_format=_response_format(body.get("format")),
        unknown_options=tuple(sorted(set(options) - served)),
    )


def parse_keep_alive(value: Any) -> float | None:
    """Return seconds, `math.inf` for ever, or None for "as before".

    >>> [parse_keep_alive(value) for value in (300, "1h30m", "0", -1, None)]
    [300.0, 5400.0, 0.0, inf, None]

    Raises:
        ApiError: 400, with the text of Go's `time.ParseDuration`.
    """
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = min(value, float(threading.TIMEOUT_MAX))
    else:
        raise bad_request(f"invalid keep_alive: {value!r}")
    if math.isnan(seconds):
        raise bad_request("invalid keep_alive: NaN")
    return math.inf if seconds < 0 else float(seconds)


def _duration(text: str) -> float:
    if text in ("0", "+0", "-0"):
        return 0.0
    if not _DURATION.fullmatch(text):
        unitless = re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)", text)
        what = "missing unit in" if unitless else "invalid"
        raise bad_request(f'time: {what} duration "{text}"')
    seconds = sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{key} must be a string")
    return value or ""


def _list(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is not None and not isinstance(value, list):
        raise bad_request(f"{key} must be a list")
    return cast("list[Any]", value or [])


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{what} must be an object")
    return cast("dict[str, Any]", value)


def _message(value: Any) -> Message:
    message = _object(value, "each message")
    role = _text(message, "role")
    if role not in ROLES:
        raise bad_request(f"invalid role: {role}, must be one of [{' '.join(sorted(ROLES))}]")
    return Message(
        role=role,
        content=_text(message, "content"),
        images=tuple(_data_url(image) for image in _list(message, "images")),
    )


def _data_url(image: Any) -> str:
    """Check one base64 image and return it as a data URL.

    llama.cpp reads what stb_image reads; only PNG and JPEG are let through, which work everywhere.
    """
    if not isinstance(image, str):
        raise bad_request("images must be base64 strings")
    try:
        data = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        # ValueError: a character beyond ASCII.
        strange = re.search(r"[^A-Za-z0-9+/]", image)
        at = strange.start() if strange else len(image)
        raise bad_request(f"illegal base64 data at input byte {at}") from None
    for magic, kind in _IMAGE_TYPES:
        if data.startswith(magic):
            return f"data:{kind};base64,{image}"
    raise bad_request("failed to process image: neither PNG nor JPEG")


def _think(value: Any) -> bool | str | None:
    if value is None or isinstance(value, bool) or value in THINK_LEVELS:
        return value
    raise bad_request(
        f'invalid think value: {value!r} (must be "high", "medium", "low", "max", true, or false)'
    )


def _load_options(options: dict[str, Any]) -> LoadOptions:
    numbers = {
        name: _integer(name, options[name])
        for name in _LOAD_INTEGERS
        if options.get(name) is not None
    }
    for name, lowest in (("num_ctx", NUM_CTX_LOWEST), ("num_batch", 1), ("num_thread", 0)):
        if numbers.get(name, lowest) < lowest:
            raise bad_request(f'option "{name}" must be at least {lowest}')
    use_mmap = options.get("use_mmap")
    if use_mmap is not None and not isinstance(use_mmap, bool):
        raise _wrong_type("use_mmap", "boolean")
    for name in ("num_gpu", "num_thread"):
        # Ollama's "choose yourself": a negative number of layers, no threads.
        if numbers.get(name, 0) < 0 or (name == "num_thread" and numbers.get(name) == 0):
            del numbers[name]
    return LoadOptions(**numbers, use_mmap=use_mmap is not False)


def _sampling(options: dict[str, Any]) -> dict[str, Any]:
    sampling = dict(_SAMPLING_DEFAULTS)
    for name, field_name in _INTEGER_SAMPLING.items():
        if options.get(name) is not None:
            sampling[field_name] = _integer(name, options[name])
    for name, field_name in _FLOAT_SAMPLING.items():
        if options.get(name) is not None:
            sampling[field_name] = _number(name, options[name])
    sampling["seed"] = -1 if sampling["seed"] < 0 else sampling["seed"] % _SEEDS
    sampling["max_tokens"] = max(-1, sampling["max_tokens"])  # -2: until the context is full, too
    stop = options.get("stop")
    if stop is not None:
        if not isinstance(stop, list):
            raise _wrong_type("stop", "array")
        words = cast("list[Any]", stop)
        if not all(isinstance(word, str) for word in words):
            raise _wrong_type("stop", "array")
        sampling["stop"] = [word for word in words if word]
    return sampling


def _integer(name: str, value: Any) -> int:
    number = _number(name, value, kind="integer")
    if number != int(number):
        raise _wrong_type(name, "integer")
    return int(value)


def _number(name: str, value: Any, kind: str = "float32") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong_type(name, kind)
    return value


def _wrong_type(name: str, kind: str) -> ApiError:
    text = f'option "{name}" must be of type {kind}'
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text)


def _response_format(value: Any) -> dict[str, Any] | None:
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"schema": value}}
    text = f'invalid format: {value!r}; expected "json" or a valid JSON Schema object'
    raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, text)
