"""Advice for errors, in the terms of the interface that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ._program import install, pull
from .llm import errors
from .llm.errors import LLMError
from .llm.llamacpp.installed import why_unavailable
from .llm.servers import CONFIG_NAME, DEFAULT_NAME, EMBEDDED

if TYPE_CHECKING:
    from .llm.backend import Answer


_START = {
    "ollama": (
        "Start the Ollama app (or run `ollama serve`), or set OLLAMA_BASE_URL to the address where "
        "it runs, or to embedded for the engine inside this package."
    ),
    "lmstudio": "Start its server in LM Studio, under Developer (or run `lms server start`).",
    EMBEDDED: "Restart this program.",
}
_USUAL_MODELS = {"describing images": "llava", "writing text": "llama3.2"}


class Edge(NamedTuple):
    """The interface that shows a message.

    Attributes:
        again: how to repeat a run, such as "queue again".
        options: where to set the options of a request, after "num_ctx in "; "": nowhere.
        flags: options of a request that the command line has, such as num_predict.
    """

    again: str
    options: str = ""
    flags: Sequence[str] = ()

    def set(self, verb: str, option: str) -> str:
        """Return "raise num_ctx in Ollama Options", or "" if the option cannot be set.

        >>> Edge(again="", flags=["num_ctx"]).set("raise", "num_ctx")
        'raise --num-ctx'
        """
        if option in self.flags:
            return f"{verb} --{option.replace('_', '-')}"
        return f"{verb} {option} in {self.options}" if self.options else ""


def with_advice(error: LLMError, edge: Edge) -> str:
    """Return the error's message, followed by advice and its code."""
    return with_code(error, f"{error} {advice(error, edge)}".strip())


def with_code(error: Exception, text: str = "") -> str:
    """Return an error's message, or `text`, followed by its code; docs/errors.md lists the codes.

    >>> with_code(LLMError("It failed."))
    'It failed. (R309)'
    """
    code: str = getattr(error, "code", "")
    return f"{text or error} ({code})" if code else text or str(error)


def remark(answer: Answer, edge: Edge) -> str:
    """Return why an answer is incomplete, followed by advice; "" for a complete answer."""
    if answer.context_full:
        return f"{answer.remark} {_sentence(edge.set('raise', 'num_ctx'), 'send less')}"
    if answer.remark:
        option = "num_predict" if edge.flags else "it"
        return f"{answer.remark} {_sentence(edge.set('raise', option))}".strip()
    return ""


def advice(error: LLMError, edge: Edge) -> str:
    """Return what to do about an error as one sentence, or ""."""
    kind = error.server.kind if error.server is not None else ""
    product = (error.server.product if error.server is not None else "") or "the server"
    embedded, ollama = kind == EMBEDDED, kind == "ollama"
    again = edge.again
    match error:
        case errors.BadRequest() | errors.ServerConfigError():
            return ""
        case errors.NoServer():
            here = f"Start {product}" if kind else "Start Ollama or LM Studio (or install one)"
            there = f"name a server on another machine in {CONFIG_NAME}"
            if why_unavailable():
                return (
                    f"{here}, {there}, or install the engine inside this package with: "
                    f"{install('xllamacpp')}"
                )
            return (
                f"{here}, {there}, or choose the server {EMBEDDED}: the engine inside this package."
            )
        case errors.UnknownServer():
            return f"Check the address, and the kind in {CONFIG_NAME}."
        case errors.ServerUnreachable(server=server) if not kind and server is not None:
            # No kind: the address comes from a variable or the file.
            if server.name == DEFAULT_NAME:
                return (
                    "Start the server there (for Ollama: `ollama serve`), or correct "
                    "OLLAMA_BASE_URL."
                )
            return f"Start it, or correct its url in {CONFIG_NAME}."
        case errors.ServerUnreachable():
            return _START.get(kind, f"Start {product}, or check its address.")
        case errors.ConnectionBroke():
            return _sentence(again, "" if embedded else f"check whether {product} runs")
        case errors.ServerTimeout():
            return _sentence(
                "run `ollama ps` to see what it does" if ollama else "",
                "choose a smaller model",
                edge.set("raise", "timeout_s"),
            )
        case errors.NotInLibrary():
            return "Check the spelling."
        case errors.NoModel() if ollama:
            usual = _USUAL_MODELS.get(error.task, "llava")
            return f"Download one, for example with: ollama pull {usual}"
        case errors.NoModel() if embedded or kind == "lmstudio":
            return _fetch(kind, "")
        case errors.NoModel():
            return "Add such a model to the server, or choose another server."
        case errors.ModelNotFound():
            fetch = _fetch(kind, error.model)
            if not error.instead:
                return fetch
            choose = f"choose an installed one ({', '.join(error.instead)})"
            if ollama or embedded:  # `fetch` ends with a command
                return f"{_sentence(choose)} {fetch}"
            there = "download it in LM Studio" if kind == "lmstudio" else "add it to the server"
            return _sentence(choose, there)
        case errors.NoVision() if ollama:
            return (
                "Choose a model with vision, or download one, for example with: ollama pull llava"
            )
        case errors.NoVision():
            return f"Choose a model with vision.{f' {_fetch_embedded()}' if embedded else ''}"
        case errors.NoThinking():
            example = ", for example: ollama pull qwen3" if ollama else ""
            return f'Set think to "off", or choose a model with thinking{example}.'
        case errors.ServerBusy():
            return f"Wait until its other requests have ended, then {again}."
        case errors.LoadFailed():
            return _sentence("choose another model", edge.set("lower", "num_ctx"))
        case errors.OutOfMemory():
            return _sentence(
                "choose a smaller model",
                edge.set("lower", "num_ctx"),
                "close other programs that use the GPU",
            )
        case errors.EmptyAnswer():
            return _about_empty(error, edge, ollama)
        case errors.IncompleteAnswer():
            log = "" if embedded else f"check {_whose(product)} log"
            penalty = edge.set("raise", "repeat_penalty") if error.repeats else ""
            return _sentence(again, log, penalty)
        case _:
            return _about_response(error, edge, kind, product)


