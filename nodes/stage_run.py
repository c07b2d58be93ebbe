"""What the nodes that talk to Ollama do around a run: connect, cancel, turn errors into texts.

Imported when a node runs: the client is not needed to describe the nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from comfy_api.latest import io

from .. import memory
from ..captioning.stages import Outcome, Watcher
from ..llm.errors import Cancelled, OllamaError
from ..ollama_client.client import Answer, OllamaClient
from . import host
from .stage_inputs import ErrorText, Inputs, one, stops_on_error

Results = TypeVar("Results")

_SHOWN_LINES = 6


def ask_server(
    node: type[io.ComfyNode], inputs: Inputs, ask: Callable[[OllamaClient, Watcher], Results]
) -> Results | OllamaError:
    """Return what `ask` gives, or the error that met the whole run.

    A cancel ends the node, and so does an error where `on_error` says so.
    """
    watcher = host.NodeWatcher(host.node_id(node))
    try:
        memory.finish_pending_unloads(host.interrupted)
        with OllamaClient(host.server_named(one(inputs, "server", ""))) as client:
            return ask(client, watcher)
    except Cancelled:
        watcher.show_cancelled()
        host.stop()
    except OllamaError as error:
        if stops_on_error(inputs):
            # Where the page hides errors behind a button, "describe with ..." would stay.
            host.show(host.node_id(node), f"Error: {error}")
            raise
        return error


def to_texts(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the texts of outcomes, errors as their messages."""
    return [ErrorText(f"Error: {o}") if isinstance(o, OllamaError) else o.text for o in outcomes]


def finish(
    node: type[io.ComfyNode],
    verb: str,
    noun: str,
    outcomes: Sequence[Outcome],
    began: float,
    *,
    first_stage: Sequence[Outcome] = (),
) -> None:
    """Show on the node what a run did, and keep a run with an error out of ComfyUI's cache.

    Args:
        verb, noun: what the node did to each, such as "described" and "image".
        outcomes: one for each text of the run.
        began: time.monotonic() at its start.
        first_stage: what `outcomes` were made of; may have been cut as well.
    """
    # Errors and remarks that many answers share are shown once.
    errors = list(dict.fromkeys(f"Error: {o}" for o in outcomes if isinstance(o, OllamaError)))
    answers = [o for o in (*first_stage, *outcomes) if isinstance(o, Answer)]
    remarks = list(dict.fromkeys(answer.remark for answer in answers if answer.remark))
    if errors:
        host.count_failed_run(node)
    lines = [_summary(verb, noun, outcomes, time.monotonic() - began), *errors, *remarks]
    host.show(host.node_id(node), *lines[:_SHOWN_LINES])


def _summary(verb: str, noun: str, outcomes: Sequence[Outcome], seconds: float) -> str:
    count = len(outcomes)
    good = sum(isinstance(outcome, Answer) for outcome in outcomes)
    if count and not good:
        return f"{count} of {count} failed after {seconds:.1f} s."
    what = f"{count} {noun}" if count == 1 else f"{count} {noun}s"
    if good < count:
        what = f"{good} of {what}"
    return f"{verb} {what} in {seconds:.1f} s."
