"""Read the stream of a chat completion: server-sent events, or what servers send instead."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

from ..answers import End, Piece, Stream, whole_number
from ..errors import UnexpectedResponse, WrongForm
from ..failures import words_of
from ..http import MAX_LINE_BYTES, Json
from ..servers import Server


def read_stream(lines: Iterable[bytes], server: Server) -> Stream:
    """Yield the chunks and the end of an answer from the lines of its stream.

    A finish_reason or "[DONE]" ends the answer: some servers leave out one of the two. The counts
    come after it, so a stream may yield several ends, of which the last is complete.

    Raises:
        UnexpectedResponse: an error in the stream, with the server's own message.
        WrongForm: the stream is not a chat completion.
    """
    started = time.monotonic()
    end: Json = {}
    for event in _events(lines, server):
        if event is None:
            end.setdefault("done_reason", "stop")
            break
        if event.get("error"):
            text = words_of(event) or json.dumps(event)
            raise UnexpectedResponse(server, _status(event), text)
        end |= _counts(event)
        choices = event.get("choices")
        first: Any = cast("list[Any]", choices)[0] if isinstance(choices, list) and choices else {}
        choice = cast("Json", first) if isinstance(first, dict) else {}
        # "message" has the whole answer of a server that does not stream.
        delta: Any = choice.get("delta") or choice.get("message") or {}
        if isinstance(delta, dict):
            fields = cast("Json", delta)
            thinking = fields.get("reasoning_content") or fields.get("reasoning")
            yield Piece(_text(fields.get("content")), _text(thinking))
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            end["done_reason"] = reason
    if "done_reason" in end:
        yield End(**end, total_s=time.monotonic() - started)


def _events(lines: Iterable[bytes], server: Server) -> Iterator[Json | None]:
    """Yield the object of each event, and None for "[DONE]"."""
    others: list[bytes] = []
    held = 0
    read_any = False
    for line in lines:
        field, separator, value = line.strip().partition(b":")
        value = value.strip()
        if not separator or field not in (b"data", b"error"):
            held += len(line)
            if held > MAX_LINE_BYTES:
                raise WrongForm(server, f"a body of more than {MAX_LINE_BYTES // 2**20} MB")
            if field and not read_any:
                others.append(line)
            continue
        read_any = True
        held = 0
        if value == b"[DONE]":
            yield None
        else:
            yield _object(value, server)
    if not read_any and others:
        whole = _object(b"\n".join(others), server)
        if not {"choices", "error"} & {*whole}:
            raise WrongForm(server, json.dumps(whole)[:300])
        yield whole


def _object(text: bytes, server: Server) -> Json:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise WrongForm(server, text[:300].decode("utf-8", "replace"))
    return cast("Json", value)


def _counts(event: Json) -> Json:
    """Return counts in tokens, and durations in seconds (llama.cpp reports milliseconds)."""
    usage, timings = event.get("usage"), event.get("timings")
    counts: Json = {}
    if isinstance(usage, dict):
        fields = cast("Json", usage)
        counts["prompt_tokens"] = whole_number(fields.get("prompt_tokens"))
        counts["answer_tokens"] = whole_number(fields.get("completion_tokens"))
    if isinstance(timings, dict):
        fields = cast("Json", timings)
        counts["prompt_s"] = _seconds(fields.get("prompt_ms"))
        counts["answer_s"] = _seconds(fields.get("predicted_ms"))
    return counts


def _status(event: Json) -> int:
    error = event.get("error")
    code = cast("Json", error).get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 200


def _seconds(milliseconds: Any) -> float | None:
    is_number = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    return milliseconds / 1e3 if is_number else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
