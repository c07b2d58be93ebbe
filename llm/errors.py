"""The errors of language-model servers. Each error has data and a message of one sentence.

    LLMError
    |-- ServerConfigError      the address, the name or the configuration file is not usable
    |-- BadRequest             the request cannot be sent as it is
    |   |-- UnusableImage      the image cannot be read, or has no pixels
    |   `-- NoPrompt           there is no text to send
    |-- ServerUnreachable      no connection could be made
    |   `-- NoServer           no server was found on this machine
    |-- UnknownServer          the server is not a language-model server
    |-- ConnectionBroke        the connection ended before any part of the answer
    |-- ServerTimeout          connected, but silent for too long
    |-- ModelNotFound          the server does not have the model
    |   |-- NoModel            no installed model has the capability
    |   `-- NotInLibrary       the library from which models are pulled does not have it
    |-- NoVision               the model does not take images
    |-- NoThinking             the model does not support thinking, or not at that level
    |-- ServerBusy             the queue is full, or a rate limit was reached
    |-- LoadFailed             the server could not load the model
    |-- OutOfMemory            the model does not fit into the server's memory
    |-- EmptyAnswer            the model ended its answer without text
    |-- IncompleteAnswer       the answer broke off
    `-- UnexpectedResponse     any other response
        |-- AccessDenied       401 or 403
        |-- ContextTooLong     the request is longer than the model's context
        |-- EndpointMissing    the server lacks a path of the API, or has another API
        |-- Redirected         a status from 300 to 399
        `-- WrongForm          not the JSON that the API specifies

    Cancelled                  the caller asked to stop; not an LLMError

Each class has a `code`, such as R101, which docs/errors.md explains: R1.. servers and connections,
R2.. models, R3.. requests and answers. (The refiner has R4.., files and inputs of nodes R5...)

The message says what failed and why. What to do about it depends on the interface: a node names a
widget, the command line names a command. Both add it, and the code, with `_advice.with_advice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .servers import Server

__all__ = [
    "AccessDenied",
    "BadRequest",
    "Cancelled",
    "ConnectionBroke",
    "ContextTooLong",
    "EmptyAnswer",
    "EndpointMissing",
    "IncompleteAnswer",
    "LLMError",
    "LoadFailed",
    "ModelNotFound",
    "NoModel",
    "NoPrompt",
    "NoServer",
    "NoThinking",
    "NoVision",
    "NotInLibrary",
    "OutOfMemory",
    "Redirected",
    "ServerBusy",
    "ServerConfigError",
    "ServerTimeout",
    "ServerUnreachable",
    "UnexpectedResponse",
    "UnknownServer",
    "UnusableImage",
    "WrongForm",
]


class Cancelled(Exception):
    """The caller's `cancelled` returned True; the connection is closed."""

    def __init__(self) -> None:
        super().__init__("The run was cancelled.")


class LLMError(Exception):
    """Base of every error that this package and the clients of servers raise on purpose.

    Attributes:
        code: of the class, see docs/errors.md.
        server: the server, or None.
        model: the model, or "".
        cause: what went wrong in a few words, to be quoted in another message.
    """

    code = "R309"

    def __init__(
        self, sentence: str, *, server: Server | None = None, model: str = "", cause: str = ""
    ) -> None:
        super().__init__(sentence)
        self.server = server
        self.model = model
        self.cause = cause or sentence

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors go from one process to another, whatever their constructors take."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[LLMError], args: tuple[str, ...]) -> LLMError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ServerConfigError(LLMError):
    """The address, the name or the configuration file of a server cannot be used."""

    code = "R110"


class BadRequest(LLMError):
    """The request cannot be sent as it is; nothing was sent."""

    code = "R301"


class UnusableImage(BadRequest):
    """The image cannot be read, or has no pixels."""

    code = "R302"


class NoPrompt(BadRequest):
    """There is no text to send."""

    code = "R303"


class ServerUnreachable(LLMError):
    """No connection could be made.

    Attributes:
        refused: the machine is there, but nothing listens on the port (yet).
    """

    code = "R101"

    def __init__(self, server: Server, reason: str, *, refused: bool = False) -> None:
        super().__init__(f"Can't reach {server.title} ({reason}).", server=server)
        self.refused = refused


