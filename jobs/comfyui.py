"""One ComfyUI, at the address that the user gave: queue workflows, ask for results, fetch files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import requests

from ..llm.errors import Cancelled
from ..llm.http import Http, Timeouts, innermost
from ..llm.servers import Server
from .directory import JobError

Json = dict[str, Any]

_TIMEOUTS = Timeouts(connect_s=5.0)
_ANSWER_S = 60.0
"""ComfyUI answers from the process that runs the nodes, and a busy one takes seconds."""
_PART_BYTES = 2**20
_MAX_MESSAGE_CHARS = 300


class ComfyUIError(Exception):
    """A ComfyUI cannot be reached, or answers with something that no ComfyUI does.

    Attributes:
        gone: whether it may come back, as after a restart.
        status: of HTTP; 0 without an answer.
    """

    code = "R512"

    def __init__(self, message: str, *, gone: bool = False, status: int = 0) -> None:
        super().__init__(message)
        self.gone = gone
        self.status = status


class WorkflowError(JobError):
    """A file is no workflow for a job, or a ComfyUI refuses it."""

    code = "R513"


class ComfyUI:
    """A client of one server. It follows no redirect.

    Attributes:
        url: without credentials and without a trailing slash; it may end with a path.

    Raises:
        ComfyUIError: the address cannot be used.
    """

    def __init__(self, address: str) -> None:
        self.url, login = _split(address)
        server = Server(name=self.url, url=self.url, kind="", login=login)
        self._http = Http(server, _TIMEOUTS)
        # ComfyUI sends the events of a prompt to the pages of its client, or to all without one.
        self._client_id = uuid4().hex

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def upload(self, folder: str, name: str, data: bytes) -> str:
        """Write an image into a folder of ComfyUI's input; return the name that Load Image takes.

        Raises:
            ComfyUIError: it cannot be reached, or does not take the image.
        """
        said = self._json(
            "POST",
            "/upload/image",
            files={"image": (name, data)},
            data={"subfolder": folder, "type": "input", "overwrite": "true"},
        )
        if not isinstance(said.get("name"), str):
            raise self._strange()
        return f"{said['subfolder']}/{said['name']}" if said.get("subfolder") else said["name"]

    def queue(self, workflow: Json, prompt_id: str) -> str:
        """Queue a workflow; return its id, which an old ComfyUI chooses itself.

        Raises:
            ComfyUIError: it cannot be reached.
            WorkflowError: it refuses the workflow.
        """
        body = {"prompt": workflow, "prompt_id": prompt_id, "client_id": self._client_id}
        response = self._send("POST", "/prompt", may_be=(400,), json=body)
        said = self._object(response)
        if response.status_code == 400 or said.get("node_errors"):
            if isinstance(said.get("prompt_id"), str):  # another part of it was queued
                self.cancel(said["prompt_id"])
            raise WorkflowError(f"ComfyUI at {self.url} refuses the workflow: {_why(said)}")
        if not isinstance(said.get("prompt_id"), str):
            raise self._strange()
        return said["prompt_id"]

    def result(self, prompt_id: str) -> Json | None:
        """Return the history's entry of a prompt that has ended, else None.

        Raises:
            ComfyUIError: it cannot be reached.
        """
        entry = self._json("GET", f"/history/{prompt_id}").get(prompt_id)
        return cast("Json", entry) if entry and isinstance(entry, dict) else None

    def has(self, prompt_id: str) -> bool:
        """Return whether a prompt is running or waits.

        Raises:
            ComfyUIError: it cannot be reached.
        """
        queue = self._json("GET", "/queue")
        return any(_holds(queue, name, prompt_id) for name in ("queue_running", "queue_pending"))

    def cancel(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it if it is running.

        Raises:
            ComfyUIError: it cannot be reached.
        """
        self._send("POST", "/queue", json={"delete": [prompt_id]})
        # In this order none escapes. An old ComfyUI ignores the id, so only if it is the one.
        if _holds(self._json("GET", "/queue"), "queue_running", prompt_id):
            self._send("POST", "/interrupt", json={"prompt_id": prompt_id})

    def download(
        self, file: Mapping[str, str], target: Path, cancelled: Callable[[], bool]
    ) -> None:
        """Write an output file.

        Args:
            file: its filename, subfolder and type, as the history has them.

        Raises:
            Cancelled: `cancelled` returned True.
            ComfyUIError: it cannot be reached, or does not have the file.
            OSError: `target` cannot be written.
        """
        with self._send("GET", "/view", params=dict(file), stream=True) as response:
            parts = response.iter_content(_PART_BYTES)
            with target.open("wb") as written:
                while part := self._part(parts):
                    if cancelled():
                        raise Cancelled
                    written.write(part)

    def _part(self, parts: Any) -> bytes:
        try:
            return next(parts, b"")
        except requests.RequestException as error:
            raise self._gone(error) from error

    def _json(self, method: str, path: str, **more: Any) -> Json:
        return self._object(self._send(method, path, **more))

    def _object(self, response: requests.Response) -> Json:
        try:
            found: Any = response.json()
        except (ValueError, RecursionError):
            raise self._strange() from None
        if not isinstance(found, dict):
            raise self._strange()
        return cast("Json", found)

    def _send(
        self, method: str, path: str, *, may_be: tuple[int, ...] = (), **more: Any
    ) -> requests.Response:
        try:
            response = self._http.session.request(
                method,
                self.url + path,
                timeout=(_TIMEOUTS.connect_s, _ANSWER_S),
                allow_redirects=False,
                **more,
            )
        except requests.RequestException as error:
            raise self._gone(error) from error
        status = response.status_code
        if status < 300 or status in may_be:
            return response
        response.close()
        if status < 400:
            raise ComfyUIError(
                f"{self.url} redirects to another address, which is not followed. Name the address "
                "of ComfyUI itself after --comfyui.",
                status=status,
            )
        # A proxy says these while ComfyUI restarts.
        raise ComfyUIError(
            f"{self.url}{path} answered with status {status}. Check that it is the address of a "
            "ComfyUI that you may use.",
            gone=status in (502, 503, 504),
            status=status,
        )

    def _gone(self, error: requests.RequestException) -> ComfyUIError:
        cause = innermost(error)
        reason = (isinstance(cause, OSError) and cause.strerror) or " ".join(str(cause).split())
        return ComfyUIError(
            f"Can't reach ComfyUI at {self.url} ({reason[:_MAX_MESSAGE_CHARS]}). Start it, or "
            "correct --comfyui.",
            gone=True,
        )

    def _strange(self) -> ComfyUIError:
        return ComfyUIError(
            f"{self.url} answers, but not as ComfyUI does. Name the address of a ComfyUI after "
            "--comfyui."
        )


