"""What to do about an error, in the words of the place where it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ._program import pull
from .llm import errors
from .llm.errors import LLMError

if TYPE_CHECKING:
    from .llm.backend import Answer


class Edge(NamedTuple):
    """Where a message is read.

    Attributes:
        again: how a run is repeated, such as "queue again".
        options: where the options of a request are set, after "num_ctx in "; "": nowhere.
    """

    again: str
    options: str = ""

    def set(self, verb: str, option: str) -> str:
        """Return "raise num_ctx in Ollama Options", or "" where the option cannot be set."""
        return f"{verb} {option} in {self.options}" if self.options else ""


def with_advice(error: LLMError, edge: Edge) -> str:
    """Return the error's sentence, and what to do about it."""
    return f"{error} {advice(error, edge)}".strip()


def remark(answer: Answer, edge: Edge) -> str:
    """Return what a reader should know of an answer that is not whole, and what to do, else ""."""
    if answer.context_full:
        return f"{answer.remark} {_sentence(edge.set('raise', 'num_ctx'), 'send less')}"
    if answer.remark:
        return f"{answer.remark} {_sentence(edge.set('raise', 'it'))}".strip()
    return ""


def advice(error: LLMError, edge: Edge) -> str:
    """Return what to do about an error, as a sentence, or ""."""
    embedded = error.server is not None and error.server.is_embedded
    again = edge.again
    match error:
        case errors.BadRequest() | errors.ServerConfigError():
            return ""
        case errors.ServerUnreachable() if embedded:
            return "Restart this program."
        case errors.ServerUnreachable():
            return (
                "Start the Ollama app (or run `ollama serve`), or set OLLAMA_BASE_URL to the "
                "address where it runs, or to embedded for the engine inside this package."
            )
        case errors.ConnectionBroke():
            return _sentence(again, "" if embedded else "check whether Ollama runs")
        case errors.ServerTimeout():
            return _sentence(
                "" if embedded else "run `ollama ps` to see what it does",
                "choose a smaller model",
                edge.set("raise", "timeout_s"),
            )
        case errors.NotInLibrary():
            return "Check the spelling."
        case errors.ModelNotFound() if embedded:
            return _fetch_embedded()
        case errors.NoModel():
            return f"Fetch one, such as: ollama pull {error.model}"
        case errors.ModelNotFound():
            return f"Fetch it with: ollama pull {error.model}"
        case errors.NoVision() if embedded:
            return f"Choose a model with vision, or: {_fetch_embedded()}"
        case errors.NoVision():
            return "Choose a model with vision, or fetch one, for example with: ollama pull llava"
        case errors.NoThinking():
            example = "" if embedded else ", for example: ollama pull qwen3"
            return f'Set think to "off", or choose a model with thinking{example}.'
        case errors.ServerBusy():
            return f"Wait until its other requests have ended, then {again}."
        case errors.OutOfMemory():
            return _sentence(
                "choose a smaller model",
                edge.set("lower", "num_ctx"),
                "close what else uses the GPU",
            )
        case errors.EmptyAnswer():
            return _about_empty(error, edge, embedded)
        case errors.IncompleteAnswer():
            log = "" if embedded else "look into Ollama's log"
            return _sentence(again, log, edge.set("raise", "repeat_penalty"))
        case _:
            return _about_response(error, edge, embedded)


def _about_empty(error: errors.EmptyAnswer, edge: Edge, embedded: bool) -> str:
    instruct = f"choose its instruct variant (such as {_instruct(error.model)})"
    off = 'set think to "off"' if edge.options else ""
    if error.thought and error.done_reason == "length":
        return _sentence(edge.set("raise", "num_predict"), off, instruct)
    if error.thought:
        return _sentence(instruct, off)
    if error.done_reason == "length":
        return _sentence(edge.set("raise", "num_predict"), "choose another model")
    if error.done_reason == "load":
        return "Write a prompt."
    return _sentence(
        f"{edge.again} with another seed or prompt",
        "" if embedded else f"check the model with: ollama run {error.model}",
    )


def _about_response(error: LLMError, edge: Edge, embedded: bool) -> str:
    match error:
        case errors.AccessDenied():
            return _about_access(error)
        case errors.ContextTooLong():
            return _sentence(
                edge.set("raise", "num_ctx"),
                edge.set("lower", "max_image_side"),
                "send less text",
            )
        case errors.Redirected():
            return "Set OLLAMA_BASE_URL to that address."
        case errors.WrongForm():
            return (
                "This is not what Ollama answers: check OLLAMA_BASE_URL, and whether a proxy is "
                "between."
            )
        case errors.EndpointMissing(api="openai"):
            return "Set OLLAMA_BASE_URL to an Ollama server."
        case errors.EndpointMissing(api="ollama"):
            return "Update it, or set OLLAMA_BASE_URL to another server."
        case errors.EndpointMissing():
            return "Check OLLAMA_BASE_URL."
        case errors.UnexpectedResponse(status=400) if embedded:
            return f"Change that, then {edge.again}."
        case errors.UnexpectedResponse() if embedded:
            return _sentence(edge.again, "restart this program")
        case errors.UnexpectedResponse():
            return f"Ollama's own log says more. {_sentence(edge.again, 'restart Ollama')}"
        case _:
            return ""


def _about_access(error: errors.AccessDenied) -> str:
    if error.key_withheld:
        return "A key is set, but it is sent over https or to this machine only: use an https URL."
    if error.status == 403:
        return (
            "It refuses requests from here: allow this address with OLLAMA_HOST and OLLAMA_ORIGINS "
            "on the server, or check OLLAMA_BASE_URL."
        )
    if error.signin_url:
        return f"Run `ollama signin`, or open {errors.shorten(error.signin_url)}"
    return "Set OLLAMA_API_KEY, or the server's key in image-refinery.toml, and start again."


def _fetch_embedded() -> str:
    return f"Fetch smolvlm, which describes and writes, with: {pull('smolvlm')}"


def _sentence(*choices: str) -> str:
    """Join what can be done into one sentence.

    >>> _sentence("queue again", "", "restart Ollama")
    'Queue again, or restart Ollama.'
    """
    *most, last = [choice for choice in choices if choice] or [""]
    text = f"{', '.join(most)}, or {last}" if most else last
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _instruct(model: str) -> str:
    """
    >>> _instruct("qwen3-vl:8b"), _instruct("qwen3-vl")
    ('qwen3-vl:8b-instruct', 'qwen3-vl:instruct')
    """
    name, _, tag = model.partition(":")
    return f"{name}:{tag}-instruct" if tag and tag != "latest" else f"{name}:instruct"
