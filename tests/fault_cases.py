"""The cases of the fault matrix: what fails at which request, and the error that it must become.

tests/nodes has a file for each family of servers that runs its cases with every node that asks a
server and with `batch`; tools/fault_matrix.py runs those files and writes docs/quality/faults.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
from image_refinery.llm import errors
from scripted_servers import NOT_ASCII, OUT_OF_MEMORY

FULL = bool(os.environ.get("FULL_FAULT_MATRIX"))
"""Everything; else each fault with some of those that ask, and one value of on_error in turn."""

ON_ERROR = ("output error text", "stop the workflow")
DESCRIBERS = ("LLM Image Refine", "LLM Describe", "Describe Tiles", "Caption Folder", "batch")
ASKERS = (*DESCRIBERS[:2], "Ollama Process", *DESCRIBERS[2:])
"""What asks a model."""
FREE_MEMORY, CHECK_SETUP = "Free Memory", "Check Setup"
USERS = (*ASKERS, FREE_MEMORY, CHECK_SETUP)
"""What talks to a server: the columns of the matrix."""
WITHOUT_ON_ERROR = ("Caption Folder", "batch", FREE_MEMORY, CHECK_SETUP)


class Case(NamedTuple):
    """A fault at one kind of request, and the error it must become; None: a good answer.

    Attributes:
        users: what makes the request.
        words: part of the message.
        answer: part of the good answer; "": the answer is the usual one.
        on: the kinds of servers that have the request; empty: all kinds take turns.
    """

    kind: str
    fault: str
    error: type[errors.LLMError] | None = None
    words: str = ""
    answer: str = ""
    users: Sequence[str] = ASKERS
    on: Sequence[str] = ()

    @property
    def id(self) -> str:
        return f"{self.kind} {self.fault}"


def _cases(kind: str, table: dict[str, Any], **more: Any) -> list[Case]:
    """Return a case for each fault: what it must become is an error and its words, or an answer."""
    return [
        Case(kind, fault, *wanted, **more)
        if isinstance(wanted, tuple)
        else Case(kind, fault, answer=wanted, **more)
        for fault, wanted in table.items()
    ]


def combinations(cases: Iterable[Case], servers: Sequence[str], *, thin: int) -> list[Any]:
    """Return each case with those who meet it: (case, user, on_error, kind of server).

    Args:
        servers: the kinds, which take turns: a case meets several, and each user meets all.
        thin: in the default run every so many-th user meets a case, but one at least.
    """
    found: list[Any] = []
    for number, case in enumerate(cases):
        step = 1 if FULL else min(thin, len(case.users))
        for place, user in enumerate(case.users):
            if (number + place) % step:
                continue
            modes = ON_ERROR[:1] if user in WITHOUT_ON_ERROR else ON_ERROR
            turn = (number // step + place) % len(modes)
            for which, on_error in enumerate(modes):
                if not FULL and which != turn:
                    continue
                able = case.on or servers
                start = number + number // len(able) + place + which * (len(able) // 2)
                for kind in case.on if case.on and FULL else [able[start % len(able)]]:
                    name = f"{kind} {case.id}-{user}-{('give', 'stop')[which]}"
                    found.append(pytest.param(case, user, on_error, kind, id=name))
    return found


# Ollama: the faults of faulty_ollama.py

_BROKE_OFF, _BROKE = "broke off after", "The connection to Ollama"
_FORMS = "This is not what Ollama answers"
_NO_MEMORY = (errors.OutOfMemory, "does not have enough memory")
_BUSY = (errors.ServerBusy, "too busy")
_DENIED = (errors.AccessDenied, "OLLAMA_ORIGINS")
_SIGNIN = (errors.AccessDenied, "ollama signin")
_MISSING = (errors.ModelNotFound, "ollama pull")
_PROXY = (errors.UnexpectedResponse, "502 Bad Gateway")
_BROKEN = (errors.ConnectionBroke, _BROKE)
_WRONG = (errors.WrongForm, _FORMS)
_TOO_LONG = (errors.WrongForm, "more than 16 MB")
_SILENT = (errors.IncompleteAnswer, "sent nothing for")

OLLAMA_CHAT: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "sent nothing for"),
    "hang_mid_line": _SILENT,
    "hang_between_tokens": _SILENT,
    "drop": _BROKEN,
    "reset": _BROKEN,
    "reset_mid_stream": (errors.IncompleteAnswer, _BROKE_OFF),
    "cut_mid_stream": (errors.IncompleteAnswer, _BROKE_OFF),
    "half_utf8": (errors.IncompleteAnswer, _BROKE_OFF),
    "error_line": (errors.IncompleteAnswer, "an error was encountered"),
    "oom_line": (errors.IncompleteAnswer, "does not have enough memory"),
    "no_done": (errors.IncompleteAnswer, "the stream ended early"),
    "no_line": (errors.IncompleteAnswer, "after 0 characters"),
    "empty": (errors.EmptyAnswer, "Empty response from model"),
    "empty_length": (errors.EmptyAnswer, "num_predict was used up"),
    "thinking_only": (errors.EmptyAnswer, "used up num_predict for thinking"),
    "cut_short": "",
    "no_counts": "",
    "no_done_reason": "",
    "one_byte": "",
    "gzip": "",
    "big_line": _TOO_LONG,
    "endless_line": _TOO_LONG,
    "line_separators": "three\u2028four\u2029",
    "not_json": _WRONG,
    "duplicate_keys": "second",
    "half_characters": "A \U0001f600 and",
    "wrong_types": _WRONG,
    "wrong_body": (errors.IncompleteAnswer, "the stream ended early"),
    "wrong_list": _WRONG,
    "bad_request": (errors.UnexpectedResponse, "400 Bad Request"),
    "context_length": (errors.ContextTooLong, "aise num"),
    "context_length_old": (errors.ContextTooLong, "aise num"),
    "signin": _SIGNIN,
    "forbidden": _DENIED,
    "cloud_disabled": (errors.AccessDenied, "cloud is disabled"),
    "not_found": _MISSING,
    "not_found_old": _MISSING,
    "too_many_requests": _BUSY,
    "client_gone": (errors.UnexpectedResponse, "context canceled"),
    "oom_old": _NO_MEMORY,
    "oom": _NO_MEMORY,
    "oom_runtime": _NO_MEMORY,
    "load_failure": (errors.UnexpectedResponse, "error loading model"),
    "load_timeout": (errors.UnexpectedResponse, "timed out waiting"),
    "wrong_option": (errors.UnexpectedResponse, "must be of type integer"),
    "bad_gateway": _PROXY,
    "busy": _BUSY,
    "proxy_page": _PROXY,
    "html": _WRONG,
}
OLLAMA_LOAD: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "while loading"),
    "drop": _BROKEN,
    "reset": _BROKEN,
    "busy": _BUSY,
    "oom_old": _NO_MEMORY,
    "oom": _NO_MEMORY,
    "load_failure": (errors.UnexpectedResponse, "error loading model"),
    "load_timeout": (errors.UnexpectedResponse, "timed out waiting"),
    "not_found": _MISSING,
    "signin": _SIGNIN,
    "wrong_list": _WRONG,
    "html": _WRONG,
    "proxy_page": _PROXY,
    "one_byte": "",
    "gzip": "",
}
OLLAMA_TAGS: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "while answering /api/tags"),
    "hang_mid_line": (errors.ServerTimeout, "while answering /api/tags"),
    "cut_mid_stream": _BROKEN,
    "drop": _BROKEN,
    "reset": _BROKEN,
    "busy": _BUSY,
    "not_json": _WRONG,
    "wrong_list": _WRONG,
    "html": _WRONG,
    "proxy_page": _PROXY,
    "bad_gateway": _PROXY,
    "forbidden": _DENIED,
    "signin": _SIGNIN,
    "endless_line": _TOO_LONG,
    "one_byte": "",
    "gzip": "",
}
OLLAMA_SHOW: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "while answering /api/show"),
    "drop": _BROKEN,
    "not_found": _MISSING,
    "html": _WRONG,
    "wrong_list": _WRONG,
}
"""Servers before 0.30 are asked one model at a time what it can do."""
OLLAMA_VERSION: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "telling what kind of server it is"),
    "drop": (errors.UnknownServer, "Check the address"),
    "html": (errors.UnknownServer, "Check the address"),
    "wrong_list": (errors.UnknownServer, "Check the address"),
    "proxy_page": (errors.UnexpectedResponse, "502 Bad Gateway"),
    "forbidden": (errors.AccessDenied, ""),
}
"""The first request: which kind of server is it?"""
OLLAMA_PS: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "while answering /api/ps"),
    "drop": _BROKEN,
    "reset": _BROKEN,
    "busy": _BUSY,
    "wrong_list": _WRONG,
    "html": _WRONG,
    "forbidden": _DENIED,
    "not_found": (errors.EndpointMissing, "/api/ps"),
}
_AFTER = dict.fromkeys(OLLAMA_PS, "")
"""The answers are there: what goes wrong now is a line in the log."""

OLLAMA = [
    *_cases("version", OLLAMA_VERSION, users=USERS),
    *_cases("tags", OLLAMA_TAGS, users=(*ASKERS, CHECK_SETUP)),
    Case("tags", "wrong_body", *_MISSING),
    *_cases("show", OLLAMA_SHOW),
    *_cases("load", OLLAMA_LOAD),
    *_cases("chat", OLLAMA_CHAT),
    *_cases("ps", _AFTER),
    *_cases("ps", OLLAMA_PS, users=(FREE_MEMORY,)),
    *_cases("unload", _AFTER, users=(*ASKERS, FREE_MEMORY)),
    Case("server", "refused", errors.ServerUnreachable, "ollama serve", users=USERS),
    Case("server", "model_vanished", *_MISSING),
    Case("server", "never_unloads", users=(*ASKERS, FREE_MEMORY)),
    Case("server", "restarts_once"),
]

# Servers with OpenAI's API: the faults of scripted_servers.py

KINDS = ("router", "llama-server", "lmstudio", "llama-swap", "vllm", "openai")
UNLOADING = ("router", "lmstudio", "llama-swap", "vllm")
"""The kinds that unload on request."""

_CUT = (errors.IncompleteAnswer, "broke off after 5 characters")
_CRASHED = (errors.IncompleteAnswer, 'the server said: "the model crashed"')
_EARLY = (errors.IncompleteAnswer, "the stream ended early")
_USED_UP = (errors.EmptyAnswer, "it used up num_predict for thinking")
_STOPPED = (errors.EmptyAnswer, "it stopped immediately")

OPENAI_CHAT: dict[str, Any] = {
    # the connection
    "hang": (errors.ServerTimeout, "sent nothing for"),
    "hang_after_header": (errors.ServerTimeout, "sent nothing for"),
    "hang_between_tokens": _SILENT,
    "drop": (errors.ConnectionBroke, "broke"),
    "cut_between_lines": _CUT,
    "cut_mid_line": _CUT,
    "end_mid_line": _CUT,
    "cut_half_character": _CUT,
    # whole bodies
    "loading": (errors.ServerBusy, "(Loading model)"),
    "busy": (errors.ServerBusy, "(too many requests)"),
    "unauthorized": (errors.AccessDenied, "Invalid API Key"),
    "not_found": (errors.ModelNotFound, "is not installed on the"),
    "context_length": (errors.ContextTooLong, "exceeds the available context size"),
    "out_of_memory": (errors.OutOfMemory, f"({OUT_OF_MEMORY})"),
    "html": (errors.WrongForm, "<html>"),
    "html_502": (errors.UnexpectedResponse, "502 Bad Gateway"),
    "redirect": (errors.Redirected, "http://127.0.0.1:9/"),
    "error_body": (errors.UnexpectedResponse, "the model crashed"),
    "error_text": (errors.UnexpectedResponse, "the model crashed"),
    "empty_body": (errors.IncompleteAnswer, "broke off after 0 characters"),
    "wrong_list": (errors.WrongForm, '"[]"'),
    "wrong_body": (errors.WrongForm, "is_sleeping"),
    "no_stream": "",
    # the stream
    "error_line": _CRASHED,
    "error_first": (errors.UnexpectedResponse, "500 Internal Server Error"),
    "error_field": _CRASHED,
    "error_event": _CRASHED,
    "no_done": "",
    "no_finish": _EARLY,
    "no_line": _EARLY,
    "empty": _STOPPED,
    "usage_only": _STOPPED,
    "cut_short": "",
    "endless": (errors.IncompleteAnswer, "it repeats itself"),
    "not_json": _CUT,
    "wrong_types": (errors.WrongForm, "[1,2,3]"),
    "big_line": (errors.IncompleteAnswer, "a line of more than 16 MB"),
    "endless_line": (errors.IncompleteAnswer, "a line of more than 16 MB"),
    # reasoning
    "reasoning_only": _USED_UP,
    "reasoning_content": "",
    "reasoning": "",
    "think_tags": "",
    "think_no_open": "It is a test.",
    "think_no_close": _USED_UP,
    "think_split": "A test.",
    # legal
    "split_lines": "",
    "split_characters": NOT_ASCII,
    "crlf": "",
    "comments": "",
    "no_usage": "",
    "no_space": "A test.",
}
OPENAI_LIST: dict[str, Any] = {
    "hang": (errors.ServerTimeout, "sent nothing for"),
    "drop": (errors.ConnectionBroke, "broke"),
    "loading": (errors.ServerBusy, "(Loading model)"),
    "unauthorized": (errors.AccessDenied, "Invalid API Key"),
    "html": (errors.WrongForm, "<html>"),
    "html_502": (errors.UnexpectedResponse, "502 Bad Gateway"),
    "redirect": (errors.Redirected, "http://127.0.0.1:9/"),
    "error_body": (errors.UnexpectedResponse, "the model crashed"),
    "error_text": (errors.UnexpectedResponse, "the model crashed"),
    "empty_body": (errors.WrongForm, ""),
    "wrong_list": (errors.WrongForm, '"[]"'),
}
OPENAI_LOAD: dict[str, Any] = {
    name: OPENAI_CHAT[name]
    for name in ("hang", "drop", "loading", "busy", "unauthorized", "out_of_memory")
} | {name: OPENAI_CHAT[name] for name in ("html", "html_502", "error_body", "wrong_list")}
OPENAI_UNLOAD = dict.fromkeys(
    ("hang", "drop", "loading", "unauthorized", "not_found", "html", "error_body", "wrong_list"), ""
)
_REFUSED = (errors.ServerUnreachable, "Can't reach")
_NOT_LOADED = (errors.LoadFailed, "could not load")

OPENAI = [
    *_cases("list", OPENAI_LIST, users=(*ASKERS, CHECK_SETUP)),
    *_cases("chat", OPENAI_CHAT),
]
"""The kinds behave alike."""
OPENAI_BY_KIND = [
    Case("server", "refused", *_REFUSED, users=(*ASKERS, CHECK_SETUP), on=KINDS),
    Case("server", "refused", *_REFUSED, users=(FREE_MEMORY,), on=KINDS[:-1]),  # the last asks none
    Case("server", "model_missing", errors.ModelNotFound, "is not installed", on=KINDS),
    Case("server", "no_vision", errors.NoVision, "not take images", users=DESCRIBERS, on=KINDS),
    Case("server", "wrong_key", errors.AccessDenied, "nauthorized", on=("llama-swap", "vllm")),
    Case("server", "restarts_once", on=KINDS),
    Case("server", "load_fails", *_NOT_LOADED, on=("router", "lmstudio", "llama-swap")),
    Case("status", "loading", errors.ServerTimeout, "while loading", on=("llama-server",)),
    *_cases("load", OPENAI_LOAD, on=("router", "lmstudio", "vllm")),
    Case("load", "not_found", *OPENAI_CHAT["not_found"], on=("router", "lmstudio")),
    *_cases("unload", OPENAI_UNLOAD, users=(*ASKERS, FREE_MEMORY), on=UNLOADING),
    *_cases("list", OPENAI_LIST, users=(FREE_MEMORY,), on=("router", "lmstudio", "llama-swap")),
]
"""The kinds differ, so each meets every case that it can have."""

# The embedded engine: what can become of a file or of a worker process

_KILLED = "the system killed it, most likely because it was out of memory"
ENGINE = [
    Case("file", "damaged", errors.LoadFailed, "model is corrupted or incomplete"),
    Case("file", "no_gguf", errors.LoadFailed, "the letters GGUF"),
    Case("file", "vanished", errors.ModelNotFound, "is not installed"),
    Case("file", "vanishes_before_load", errors.ModelNotFound, "is not installed"),
    Case("file", "vanishes_after_load", errors.ModelNotFound, "is not installed"),
    Case("model", "no_vision", errors.NoVision, "not take images", users=DESCRIBERS),
    Case("load", "no_process", errors.LoadFailed, "its process did not start"),
    Case("load", "hang", errors.ServerTimeout, "while loading"),
    Case("load", "killed", errors.OutOfMemory, _KILLED),
    Case("load", "terminated", errors.LoadFailed, "exit status"),
    Case("load", "out_of_memory", errors.OutOfMemory, "failed to allocate buffer"),
    Case("load", "silent_end", errors.LoadFailed, "it said nothing"),
    Case("chat", "context_length", errors.ContextTooLong, "exceeds the available context size"),
    Case("chat", "hang", errors.ServerTimeout, "sent nothing for"),
    Case("chat", "hang_between_tokens", *_SILENT),
    Case("chat", "killed", errors.OutOfMemory, _KILLED),
    Case("chat", "terminated", errors.ConnectionBroke, "llama.cpp has stopped: exit status"),
    Case("chat", "killed_between_tokens", errors.IncompleteAnswer, _KILLED),
    Case("chat", "terminated_between_tokens", errors.IncompleteAnswer, "exit status"),
    Case("chat", "killed_before"),
]
"""`chat killed_before`: the worker is killed between its load or its last answer and a request."""
