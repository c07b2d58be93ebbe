"""`image-refinery models`: list the installed models, or download one."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from tqdm import tqdm

from .._backends import open_backend
from ..llm.errors import LLMError, capital
from ..llm.llamacpp.installed import why_unavailable
from ..llm.llamacpp.library import Library, models_folder
from ..llm.llamacpp.pull import PullError, pull
from ..llm.servers import Server, find_server
from ..memory.report import readable
from .terminal import failed, message

_NOT_IN_OLLAMAS_LIBRARY = ("smolvlm", "smolvlm2")


def list_models(server: str) -> int:
    """Print the models of the server and of the embedded engine.

    Returns 1 where the server cannot be listed, or there is no model at all.
    """
    count = 0
    failed = False
    try:
        count += _list_models_of(find_server(server))
    except LLMError as error:
        print(f"Error: {message(error)}", file=sys.stderr)
        failed = True
    folder = models_folder()
    print(f"Embedded engine (your models folder: {folder})")
    for model in Library().models():
        can = ", ".join(model.capabilities)
        print(f"  {model.name:32} {readable(model.size):>10}  {can:20} {model.place}")
        count += 1
    if reason := why_unavailable():
        print(reason, file=sys.stderr)
    return 1 if failed or not count else 0


def _list_models_of(server: Server) -> int:
    if server.is_embedded:
        return 0  # it is listed in any case
    with closing(open_backend(server)) as backend:
        models = [backend.show(model) for model in backend.list()]
    print(capital(backend.server.title))
    for model in models:
        can = ", ".join(sorted(model.capabilities or ())) or "unknown"
        size = "" if model.size_bytes is None else readable(model.size_bytes)
        where = f"runs on {model.remote_host}" if model.remote_host else size
        print(f"  {model.name:32} {where:>10}  {can}")
    return len(models)


def pull_model(name: str, server: str) -> int:
    """Download a model: for the embedded engine if its list has the name, else for the server."""
    chosen = find_server(server)
    if chosen.is_embedded or name.partition(":")[0].lower() in _NOT_IN_OLLAMAS_LIBRARY:
        return _pull_embedded(name)
    with closing(open_backend(chosen)) as backend, _Bar() as bar:
        for step in backend.pull(name):
            bar.show(step.status, step.completed_bytes, step.total_bytes)
    print(f"{name} is installed {backend.server.where}")
    return 0


def _pull_embedded(name: str) -> int:
    try:
        full = pull(name)
    except PullError as error:
        return failed(error)
    print(f"{full} is in {models_folder()}. Use it with --server embedded.")
    return 0


class _Bar:
    """One progress bar per file of a download."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._status = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, status: str, completed: int, total: int) -> None:
        if status != self._status:
            self.__exit__()
            self._status, self._bar = status, None
            if total:
                self._bar = tqdm(
                    total=total, desc=status, unit="B", unit_scale=True, file=sys.stderr
                )
            elif status:
                print(status, file=sys.stderr)
        if self._bar is not None:
            self._bar.update(completed - self._bar.n)
