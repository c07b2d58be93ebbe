"""What a message says to do: in a node's words on the page, in a command's at the terminal."""

from __future__ import annotations

import pytest
from image_refinery._advice import Edge, remark, with_advice
from image_refinery.cli.terminal import TERMINAL
from image_refinery.llm import errors
from image_refinery.llm.backend import Answer
from image_refinery.llm.servers import EMBEDDED, KINDS, Server

PAGE = Edge(again="queue again", options="Ollama Options")
OLLAMA, ENGINE = Server(), Server(url=EMBEDDED, kind=EMBEDDED)


def denied(server: Server, *, key_withheld: bool = False, signin_url: str = "") -> Exception:
    error = errors.AccessDenied(server, 401, "unauthorized")
    error.key_withheld, error.signin_url = key_withheld, signin_url
    return error


def every_error(server: Server) -> list[errors.LLMError]:
    return [
        errors.ServerUnreachable(server, "refused"),
        errors.ConnectionBroke(server, "reset"),
        errors.ServerTimeout(server, "answering", 3),
        errors.ModelNotFound("llava", server),
        errors.NoModel("describing images", server),
        errors.NoVision("llama", server),
        errors.NoThinking("llama", server),
        errors.ServerBusy("llama", server, "busy"),
        errors.LoadFailed("llama", server, "its file is damaged"),
        errors.OutOfMemory("llama", server, "killed"),
        errors.EmptyAnswer("llama", server, done_reason="stop", thought=False),
        errors.EmptyAnswer("llama", server, done_reason="length", thought=False),
        errors.EmptyAnswer("llama", server, done_reason="length", thought=True),
        errors.EmptyAnswer("llama", server, done_reason="stop", thought=True),
        errors.EmptyAnswer("llama", server, done_reason="load", thought=False),
        errors.IncompleteAnswer("llama", server, characters=3, why="it broke"),
        errors.UnexpectedResponse(server, 500, "an error"),
        errors.UnexpectedResponse(server, 400, "an error"),
        errors.ContextTooLong(server, 400, "too long"),
    ]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            errors.ServerUnreachable(OLLAMA, "refused"),
            "Start the Ollama app (or run `ollama",
        ),
        (errors.ModelNotFound("qwen3-vl:8b", OLLAMA), "Download it with: ollama pull qwen3-vl:8b"),
        (
            errors.NoModel("writing text", OLLAMA),
            "Download one, for example with: ollama pull llama3.2",
        ),
        (errors.NoVision("llama", OLLAMA), "Choose a model with vision"),
        (
            errors.OutOfMemory("llama", OLLAMA, "x"),
            "smaller model, lower num_ctx in Ollama",
        ),
        (errors.ServerTimeout(OLLAMA, "x", 3), "or raise timeout_s in Ollama Options."),
        (errors.NoThinking("llama", OLLAMA), 'Set think to "off"'),
        (errors.Redirected(OLLAMA, 301, "https://b"), "Set OLLAMA_BASE_URL to that address."),
        (errors.WrongForm(OLLAMA, "<html>"), "check OLLAMA_BASE_URL, and whether a proxy"),
        (errors.NotInLibrary("x", OLLAMA, "no"), "Check the spelling."),
        (errors.AccessDenied(OLLAMA, 403, "no"), "OLLAMA_ORIGINS"),
        (
            errors.ContextTooLong(OLLAMA, 400, "no"),
            "Raise num_ctx in Ollama Options, lower",
        ),
        (denied(OLLAMA, key_withheld=True), "use an https URL"),
        (denied(OLLAMA, signin_url="https://a/b"), "Run `ollama signin`, or open https://a/b"),
        (
            errors.EmptyAnswer("qwen3:8b", OLLAMA, done_reason="length", thought=True),
            'Raise num_predict in Ollama Options, set think to "off", or choose its instruct '
            "variant (such as qwen3:8b-instruct).",
        ),
        (
            errors.IncompleteAnswer("m", OLLAMA, characters=3, why="it loops", repeats=True),
            "Queue again, check Ollama's log, or raise repeat_penalty in Ollama Options.",
        ),
        (
            errors.IncompleteAnswer("m", OLLAMA, characters=3, why="it broke"),
            "Queue again, or check Ollama's log.",
        ),
    ],
)
def test_the_page_says_what_to_do(error: errors.LLMError, words: str) -> None:
    message = with_advice(error, PAGE)
    assert message.startswith(str(error)) and words in message
    assert "\n" not in message and message.count("  ") == 0


@pytest.mark.parametrize("server", [OLLAMA, ENGINE], ids=["ollama", "embedded"])
def test_each_place_names_only_what_it_has(server: Server) -> None:
    for error in every_error(server):
        at_terminal, on_page = with_advice(error, TERMINAL), with_advice(error, PAGE)
        assert "Ollama Options" not in at_terminal and "queue" not in at_terminal.lower()
        assert "run the command again" not in on_page.lower()
        assert len(on_page) > len(str(error)), "there is always something to do"
        said, code = on_page.removesuffix(f" ({error.code})"), on_page[-6:]
        assert said.endswith((".", "llava", "smolvlm", "llama3.2")) and code == f"({error.code})"


def test_the_embedded_engine_is_not_called_ollama() -> None:
    messages = [with_advice(error, PAGE) for error in every_error(ENGINE)]
    for message in messages:
        assert "embedded engine" in message
        assert "ollama " not in message.lower().replace("ollama options", ""), message
        assert "log" not in message
    with_command = [message for message in messages if "--pull" in message]
    assert len(with_command) == 3
    assert all("models --pull smolvlm" in message for message in with_command)


def test_an_answer_that_is_not_whole_says_what_to_raise() -> None:
    cut, full = Answer(text="A", done_reason="length"), Answer(text="A", context_full=True)
    said = "The answer was cut at num_predict."
    assert remark(cut, PAGE) == f"{said} Raise it in Ollama Options."
    assert remark(cut, TERMINAL) == said
    assert remark(full, PAGE).endswith("is missing. Raise num_ctx in Ollama Options, or send less.")
    assert remark(Answer(text="A", done_reason="stop"), PAGE) == ""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("ollama", EMBEDDED)])
def test_who_has_another_server_never_reads_of_ollama(kind: str) -> None:
    server = Server(url="http://127.0.0.1:1234", kind=kind)
    options = Edge(again="queue again", options="the options")
    for error in [*every_error(server), errors.NoServer(server, (11434, 1234))]:
        for edge in (options, TERMINAL):
            message = with_advice(error, edge)
            assert "ollama" not in message.lower(), message
            assert len(message) > len(str(error)), "there is always something to do"


def test_a_missing_model_names_installed_ones() -> None:
    error = errors.ModelNotFound("llava", OLLAMA)
    error.instead = ["moondream", "bakllava"]
    assert "Choose an installed one (moondream, bakllava)." in with_advice(error, PAGE)