def _split(address: str) -> tuple[str, tuple[str, str] | None]:
    """Return an address without what does not belong to it, and its user and password.

    >>> _split("http://127.0.0.1:8188/")
    ('http://127.0.0.1:8188', None)
    >>> _split("https://me:p%40ss@gpu-box/comfy/?x=1#top")
    ('https://gpu-box/comfy', ('me', 'p@ss'))
    """
    parts = None
    with contextlib.suppress(ValueError):
        found = urlsplit(address.strip())
        if found.scheme in ("http", "https") and found.hostname and found.port != 0:
            parts = found
    if parts is None:  # it may hold a password, so it is not repeated
        raise ComfyUIError("An address of --comfyui cannot be used. Write http://127.0.0.1:8188.")
    place = parts.netloc.rpartition("@")[2]
    login = None
    if parts.username is not None:
        login = unquote(parts.username), unquote(parts.password or "")
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}", login


def _holds(queue: Json, name: str, prompt_id: str) -> bool:
    entries: Any = queue.get(name)
    return any(isinstance(one, list) and prompt_id in one[:2] for one in entries or ())


def _why(said: Json) -> str:
    """Return why a workflow was refused: the first node with its message.

    >>> _why({"error": {"message": "Prompt has no outputs"}, "node_errors": {}})
    'Prompt has no outputs. Correct it in ComfyUI, and export it again.'
    """
    found: Any = said.get("error")
    error = cast("Json", found) if isinstance(found, dict) else {"message": str(found or "")}
    message, node = _sentence(error), ""
    nodes: Any = said.get("node_errors")
    for id, about in (cast("Json", nodes) if isinstance(nodes, dict) else {}).items():
        node = f"node {id} ({about.get('class_type', '')}): "
        message = "; ".join(_sentence(one) for one in about.get("errors", ())) or message
        break
    return f"{node}{message}. Correct it in ComfyUI, and export it again."


def _sentence(error: Json) -> str:
    parts = (error.get("message"), error.get("details"))
    text = ": ".join(" ".join(one.split()) for one in parts if isinstance(one, str) and one)
    return text[:_MAX_MESSAGE_CHARS].rstrip(".") or "no reason is given"


def suffix_of(filename: str) -> str:
    """Return the ending of a file's name on a server, if it is a plain one.

    >>> suffix_of("ComfyUI_00001_.PNG"), suffix_of("x.../../y"), suffix_of("none")
    ('.png', '', '')
    """
    suffix = os.path.splitext(filename)[1].lower()
    return suffix if suffix[1:].isascii() and suffix[1:].isalnum() else ""
