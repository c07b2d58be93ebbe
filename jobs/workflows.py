"""Run a ComfyUI workflow once for each image of a job, on one or several servers."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Event
from typing import Any, NamedTuple, TypeVar, cast
from uuid import uuid4

from .._version import __version__
from ..files import UnreadableImage
from ..files.whole import draft_of
from ..llm.errors import Cancelled
from ..texts.characters import whole_characters
from .captions import Progress, seed_of, to_do
from .comfyui import ComfyUI, ComfyUIError, Json, WorkflowError, suffix_of
from .directory import JobError, add_own_places, check_manifest, own_places
from .flags import hashed
from .items import Item, is_inside
from .rows import DONE, Row, RowLog, Rows, failure_of
from .schedule import Supply

T = TypeVar("T")

RETURN_S = 180.0
"""A server that was reached before has so long to come back: a restart with many packs is slow."""

_PLACEHOLDER = re.compile(r"\{(image|path|name|seed)\}")
_FIRST_POLL_S, _LONGEST_POLL_S = 0.05, 1.0
_LOOK_S = 2.0
"""Between two looks into the queue, whose answer holds all that others have queued."""
_MOST_LOSSES = 3
"""An image whose prompt is lost so often has a row: it may be the one that ends the server."""
_EXPORT = "Choose Export (API) in the menu of ComfyUI, and name that file after --workflow."


class RunFailed(Exception):
    """A workflow did not come to its end for one image."""

    code = "R514"

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Workflow(NamedTuple):
    """A workflow with placeholders.

    Attributes:
        nodes: in the form of ComfyUI's API.
        used: its placeholders.
    """

    nodes: Json
    used: frozenset[str]

    @property
    def digest(self) -> str:
        """A hash of its content, however the file is written."""
        return hashlib.sha256(json.dumps(self.nodes, sort_keys=True).encode()).hexdigest()[:16]

    def filled(self, values: Mapping[str, str], seed: int) -> Json:
        """Return the nodes for one image.

        >>> nodes = {"1": {"class_type": "A", "inputs": {"a": "{seed}", "b": ["{name} {seed}"]}}}
        >>> Workflow(nodes, frozenset()).filled({"name": "{seed}"}, 7)["1"]["inputs"]
        {'a': 7, 'b': ['{seed} 7']}
        """
        texts = {**values, "seed": str(seed)}

        def fill(value: Any) -> Any:
            if value == "{seed}":
                return seed
            if isinstance(value, str):
                return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), value)
            if isinstance(value, list):
                return [fill(one) for one in cast("list[Any]", value)]
            if isinstance(value, dict):
                return {name: fill(one) for name, one in cast("Json", value).items()}
            return value

        return {id: {**node, "inputs": fill(node["inputs"])} for id, node in self.nodes.items()}


def read_workflow(file: Path) -> Workflow:
    """Return the workflow of a file.

    Raises:
        WorkflowError: it cannot be read, has another format, or has no placeholder.
    """
    try:
        found: Any = json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise WorkflowError(f"{file} cannot be read ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"{file} is no JSON file ({error}). {_EXPORT}") from error
    if isinstance(found, dict) and isinstance(found.get("nodes"), list):
        raise WorkflowError(f"{file} has the format of the page, not that of the API. {_EXPORT}")
    if not (found and isinstance(found, dict) and all(_is_node(one) for one in found.values())):
        raise WorkflowError(f"{file} is no workflow of ComfyUI. {_EXPORT}")
    nodes = cast("Json", found)
    texts = json.dumps([node["inputs"] for node in nodes.values()])
    used = frozenset(_PLACEHOLDER.findall(texts))
    if not used:
        raise WorkflowError(
            f"{file} has no placeholder, so it would do the same for each image. Write {{image}} "
            "in place of the file's name in Load Image."
        )
    return Workflow(nodes, used)


def _is_node(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_type"), str)
        and isinstance(value.get("inputs"), dict)
    )


class Downloads:
    """The folder for the output files of a job, mirrored by the ids of its images.

    Args:
        job: the job's directory.

    Attributes:
        is_new: whether no earlier run of the job has used the folder.

    Raises:
        JobError: the folder has other files, or two images would have the same file.
    """

    def __init__(self, folder: Path, job: Path, items: Sequence[Item]) -> None:
        self.folder = folder
        self._stems: dict[str, str] = {}
        for item in items:
            if not is_inside(item.id):
                raise JobError(
                    f"{item.id} would not be below --output. Name its folder as the input."
                )
            other = self._stems.setdefault(_stem(item.id).casefold(), item.id)
            if other != item.id:
                raise JobError(
                    f"{other} and {item.id} would have the same file in {folder}. Rename one."
                )
        self.is_new = str(folder.absolute()) not in own_places(job)
        if not self.is_new:
            return
        if folder.exists() and any(folder.iterdir()):
            raise JobError(
                f"{folder} has files that are not from this job. Name another folder after "
                "--output."
            )
        add_own_places(job, [folder])

    def places(self, id: str, outputs: Json) -> list[tuple[dict[str, str], Path]]:
        """Return the files of a result, and where each goes. Previews only if there is no other."""
        files = [
            one
            for shown in outputs.values()
            for values in shown.values()
            for one in values
            if isinstance(one, dict)
        ]
        files = [one for one in files if one["type"] == "output"] or files
        if len(files) == 1:
            return [(files[0], self.folder / f"{_stem(id)}{suffix_of(files[0]['filename'])}")]
        return [
            (one, self.folder / f"{self._numbered(id, number)}{suffix_of(one['filename'])}")
            for number, one in enumerate(files, 1)
        ]

    def _numbered(self, id: str, number: int) -> str:
        stem = f"{_stem(id)}_{number}"
        while stem.casefold() in self._stems:  # which another image has
            stem += "_"
        return stem


def _stem(id: str) -> str:
    return str(PurePosixPath(id).with_suffix(""))


def begin_workflow(
    items: Sequence[Item],
    workflow: Workflow,
    folder: Path,
    *,
    seed: int = 0,
    retry_failed: bool = False,
) -> tuple[list[Item], str]:
    """Begin a job in its directory, or continue it; return what is to do, and a warning or "".

    Args:
        folder: the job's directory, which the caller has locked.

    Raises:
        JobError: the job was begun with other settings, or {path} has no value.
        OSError: the directory cannot be written.
    """
    if "path" in workflow.used and (no_file := next((i for i in items if i.source), None)):
        raise JobError(
            f"{no_file.name} is no file on a disk: write {{image}} in place of {{path}}."
        )
    about = {"task": "workflow", "workflow": workflow.digest, "seed": seed}
    warning = check_manifest(folder, about)
    return to_do(items, Rows(folder), failed=retry_failed)[0], warning


def run_workflow(
    items: Sequence[Item],
    workflow: Workflow,
    servers: Sequence[ComfyUI],
    folder: Path,
    *,
    seed: int = 0,
    downloads: Downloads | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[Progress], None] = lambda progress: None,
    note: Callable[[str], None] = lambda text: None,
    return_s: float = RETURN_S,
) -> Progress:
    """Queue the workflow for each item, one at a time on each server; return what became of them.

    A server that fails ends its part of the work; its image goes back, for the others or for the
    next run.

    Args:
        folder: the job's directory, which the caller has locked.
        seed: of the job; each image has its own, from this and its id.
        downloads: where output files go; None: they stay on the servers.
        progress: called after each row.
        note: called with sentences for the user.
        return_s: see `RETURN_S`.

    Raises:
        Cancelled: `cancelled` returned True. What was queued is cancelled, and all rows that were
            finished are there.
        WorkflowError: a server refuses the workflow.
        OSError: a row or a file cannot be written.
    """
    work = _Work(
        supply=Supply(items),
        workflow=workflow,
        folder=folder,
        seed=seed,
        downloads=downloads,
        cancelled=cancelled,
        progress=progress,
        note=note,
        return_s=return_s,
    )
    with ThreadPoolExecutor(len(servers), "image-refinery-comfyui") as threads:
        ended = [threads.submit(work.share, server) for server in servers]
    errors = [error for one in ended if (error := one.exception())]
    # The one that ended the others comes first.
    for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
        raise error
    return work.state


@dataclass(kw_only=True)
class _Work:
    """What the servers of a run share."""

    supply: Supply[Item]
    workflow: Workflow
    folder: Path
    seed: int
    downloads: Downloads | None
    cancelled: Callable[[], bool]
    progress: Callable[[Progress], None]
    note: Callable[[str], None]
    return_s: float
    state: Progress = field(default_factory=Progress)
    reached: set[str] = field(default_factory=set[str])
    losses: Counter[str] = field(default_factory=Counter[str])
    ended: Event = field(default_factory=Event)

    def share(self, server: ComfyUI) -> None:
        """Work on one image after the other, until there is no more, or the server fails."""
        try:
            with closing(RowLog(self.folder, server.url)) as log:
                while taken := self.supply.take(lambda there: 1):
                    back = taken
                    try:
                        if row := self._row(server, taken[0]):
                            log.write(row)
                            back = []
                            self._count(row)
                    except ComfyUIError as error:
                        self.state.errors[server.url] = error
                        return
                    finally:
                        self.supply.put_back(back)
        except BaseException:
            self.ended.set()
            raise

    def _count(self, row: Row) -> None:
        with self.state.lock:
            self.state.counts[row["status"]] += 1
            self.state.by_worker[row["by"]] += 1
            self.progress(self.state)

    def _row(self, server: ComfyUI, item: Item) -> Row | None:
        """Return the row of an image; None if its prompt was lost, so that it is queued again."""
        began = time.monotonic()
        row: Row = {"id": item.id, "by": server.url, "version": __version__}
        try:
            outputs = self._outputs(server, item, row)
            if outputs is None:
                return None
            row |= {"status": DONE, "outputs": outputs}
        except RunFailed as error:
            row |= failure_of(error, error.kind)
        except UnreadableImage as error:
            row |= failure_of(error)
        return row | {"at": round(time.time(), 3), "seconds": round(time.monotonic() - began, 3)}

    def _outputs(self, server: ComfyUI, item: Item, row: Row) -> Json | None:
        values = {"name": whole_characters(PurePosixPath(item.id).stem)}
        if "image" in self.workflow.used:
            values["image"] = self._uploaded(server, item)
        if "path" in self.workflow.used:
            values["path"] = str(item.path)
        nodes = self.workflow.filled(values, seed_of(item, self.seed))
        self._check()
        # Its id is known before it is queued, so that it can be cancelled at any time.
        id = str(uuid4())
        try:
            try:
                id = server.queue(nodes, id)
            except ComfyUIError as error:
                if not error.gone:
                    raise
                # It may have been queued all the same.
            row["prompt_id"] = id
            entry = self._wait(server, id)
        except Cancelled:
            with suppress(ComfyUIError):
                server.cancel(id)
            raise
        if entry is None:
            self.losses[item.id] += 1
            if self.losses[item.id] < _MOST_LOSSES:
                return None
            raise RunFailed(
                "Lost",
                f"ComfyUI lost the prompt {_MOST_LOSSES} times: it ended while it worked on the "
                "image, or somebody cleared its queue.",
            )
        _check_status(entry)
        outputs = _shown(entry.get("outputs"))
        if self.downloads:
            for file, target in self.downloads.places(item.id, outputs):
                self._fetch(server, file, target)
        return outputs

    def _uploaded(self, server: ComfyUI, item: Item) -> str:
        """Send an image; return its name on the server. No other job or image has the same."""
        try:
            data = item.read()
        except OSError as error:
            raise UnreadableImage(
                f"{item.name} cannot be read ({error.strerror or error})."
            ) from error
        unique = hashed(f"{self.folder.absolute()}\n{item.id}")
        id = PurePosixPath(item.id)
        name = f"{_plain(id.stem)}-{unique:016x}{suffix_of(id.name)}"
        folder = f"image-refinery/{_plain(self.folder.absolute().name)}"
        try:
            return self._patiently(server, lambda: server.upload(folder, name, data))
        except ComfyUIError as error:
            if error.status == 413:
                size = f"{len(data) / 1e6:.0f} MB"
                raise UnreadableImage(
                    f"{item.name} ({size}) is larger than ComfyUI takes. Start ComfyUI with a "
                    "higher --max-upload-size."
                ) from error
            raise

    def _wait(self, server: ComfyUI, id: str) -> Json | None:
        """Return the history's entry of a prompt; None if the server has lost it."""
        pause, looked = _FIRST_POLL_S, time.monotonic()
        while True:
            if entry := self._patiently(server, lambda: server.result(id)):
                return entry
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                if not self._patiently(server, lambda: server.has(id)):
                    # It may have ended between the two.
                    return self._patiently(server, lambda: server.result(id))
            self._pause(pause)
            pause = min(1.5 * pause, _LONGEST_POLL_S)

    def _fetch(self, server: ComfyUI, file: Mapping[str, str], target: Path) -> None:
        def fetch() -> None:
            with draft_of(target) as draft:
                server.download(file, draft, self._is_over)

        try:
            self._patiently(server, fetch)
        except ComfyUIError as error:
            if error.status not in (400, 403, 404):
                raise
            raise RunFailed(
                "MissingOutput", f"ComfyUI does not have the output {file['filename']} any more."
            ) from error

    def _patiently(self, server: ComfyUI, call: Callable[[], T]) -> T:
        """Return what a call returns. A server that was reached before may be away for a while.

        Raises:
            Cancelled: the run was cancelled.
            ComfyUIError: the server cannot be reached, or answers with an error.
        """
        until = 0.0
        while True:
            self._check()
            try:
                result = call()
            except ComfyUIError as error:
                if not error.gone or server.url not in self.reached:
                    raise
                if not until:
                    until = time.monotonic() + self.return_s
                    self.note(f"{error} The job waits for it, up to {self.return_s:.0f} s.")
                if time.monotonic() >= until:
                    raise
                self._pause(_LONGEST_POLL_S)
            else:
                self.reached.add(server.url)
                return result

    def _is_over(self) -> bool:
        return self.ended.is_set() or self.cancelled()

    def _check(self) -> None:
        if self._is_over():
            raise Cancelled

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.1))


