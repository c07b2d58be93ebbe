"""What can go wrong between us and an Ollama server, and the sentence that says so.

    OllamaError
    |-- ServerConfigError      the address, the name or the file of a server is not usable
    |-- UnusableImage          the image cannot be read or sent
    |-- NoPrompt               there is nothing to ask
    |-- ServerUnreachable      nothing answers at the address
    |-- ServerTimeout          something answers, but too slowly
    |-- ModelNotFound          the model is not installed on the server
    |   `-- NoModel            none that is installed can do it
    |-- NoVision               the model cannot see images
    |-- NoThinking             the model cannot think, or not at that level
    |-- ServerBusy             the server's queue is full, or a rate limit was met
    |-- OutOfMemory            the model does not fit into the server's memory
    |-- EmptyAnswer            the model answered nothing
    |-- IncompleteAnswer       the answer broke off
    |-- Cancelled              the caller asked to stop
    `-- UnexpectedResponse     any other response
        |-- AccessDenied       401 or 403
        |-- ConnectionBroke    the connection ended before a word of the answer
        |-- EndpointMissing    the server does not have a part of Ollama's API, or speaks another
        `-- ContextTooLong     the request is longer than the model's context

Every message is one or two sentences for the person at the screen: what was tried, where, and what
to do next. The server's own words are quoted where they help. Where an error takes a `url`, the
word "embedded" stands for the engine inside this package, whose user has no `ollama` to type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from .._program import pull

__all__ = [
    "AccessDenied",
    "Cancelled",
    "ConnectionBroke",
    "ContextTooLong",
    "EmptyAnswer",
    "EndpointMissing",
    "IncompleteAnswer",
    "ModelNotFound",
    "NoModel",
    "NoPrompt",
    "NoThinking",
    "NoVision",
    "OllamaError",
    "OutOfMemory",
    "ServerBusy",
    "ServerConfigError",
    "ServerTimeout",
    "ServerUnreachable",
    "UnexpectedResponse",
    "UnusableImage",
]


EMBEDDED = "embedded"
"""The address that stands for the engine inside this package (`ollama_client.embedded`)."""


class OllamaError(Exception):
    """Base of everything that this package raises on purpose.

    `cause` is what went wrong in a few words, for a message about what came of it.
    """

    @property
    def cause(self) -> str:
        return str(self)


class ServerConfigError(OllamaError):
    """The address, the name or the configuration file of a server cannot be used."""


class UnusableImage(OllamaError):
    """An image cannot be read, or has no pixels; nothing was sent."""


class NoPrompt(OllamaError):
    """Nothing was written that could be asked; nothing was sent."""


class ServerUnreachable(OllamaError):
    """No connection could be made; nothing was processed.

    `refused`: the machine is there, and nothing listens on the port (yet).
    """

    def __init__(self, url: str, reason: str, *, refused: bool = False) -> None:
        if url == EMBEDDED:
            message = f"The embedded engine does not answer ({reason}). Restart this program."
        else:
            message = (
                f"Can't reach Ollama at {url} ({reason}). Start the Ollama app (or run `ollama "
                "serve`), or set OLLAMA_BASE_URL to the address where it runs, or to embedded for "
                "the engine inside this package."
            )
        super().__init__(message)
        self.refused = refused


class ServerTimeout(OllamaError):
    """The server accepted the request and then stayed silent for too long."""

    def __init__(self, url: str, doing: str, seconds: float) -> None:
        look = "Choose" if url == EMBEDDED else "Run `ollama ps` to see what it does, choose"
        super().__init__(
            f"{_name(url)} sent nothing for {seconds:g} s while {doing}. {look} a smaller model, "
            "or raise timeout_s in Ollama Options."
        )
        self._seconds = seconds

    @property
    def cause(self) -> str:
        return f"the server sent nothing for {self._seconds:g} s"


class ModelNotFound(OllamaError):
    """The server does not have the model."""

    def __init__(self, model: str, url: str) -> None:
        super().__init__(
            f'The model "{model}" is not installed {_in(url)}. Fetch '
            + (_fetch_embedded() if url == EMBEDDED else f"it with: ollama pull {model}")
        )


class NoModel(ModelNotFound):
    """No model that is installed has a capability; nobody named one."""

    def __init__(self, capability: str, usual: str, url: str) -> None:
        OllamaError.__init__(
            self,
            f"No model for {capability} is installed {_in(url)}. Fetch "
            + (_fetch_embedded() if url == EMBEDDED else f"one, such as: ollama pull {usual}"),
        )


class NoVision(OllamaError):
    """An image was to be sent to a model without vision."""

    def __init__(self, model: str, url: str) -> None:
        super().__init__(
            f'The model "{model}" {_in(url)} cannot see images. Choose a model with vision, or '
            "fetch "
            + (_fetch_embedded() if url == EMBEDDED else "one, for example with: ollama pull llava")
        )


class NoThinking(OllamaError):
    """Thinking was asked of a model that cannot think."""

    def __init__(self, model: str, url: str) -> None:
        super().__init__(
            f'The model "{model}" {_in(url)} does not support thinking as asked. Set think to '
            '"off"'
            + (
                ", or choose a model with thinking."
                if url == EMBEDDED
                else ", or choose a model with thinking, for example: ollama pull qwen3"
            )
        )


class ServerBusy(OllamaError):
    """The server's queue is full (`status` 503), or a rate limit was met (429)."""

    def __init__(self, model: str, url: str, said: str, *, status: int = 503) -> None:
        self.status = status
        whom = f' for "{model}"' if model else ""
        super().__init__(
            f"{_name(url)} is too busy{whom} ({said}). Wait until its other requests "
            "have ended, then queue again."
        )


