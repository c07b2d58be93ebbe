"""What the nodes that talk to Ollama do around a run: connect, cancel, turn errors into texts.

Imported when a node runs: the client is not needed to describe the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from comfy_api.latest import io

from .. import memory
from ..ollama_client.client import OllamaClient
from ..ollama_client.errors import Cancelled, OllamaError
from ..ollama_client.stages import Outcome, Watcher
from . import host
from .stage_inputs import ErrorText, Inputs, one, stops_on_error

Results = TypeVar("Results")


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
        host.stop()
    except OllamaError as error:
        # Where the page hides errors behind a button, the node would go on saying "describe with".
        host.show(host.node_id(node), f"Error: {error}")
        if stops_on_error(inputs):
            raise
        return error


def spoken(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the texts of outcomes, errors as messages; a run with one will not be cached."""
    listed = list(outcomes)
    if any(isinstance(outcome, OllamaError) for outcome in listed):
        host.count_failed_run()
    return [ErrorText(f"Error: {o}") if isinstance(o, OllamaError) else o.text for o in listed]
