"""Who has LM Studio, and no Ollama, never reads of Ollama: whatever fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from image_refinery._advice import Edge, remark, with_advice
from image_refinery.cli.terminal import TERMINAL
from image_refinery.llm import errors
from image_refinery.llm.backend import Answer
from image_refinery.llm.servers import Server

SERVERS = {
    "lmstudio": Server(url="http://127.0.0.1:1234", kind="lmstudio"),
    "llama-server": Server(url="http://127.0.0.1:8080", kind="llama-server"),
    "llama-swap": Server(url="http://127.0.0.1:8080", kind="llama-swap"),
    "vllm": Server(url="http://127.0.0.1:8000", kind="vllm"),
    "openai": Server(url="http://127.0.0.1:8000", kind="openai"),
    "not known yet": Server(name="studio", url="http://127.0.0.1:8000", kind=""),
}
NAMES = {
    "lmstudio": "LM Studio",
    "llama-server": "llama-server",
    "llama-swap": "llama-swap",
    "vllm": "vLLM",
}
PAGE = Edge(again="queue again", options="the options")


def denied(server: Server, status: int, **fields: Any) -> errors.AccessDenied:
    error = errors.AccessDenied(server, status, "no")
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def missing(server: Server) -> errors.ModelNotFound:
    error = errors.ModelNotFound("llava", server)
    error.instead = ("qwen2.5-vl",)
    return error


def every_error(server: Server) -> list[errors.LLMError]:
    empty = [
        errors.EmptyAnswer("m", server, done_reason=reason, thought=thought)
        for reason in ("stop", "length", "load", None)
        for thought in (False, True)
    ]
    return [
        *empty,
        errors.LLMError("It failed.", server=server),
        errors.ServerConfigError("The file is damaged.", server=server),
        errors.BadRequest("The request is wrong.", server=server),
        errors.UnusableImage("The image is empty.", server=server),
        errors.NoPrompt("There is no text.", server=server),
        errors.ServerUnreachable(server, "refused", refused=True),
        errors.NoServer(server, (11434, 1234)),
        errors.UnknownServer(server),
        errors.ConnectionBroke(server, "reset"),
        errors.ServerTimeout(server, "answering", 3),
        errors.ModelNotFound("llava", server),
        missing(server),
        errors.NoModel("describing images", server),
        errors.NoModel("writing text", server),
        errors.NotInLibrary("llava", server, "no"),
        errors.NoVision("m", server),
        errors.NoThinking("m", server),
        errors.ServerBusy("m", server, "busy"),
        errors.ServerBusy("m", server, "busy", status=429),
        errors.LoadFailed("m", server, "exit code 1"),
        errors.OutOfMemory("m", server, "killed"),
        errors.IncompleteAnswer("m", server, characters=3, why="it broke"),
        errors.UnexpectedResponse(server, 500, "an error"),
        errors.UnexpectedResponse(server, 400, "an error"),
        errors.UnexpectedResponse(server, 200, "an error"),
        denied(server, 401),
        denied(server, 403),
        denied(server, 401, key_withheld=True),
        errors.ContextTooLong(server, 400, "too long"),
        errors.EndpointMissing(server, 404, "no", "/v1/chat/completions", ""),
        errors.Redirected(server, 307, "https://other"),
        errors.WrongForm(server, "<html>"),
    ]


def test_every_class_of_error_is_looked_at() -> None:
    made = {type(error).__name__ for error in every_error(SERVERS["lmstudio"])}
    assert made == {*errors.__all__} - {"Cancelled"}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("edge", [PAGE, TERMINAL], ids=["page", "terminal"])
def test_no_other_server_is_called_ollama(kind: str, edge: Edge) -> None:
    for error in every_error(SERVERS[kind]):
        message = with_advice(error, edge)
        if not (isinstance(error, errors.NoServer) and not SERVERS[kind].kind):
            assert "ollama" not in message.lower(), message
        assert message.startswith(str(error)) and "\n" not in message and "  " not in message
        words, code = message[:-7], message[-7:]
        assert re.fullmatch(r" \(R\d{3}\)", code), message
        assert words.endswith((".", "https://other"))


@pytest.mark.parametrize("kind", NAMES)
def test_a_server_is_called_by_its_name(kind: str) -> None:
    named = [
        error
        for error in every_error(SERVERS[kind])
        if not isinstance(error, (errors.BadRequest, errors.ServerConfigError))
        and type(error) not in (errors.LLMError, errors.UnknownServer)
    ]
    for error in named:
        message = with_advice(error, PAGE)
        assert NAMES[kind].lower() in message.lower(), message


@pytest.mark.parametrize("kind", SERVERS)
def test_there_is_something_to_do_about_it(kind: str) -> None:
    plain = (errors.BadRequest, errors.ServerConfigError)
    for error in every_error(SERVERS[kind]):
        if isinstance(error, plain) or type(error) in (errors.LLMError, errors.ModelNotFound):
            continue
        if isinstance(error, errors.NoModel) and kind != "lmstudio":
            continue
        assert len(with_advice(error, PAGE)) > len(str(error)), error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            errors.ServerUnreachable(SERVERS["lmstudio"], "Connection refused"),
            "Start its server in LM Studio, under Developer (or run `lms server start`).",
        ),
        (
            missing(SERVERS["lmstudio"]),
            "Choose an installed one (qwen2.5-vl), or download it in LM Studio.",
        ),
        (denied(SERVERS["lmstudio"], 401), "Set the server's key in image-refinery.toml."),
        (errors.WrongForm(SERVERS["vllm"], "<html>"), "This is not what vLLM answers: check its"),
        (
            errors.UnexpectedResponse(SERVERS["openai"], 500, "x"),
            "The server's own log says more. Queue again, or restart the server.",
        ),
        (
            errors.LoadFailed("m", SERVERS["llama-swap"], "x"),
            "Choose another model, or lower num_ctx in the options.",
        ),
    ],
)
def test_the_advice_fits_the_server(error: errors.LLMError, advice: str) -> None:
    assert advice in with_advice(error, PAGE)


def test_a_cut_answer_is_told_alike() -> None:
    for answer in (Answer(text="A", done_reason="length"), Answer(text="A", context_full=True)):
        assert "ollama" not in remark(answer, TERMINAL).lower()