class OutOfMemory(OllamaError):
    """The model does not fit into the memory of the server."""

    def __init__(self, model: str, url: str, said: str) -> None:
        super().__init__(
            f'{_name(url)} has not enough memory for "{model}" ({said}). Choose a smaller '
            "model, lower num_ctx in Ollama Options, or close what else uses the GPU."
        )
        self._said = said

    @property
    def cause(self) -> str:
        return f"the server has not enough memory: {self._said}"


class EmptyAnswer(OllamaError):
    """The model ended its answer without a word."""

    def __init__(self, model: str, url: str, *, done_reason: str | None, thought: bool) -> None:
        if thought and done_reason == "length":
            why = (
                "its whole budget went into thinking. Raise num_predict in Ollama Options, set "
                f'think to "off", or choose its instruct variant (such as {_instruct(model)})'
            )
        elif thought:
            why = (
                f"it only thought. Choose its instruct variant (such as {_instruct(model)}), or "
                'set think to "off"'
            )
        elif done_reason == "length":
            why = "num_predict was used up before a word came. Raise it in Ollama Options"
        elif done_reason == "load":
            why = "the request held no text, so it only loaded the model. Write a prompt"
        else:
            why = (
                f"it stopped at once (done_reason: {done_reason or 'none'}). Queue again with "
                "another seed or prompt"
                + ("" if url == EMBEDDED else f", or check the model with: ollama run {model}")
            )
        super().__init__(f'Empty response from model "{model}" {_in(url)}: {why}.')


class IncompleteAnswer(OllamaError):
    """The stream ended before the server said that the answer was done."""

    def __init__(self, model: str, url: str, *, characters: int, why: str) -> None:
        super().__init__(
            f'The answer of "{model}" {_in(url)} broke off after {characters} characters '
            f"({why.rstrip('.')}). Queue again; if it happens again, "
            + ("" if url == EMBEDDED else "look into Ollama's log, or ")
            + "raise repeat_penalty."
        )
        self.characters = characters


class Cancelled(OllamaError):
    """The caller's `cancelled` callable said yes; the connection was closed."""

    def __init__(self, url: str) -> None:
        whom = "the embedded engine" if url == EMBEDDED else url
        super().__init__(f"The request to {whom} was cancelled.")


class UnexpectedResponse(OllamaError):
    """A response that no other class describes; `status` is HTTP's (200 within a stream)."""

    def __init__(self, url: str, status: int, said: str, advice: str = "") -> None:
        phrase = "" if status == HTTPStatus.OK else " " + _phrase(status)
        advice = advice or (
            "Queue again, or restart this program."
            if url == EMBEDDED
            else "Ollama's own log says more; queue again, or restart Ollama."
        )
        super().__init__(f'{_name(url)} answered{phrase}: "{said or "nothing"}". {advice}')
        self.status = status
        self.said = said

    @property
    def cause(self) -> str:
        return f'the server said: "{self.said or "nothing"}"'


class AccessDenied(UnexpectedResponse):
    """The server wants a key or a sign-in (401), or refuses this client (403)."""


class ConnectionBroke(UnexpectedResponse):
    """The connection was closed or reset before a word of the answer came."""

    def __init__(self, url: str, reason: str) -> None:
        see = "" if url == EMBEDDED else ", or see whether Ollama runs"
        super().__init__(url, 200, reason, f"The connection broke: queue again{see}.")

    @property
    def cause(self) -> str:
        return f"the connection broke: {self.said}"


class ContextTooLong(UnexpectedResponse):
    """The request is longer than the context of the model."""


