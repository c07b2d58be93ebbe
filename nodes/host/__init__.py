"""What the nodes need of ComfyUI: progress, interruption, its folders. Imported by nodes only."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...captioning.watcher import Outcome, Watcher
from ...llm.errors import OllamaError
from ...llm.servers import CONFIG_NAME, Server, find_server, server_names
from ...texts.characters import whole_characters
from .model_lists import Catalogue

_SHOW_EVERY_S = 0.1
_SHOWN_CHARACTERS = 600
_TAG = re.compile("<(?=[A-Za-z/!?])")
_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields: Any) -> io.Schema:
    """Return a Schema of those fields that this ComfyUI knows (0.3.64 lacks `search_aliases`)."""
    return io.Schema(**{key: value for key, value in fields.items() if key in _SCHEMA_FIELDS})


def config_file() -> Path:
    """image-refinery.toml beside the folders of ComfyUI's users, where no route serves it."""
    return Path(folder_paths.get_user_directory()) / CONFIG_NAME


PACK_FOLDER = Path(__file__).resolve().parents[2]


def own_folder(name: str) -> Path:
    """A folder for the user's own files of this pack, beside the folders of ComfyUI's users."""
    return Path(folder_paths.get_user_directory()) / "image-refinery" / name


def server_named(name: str) -> Server:
    """Return the server that a workflow's `server` widget names."""
    return find_server(name, config=config_file())


def servers_to_choose() -> list[str]:
    """Names for the `server` widget."""
    return server_names(config_file())


catalogue = Catalogue(lambda: server_named(""))
"""The models of the default server, for the lists on the page."""


def models_to_choose(capability: str, usual: str) -> list[str]:
    """Names for a model widget, never empty: `usual` stands where a server has nothing."""
    names = catalogue.names(capability)
    return names if usual in names else [*names, usual]


def interrupted() -> bool:
    """Whether the user pressed cancel; leaves the flag for `stop`."""
    return comfy.model_management.processing_interrupted()


def stop() -> NoReturn:
    """End the node as a cancelled one, and clear the flag."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    raise comfy.model_management.InterruptProcessingException


def node_id(node: type[io.ComfyNode]) -> str | None:
    """The id of the running node in its graph; None outside a graph."""
    return None if node.hidden is None else node.hidden.unique_id


class NodeWatcher(Watcher):
    """Shows a run on its node: a bar per stage, and the text as it grows."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._title = ""
        self._count = 1
        self._done = 0
        self._texts: dict[int, list[str]] = {}
        self._bar: comfy.utils.ProgressBar | None = None
        self._waiting = ""
        self._since = 0.0
        self._shown_at = 0.0

    def cancelled(self) -> bool:
        if self._waiting and time.monotonic() - self._shown_at >= 1.0:
            self._show(f"{self._waiting} ({time.monotonic() - self._since:.0f} s)")
        return interrupted()

    def stage(self, title: str, model: str, count: int) -> None:
        self._title, self._count, self._done = f"{title} with {model}", count, 0
        self._texts.clear()
        self._bar = comfy.utils.ProgressBar(count, node_id=self._node_id)
        self._bar.update_absolute(0)
        self._wait(self._title)

    def loading(self, model: str) -> None:
        self._wait(f"loading {model}")

    def token(self, index: int, piece: str) -> None:
        self._waiting = ""
        self._texts.setdefault(index, []).append(piece)
        if time.monotonic() - self._shown_at >= _SHOW_EVERY_S:
            self._show(self._heading(), _end_of("".join(self._texts[index])))

    def finished(self, index: int, outcome: Outcome) -> None:
        self._texts.pop(index, None)
        self._done += 1
        if self._bar is not None:
            self._bar.update_absolute(self._done)
        if isinstance(outcome, OllamaError):
            self._show(self._heading(), f"Error: {outcome}")
        else:
            text = _end_of(outcome.text)
            self._show(*filter(None, (self._heading(), text, outcome.remark)))
        if self._done < self._count:
            self._wait(self._title)

    def waiting(self, reason: str, seconds: float) -> None:
        self._wait(f"{self._title}: {reason}, trying again")
        self._show(f"{self._title}: {reason}, trying again in {seconds:g} s")

    def show_cancelled(self) -> None:
        """Show how far the run came, in place of the last live text."""
        before = f"{self._title}: " if self._title else ""
        after = f" after {self._done} of {self._count}" if self._title else ""
        self._show(f"{before}cancelled{after}")

    def _heading(self) -> str:
        if self._count == 1:
            return self._title
        return f"{self._title}: {min(self._done + 1, self._count)} of {self._count}"

    def _wait(self, text: str) -> None:
        self._waiting, self._since = text, time.monotonic()

    def _show(self, *lines: str) -> None:
        self._shown_at = time.monotonic()
        show(self._node_id, *lines)


def _end_of(text: str) -> str:
    """The last characters of a text, with dots where some are missing."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"... {text[-_SHOWN_CHARACTERS:]}"


_failed_runs: Counter[tuple[str, str | None]] = Counter()
"""Runs that ended in a message, since ComfyUI started, by node class and node id."""


def count_failed_run(node: type[io.ComfyNode]) -> None:
    """The running node ended in a message."""
    _failed_runs[_failure_key(node)] += 1


def failed_runs(node: type[io.ComfyNode]) -> int:
    """How often this node of the graph ended in a message.

    ComfyUI puts it into the cache key of the node and of all that follow it, so a count that nodes
    shared would make one failure run every other node again.
    """
    return _failed_runs[_failure_key(node)]


def _failure_key(node: type[io.ComfyNode]) -> tuple[str, str | None]:
    # Not `hidden.unique_id`: ComfyUI 0.3.64 has none when it asks for a fingerprint.
    context = get_executing_context()
    return node.__name__, None if context is None else context.node_id


def show(node_id: str | None, *lines: str) -> None:
    """Show a text on a running node; nothing where there is no page or no node."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        # ComfyUI encodes it as UTF-8, and a character it cannot encode would end the run.
        text = whole_characters("\n".join(lines))
        # The page takes it for HTML: a "<" before a letter would hide what follows it.
        server.send_progress_text(_TAG.sub("<\u200b", text), node_id)