def _about_empty(error: errors.EmptyAnswer, edge: Edge, ollama: bool) -> str:
    example = f" (such as {_instruct(error.model)})" if ollama else ""
    instruct = f"choose its instruct variant{example}"
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
        f"check the model with: ollama run {error.model}" if ollama else "choose another model",
    )


def _about_response(error: LLMError, edge: Edge, kind: str, product: str) -> str:
    # An address of unknown kind comes from the user: a search only returns proven kinds.
    is_default = error.server is not None and error.server.name == DEFAULT_NAME
    given = kind == "ollama" or (not kind and is_default)
    variable = "OLLAMA_BASE_URL" if given else f"its url in {CONFIG_NAME}"
    match error:
        case errors.AccessDenied():
            return _about_access(error, variable)
        case errors.ContextTooLong():
            return _sentence(
                edge.set("raise", "num_ctx"),
                edge.set("lower", "max_image_side"),
                "send less text",
            )
        case errors.Redirected():
            return f"Set {variable} to that address."
        case errors.WrongForm():
            return (
                f"This is not what {product} answers: check {variable}, and whether a proxy is "
                "in between."
            )
        case errors.EndpointMissing(api="openai"):
            return "Set OLLAMA_BASE_URL to an Ollama server."
        case errors.EndpointMissing(api="ollama"):
            return "Update it, or set OLLAMA_BASE_URL to another server."
        case errors.EndpointMissing() if kind == "ollama":
            return "Check OLLAMA_BASE_URL."
        case errors.EndpointMissing():
            return f"Update it, or check its kind in {CONFIG_NAME}."
        case errors.UnexpectedResponse(status=400) if kind == EMBEDDED:
            return f"Change that, then {edge.again}."
        case errors.UnexpectedResponse() if kind == EMBEDDED:
            return _sentence(edge.again, "restart this program")
        case errors.UnexpectedResponse():
            log = f"{errors.capital(_whose(product))} own log says more."
            return f"{log} {_sentence(edge.again, f'restart {product}')}"
        case _:
            return ""


def _about_access(error: errors.AccessDenied, variable: str) -> str:
    if error.key_withheld:
        return (
            "A key is set, but the pack sends it only over https or to this machine: use an https "
            "URL."
        )
    if error.status == 403 and variable == "OLLAMA_BASE_URL":
        return (
            "It refuses requests from here: allow this address with OLLAMA_HOST and OLLAMA_ORIGINS "
            "on the server, or check OLLAMA_BASE_URL."
        )
    if error.signin_url:
        return f"Run `ollama signin`, or open {errors.shorten(error.signin_url)}"
    if variable == "OLLAMA_BASE_URL":
        return f"Set OLLAMA_API_KEY, or the server's key in {CONFIG_NAME}, and start again."
    return f"Set the server's key in {CONFIG_NAME}."


def _fetch(kind: str, model: str) -> str:
    """Return how to fetch a model for a kind of server."""
    if kind == EMBEDDED:
        return _fetch_embedded()
    if kind == "ollama" and model:
        return f"Download it with: ollama pull {model}"
    if kind == "lmstudio":
        return "Choose another, or download it in LM Studio."
    return "Choose one that the server lists, or add it there."


def _whose(product: str) -> str:
    return f"{product}'" if product.endswith("s") else f"{product}'s"


def _fetch_embedded() -> str:
    return f"Download smolvlm, which describes and writes, with: {pull('smolvlm')}"


def _sentence(*choices: str) -> str:
    """Join choices of what to do into one sentence.

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