class NoServer(ServerUnreachable):
    """No server was found on this machine, at none of the usual ports."""

    code = "R102"

    def __init__(self, server: Server, ports: Sequence[int]) -> None:
        *most, last = map(str, ports)
        product = server.product or "language-model server"
        name = product if "server" in product else f"{product} server"
        LLMError.__init__(
            self,
            f"No {name} answers on this machine (127.0.0.1, ports {', '.join(most)} and {last}).",
            server=server,
        )
        self.refused = False  # it is not one address that may answer in a moment


class UnknownServer(LLMError):
    """Something answers at the address, but not like any known server."""

    code = "R103"

    def __init__(self, server: Server) -> None:
        super().__init__(
            f"The server at {server.url} is not a language-model server that this pack supports.",
            server=server,
        )


class ConnectionBroke(LLMError):
    """The connection was closed or reset before any part of the answer arrived."""

    code = "R104"

    def __init__(self, server: Server, reason: str) -> None:
        cause = f"the connection broke: {reason}"
        super().__init__(
            f"The connection to {server.title} broke ({reason}).", server=server, cause=cause
        )


class ServerTimeout(LLMError):
    """The server accepted the request and then sent nothing for `seconds`."""

    code = "R105"

    def __init__(self, server: Server, doing: str, seconds: float) -> None:
        super().__init__(
            f"{capital(server.title)} sent nothing for {seconds:g} s while {doing}.",
            server=server,
            cause=f"the server sent nothing for {seconds:g} s",
        )
        self.seconds = seconds


class ModelNotFound(LLMError):
    """The server does not have the model.

    Attributes:
        instead: names of suitable installed models, three at most.
    """

    code = "R201"

    instead: Sequence[str] = ()

    def __init__(self, model: str, server: Server) -> None:
        super().__init__(
            f'The model "{model}" is not installed {server.where}.', server=server, model=model
        )


class NoModel(ModelNotFound):
    """No installed model is suitable for "auto".

    Attributes:
        task: such as "describing images".
    """

    code = "R202"

    def __init__(self, task: str, server: Server) -> None:
        LLMError.__init__(self, f"No model for {task} is installed {server.where}.", server=server)
        self.task = task


class NotInLibrary(ModelNotFound):
    """The library that the server pulls from does not have the model."""

    code = "R203"

    def __init__(self, model: str, server: Server, said: str) -> None:
        LLMError.__init__(
            self,
            f'{capital(server.title)} answered "{said}": its library has no model "{model}".',
            server=server,
            model=model,
        )


class NoVision(LLMError):
    """The request has an image, but the model does not take images."""

    code = "R204"

    def __init__(self, model: str, server: Server) -> None:
        super().__init__(
            f'The model "{model}" {server.where} does not take images.',
            server=server,
            model=model,
        )


class NoThinking(LLMError):
    """Thinking was requested from a model that does not support it."""

    code = "R205"

    def __init__(self, model: str, server: Server) -> None:
        super().__init__(
            f'The model "{model}" {server.where} does not support thinking as requested.',
            server=server,
            model=model,
        )


class ServerBusy(LLMError):
    """The server's queue is full (`status` 503), or a rate limit was reached (429)."""

    code = "R109"

    def __init__(self, model: str, server: Server, said: str, *, status: int = 503) -> None:
        for_model = f' for "{model}"' if model else ""
        super().__init__(
            f"{capital(server.title)} is too busy{for_model} ({said}).", server=server, model=model
        )
        self.status = status


class OutOfMemory(LLMError):
    """The model does not fit into the memory of the server."""

    code = "R207"

    def __init__(self, model: str, server: Server, said: str) -> None:
        super().__init__(
            f'{capital(server.title)} does not have enough memory for "{model}" ({said}).',
            server=server,
            model=model,
            cause=f"the server does not have enough memory: {said}",
        )


class LoadFailed(LLMError):
    """The server could not load the model."""

    code = "R206"

    def __init__(self, model: str, server: Server, why: str) -> None:
        super().__init__(
            f'{capital(server.title)} could not load "{model}" ({why}).',
            server=server,
            model=model,
        )