class EndpointMissing(UnexpectedResponse):
    """The server does not know a path of Ollama's API.

    Args:
        api: what else it answers: "ollama" where it knows other parts of Ollama's API, "openai"
            where it speaks OpenAI's, else "".
    """

    def __init__(self, url: str, status: int, said: str, path: str, api: str) -> None:
        answer = f'{path} answered {_phrase(status)}: "{said or "nothing"}"'
        if api == "openai":
            message = (
                f"The server at {url} speaks OpenAI's API, not Ollama's ({answer}). Set "
                "OLLAMA_BASE_URL to an Ollama server."
            )
        elif api == "ollama":
            message = (
                f"The server at {url} lacks a part of Ollama's API ({answer}). Update it, or set "
                "OLLAMA_BASE_URL to another server."
            )
        else:
            message = (
                f"The server at {url} does not look like Ollama ({answer}). Check OLLAMA_BASE_URL."
            )
        OllamaError.__init__(self, message)
        self.status = status
        self.said = said


# Texts, which re compiles when they are first used: ComfyUI imports this when it starts.
_OUT_OF_MEMORY = (
    r"(?i)out.of.memory|more system memory|insufficient memory|cudamalloc|failed to allocate"
    r"|unable to allocate|not enough (?:memory|vram)|resource limitations"
)
_CONTEXT = (
    r"(?i)longer than the context|exceeds? the (?:available )?context|context length"
    r"|exceed_context_size|exceeds the maximum context"
)
_NO_VISION = (
    r"(?i)(?:not|n't) support (?:image|vision|multimodal)|image input is not supported"
    r"|missing data required for image|no vision|mmproj"
)


def from_response(
    status: int,
    said: str,
    *,
    model: str,
    url: str,
    signin_url: str = "",
    key_withheld: bool = False,
    path: str = "",
    other_api: Callable[[], str] = str,
) -> OllamaError:
    """Return the error that a response stands for.

    The texts differ between Ollama's releases (reference: the error texts of 0.5 to 0.33), so they
    are matched loosely, and the server's words are always part of the message.

    Args:
        status: the HTTP status; 200 for an error line inside a stream.
        said: the server's own text, from `{"error": ...}` or the body.
        signin_url: where to sign in, which a 401 of a cloud model carries.
        key_withheld: a key is configured, but the connection is not safe enough to send it.
        path: what was asked for.
        other_api: finds the `api` of `EndpointMissing`; called only where the path is missing.
    """
    said = shorten(said)
    # An error line in a stream has status 200, so the text decides wherever it can.
    if re.search(_OUT_OF_MEMORY, said):
        return OutOfMemory(model, url, said)
    if re.search(_CONTEXT, said):
        advice = "Raise num_ctx, lower max_image_side in Ollama Options, or send less text."
        return ContextTooLong(url, status, said, advice)
    if (status in (200, 400, 500) and "thinking" in said) or "think value" in said:
        return NoThinking(model, url)
    if status != HTTPStatus.NOT_FOUND and re.search(_NO_VISION, said):
        return NoVision(model, url)
    if "file does not exist" in said:
        advice = f'Its library has no model "{model}": check the spelling.'
        return UnexpectedResponse(url, status, said, advice)
    if model and "not found" in said and "model" in said:
        return ModelNotFound(model, url)
    # LM Studio answers 200 to a path that it does not know.
    if status == HTTPStatus.NOT_FOUND or said.startswith("Unexpected endpoint"):
        return EndpointMissing(url, status, said, path, other_api())
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        return ServerBusy(model, url, said or _phrase(status), status=status)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AccessDenied(url, status, said, _access_advice(status, signin_url, key_withheld))
    if url == EMBEDDED and status == HTTPStatus.BAD_REQUEST:
        return UnexpectedResponse(url, status, said, "Change that, then queue again.")
    return UnexpectedResponse(url, status, said)


def shorten(text: str, limit: int = 300) -> str:
    """Return `text` on one line, with at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _fetch_embedded() -> str:
    return f"smolvlm, which describes and writes, with: {pull('smolvlm')}"


def _name(url: str) -> str:
    """Who answered, at the beginning of a sentence."""
    return "The embedded engine" if url == EMBEDDED else f"Ollama at {url}"


def _in(url: str) -> str:
    """Where a model is."""
    return "in the embedded engine" if url == EMBEDDED else f"on the Ollama server at {url}"


def _access_advice(status: int, signin_url: str, key_withheld: bool) -> str:
    if key_withheld:
        return "A key is set, but it is sent over https or to this machine only: use an https URL."
    if status == HTTPStatus.FORBIDDEN:
        return (
            "It refuses requests from here: allow this address with OLLAMA_HOST and OLLAMA_ORIGINS "
            "on the server, or check OLLAMA_BASE_URL."
        )
    if signin_url:
        return f"Run `ollama signin`, or open {shorten(signin_url)}"
    return "Set OLLAMA_API_KEY, or the server's key in image-refinery.toml, and start again."


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _instruct(model: str) -> str:
    """
    >>> _instruct("qwen3-vl:8b"), _instruct("qwen3-vl")
    ('qwen3-vl:8b-instruct', 'qwen3-vl:instruct')
    """
    name, _, tag = model.partition(":")
    return f"{name}:{tag}-instruct" if tag and tag != "latest" else f"{name}:instruct"