def _check_status(entry: Json) -> None:
    """Raise RunFailed if a prompt did not succeed."""
    status: Any = entry.get("status") or {}
    for name, about in status.get("messages") or ():
        if name == "execution_error":
            node = f"{about.get('node_type')} (node {about.get('node_id')})"
            kind = str(about.get("exception_type") or "Error")
            said = " ".join(str(about.get("exception_message") or "").split())
            raise RunFailed(kind, f"{node}: {kind}: {said}"[:1000])
        if name == "execution_interrupted":
            raise RunFailed("Interrupted", "Somebody interrupted the run in ComfyUI.")
    if status.get("status_str") == "error":
        raise RunFailed("Error", "ComfyUI says that the run failed, and not why.")


def _shown(outputs: Any) -> Json:
    """Return the files and texts of the nodes, as the history has them.

    >>> image = {"filename": "a.png", "subfolder": "", "type": "output"}
    >>> shown = {"9": {"images": [image], "animated": [True]}, "4": {"text": ["A ball."]}, "5": {}}
    >>> _shown(shown) == {"9": {"images": [image]}, "4": {"text": ["A ball."]}}
    True
    """
    found: Json = {}
    for id, shown in (outputs or {}).items():
        for name, values in shown.items():
            if kept := [one for one in map(_kept, values or ()) if one]:
                found.setdefault(id, {})[name] = kept
    return found


def _kept(value: Any) -> dict[str, str] | str | None:
    if isinstance(value, dict) and isinstance(value.get("filename"), str):
        about = cast("Json", value)
        return {
            "filename": about["filename"],
            "subfolder": str(about.get("subfolder") or ""),
            "type": str(about.get("type") or "output"),
        }
    return value if isinstance(value, str) else None


def _plain(name: str) -> str:
    """Return a name in characters that every system and every form of HTTP takes.

    >>> _plain("Caf\u00e9 [output]"), _plain("\u732b")
    ('Caf-output', 'image')
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "image"