class EmptyAnswer(LLMError):
    """The model ended its answer without text.

    Attributes:
        done_reason: why the answer ended, by the server's name for it, or None.
        thought: whether the model produced thinking.
    """

    code = "R304"

    def __init__(
        self, model: str, server: Server, *, done_reason: str | None, thought: bool
    ) -> None:
        if thought and done_reason == "length":
            why = "it used up num_predict for thinking"
        elif thought:
            why = "it produced thinking but no text"
        elif done_reason == "length":
            why = "num_predict was used up before any text"
        elif done_reason == "load":
            why = "the request had no text, so it only loaded the model"
        else:
            why = f"it stopped immediately (done_reason: {done_reason or 'none'})"
        super().__init__(
            f'Empty response from model "{model}" {server.where}: {why}.',
            server=server,
            model=model,
        )
        self.done_reason = done_reason
        self.thought = thought


class IncompleteAnswer(LLMError):
    """The stream ended before the server said that the answer was complete.

    Attributes:
        characters: how many had arrived.
        repeats: the model repeats itself, or may do so.
    """

    code = "R305"

    def __init__(
        self, model: str, server: Server, *, characters: int, why: str, repeats: bool = False
    ) -> None:
        super().__init__(
            f'The answer of "{model}" {server.where} broke off after {characters} characters '
            f"({why.rstrip('.')}).",
            server=server,
            model=model,
        )
        self.characters = characters
        self.repeats = repeats


class UnexpectedResponse(LLMError):
    """A response that no other class describes.

    Attributes:
        status: the HTTP status; 200 for an error line within a stream.
        said: the server's own message in full.
    """

    code = "R307"

    def __init__(self, server: Server, status: int, said: str, *, model: str = "") -> None:
        phrase = "" if status == HTTPStatus.OK else " " + status_phrase(status)
        quoted = shorten(said) or "nothing"
        super().__init__(
            f'{capital(server.title)} answered{phrase}: "{quoted}".',
            server=server,
            model=model,
            cause=f'the server said: "{quoted}"',
        )
        self.status = status
        self.said = said


class AccessDenied(UnexpectedResponse):
    """The server requires a key or a sign-in (401), or refuses this client (403).

    Attributes:
        signin_url: where to sign in, or "".
        key_withheld: a key is configured, but was not sent: the connection is not encrypted.
    """

    code = "R106"

    signin_url = ""
    key_withheld = False


class ContextTooLong(UnexpectedResponse):
    """The request is longer than the context of the model."""

    code = "R306"


class Redirected(UnexpectedResponse):
    """The server redirects to another address: `said`."""

    code = "R107"


class WrongForm(UnexpectedResponse):
    """The response is not the JSON that the API specifies."""

    code = "R308"

    def __init__(self, server: Server, said: str) -> None:
        super().__init__(server, 200, said)


class EndpointMissing(UnexpectedResponse):
    """The server does not have a path of the API that was expected.

    Attributes:
        api: the API that it has instead: "ollama" for other parts of Ollama's API, "openai" for
            OpenAI's API, else "".
    """

    code = "R108"

    def __init__(self, server: Server, status: int, said: str, path: str, api: str) -> None:
        what = {
            "openai": "speaks OpenAI's API, not Ollama's",
            "ollama": "lacks a part of Ollama's API",
        }.get(api, "does not look like Ollama")
        if server.kind != "ollama":
            what = f"lacks a part of the API of {server.product or 'OpenAI'}"
        answer = f'{path} answered {status_phrase(status)}: "{shorten(said) or "nothing"}"'
        LLMError.__init__(self, f"The server at {server.url} {what} ({answer}).", server=server)
        self.status = status
        self.said = said
        self.api = api


def shorten(text: str, limit: int = 300) -> str:
    """Return `text` on one line, with at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def status_phrase(status: int) -> str:
    """Return a status code with its name.

    >>> status_phrase(404)
    '404 Not Found'
    """
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def capital(title: str) -> str:
    """Return a title for the beginning of a sentence; product names keep their case.

    >>> capital("the server at http://box"), capital("vLLM at http://box")
    ('The server at http://box', 'vLLM at http://box')
    """
    return f"T{title[1:]}" if title.startswith("the ") else title
