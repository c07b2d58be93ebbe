"""A real ComfyUI for tests: found, started with the pack in it, talked to, stopped.

    found = find_host()
    with ComfyHost(found, tmp_path, env={"OLLAMA_BASE_URL": url}) as host:
        run = host.run({"1": node("LoadImage", image=host.save_input(picture)), ...})
        assert run.ok, run.error

The server is a subprocess on a free loopback port, on the CPU, with a base directory of its own:
nothing of the ComfyUI that was found is changed. It needs `requests` and `websocket-client`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import requests
import websocket
from PIL import Image
from typing_extensions import Self

PACK = Path(__file__).resolve().parents[2]
PROBE_PACK = Path(__file__).resolve().parent / "probe_pack"
PACK_FOLDER = "some-folder-name"  # on purpose neither the package's name nor the project's
BASE_FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints")
DATABASE_IN_MEMORY = "sqlite:///:memory:"  # else ComfyUI writes into its own tree
START_TIMEOUT_S = 180.0
POLL_S = 0.05

Graph = dict[str, dict[str, Any]]
Link = list[Any]


@dataclass(frozen=True)
class FoundHost:
    """A ComfyUI checkout and the interpreter that has its requirements."""

    home: Path
    python: Path
    version: tuple[int, ...]


def interpreter(home: Path) -> Path:
    """COMFYUI_PYTHON, else the virtual environment beside ComfyUI, else the running Python."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        return Path(named)
    for folder in (".venv", "venv"):
        for inside in ("bin/python", "Scripts/python.exe"):
            candidate = home / folder / inside
            if candidate.exists():
                return candidate
    return Path(sys.executable)


def _version(home: Path) -> tuple[int, ...]:
    text = (home / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([\d.]+)"', text)
    assert found, f"{home / 'comfyui_version.py'} names no version"
    return tuple(int(part) for part in found[1].split("."))


def find_host() -> FoundHost | str:
    """The ComfyUI of COMFYUI_PATH, else ~/comfy/ComfyUI; or a sentence on why there is none."""
    named = os.environ.get("COMFYUI_PATH")
    home = Path(named).expanduser() if named else Path.home() / "comfy" / "ComfyUI"
    if not (home / "main.py").is_file():
        return f"no ComfyUI at {home}: set COMFYUI_PATH (and COMFYUI_PYTHON) to run this"
    python = interpreter(home)
    probe = [str(python), "-c", "import aiohttp, torch, transformers"]
    answer = subprocess.run(probe, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"{python} cannot run ComfyUI ({last}): set COMFYUI_PYTHON"
    return FoundHost(home, python, _version(home))


def clean_environment() -> dict[str, str]:
    """The environment of a user's ComfyUI: no path of ours, and compiled files are kept."""
    unwanted = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"PYTHONUTF8": "1"}


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def copy_pack(target: Path) -> None:
    """Copy the checkout as git sees it: tracked files and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PACK,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = PACK / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


TINY = "tiny_refiner.safetensors"


def put_tiny(host: ComfyHost) -> Path:
    """Put the tiny refiner among a host's checkpoints; return their folder."""
    weights = Path(__file__).resolve().parents[2] / "tools" / "tiny_refiner" / "weights"
    folder = host.base / "models" / "checkpoints"
    if not (folder / TINY).exists():
        shutil.copytree(weights / "tiny_refiner", folder / "tiny_refiner")
        shutil.copy2(weights / TINY, folder / TINY)
    return folder


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a graph in the API's form; a link is `[node id, output index]`."""
    return {"class_type": class_type, "inputs": inputs}


class Refused(Exception):
    """The server would not queue a graph; `answer` is what it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer))
        self.answer = answer


@dataclass(frozen=True)
class Event:
    """A websocket message: `at` is time.monotonic() in seconds when it arrived.

    kind: the server's own type ("executing", "progress", "execution_error", ...), or
    "progress_text" (data: node, text) or "preview" (data: node or None, image as bytes).
    """

    at: float
    kind: str
    data: dict[str, Any]


def _event_of(message: str | bytes, at: float) -> Event | None:
    if isinstance(message, str):
        decoded = json.loads(message)
        return Event(at, decoded["type"], decoded.get("data") or {})
    kind, body = struct.unpack(">I", message[:4])[0], message[4:]
    if kind == 3:
        length = struct.unpack(">I", body[:4])[0]
        who, text = body[4 : 4 + length].decode(), body[4 + length :].decode()
        return Event(at, "progress_text", {"node": who, "text": text})
    if kind == 1:
        return Event(at, "preview", {"node": None, "image": body[4:]})
    if kind == 4:
        length = struct.unpack(">I", body[:4])[0]
        about = json.loads(body[4 : 4 + length])
        return Event(at, "preview", {"node": about.get("node_id"), "image": body[4 + length :]})
    return None


class EventLog:
    """Everything that one websocket client hears, gathered by a thread."""

    def __init__(self, url: str) -> None:
        self.client_id = uuid.uuid4().hex
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._socket = websocket.create_connection(f"{url}/ws?clientId={self.client_id}")
        self._thread = threading.Thread(target=self._listen, daemon=True, name="comfyui-events")
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                message = self._socket.recv()
            except (websocket.WebSocketException, OSError):
                return
            if not message:
                return
            event = _event_of(message, time.monotonic())
            if event is not None:
                with self._changed:
                    self._events.append(event)
                    self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        with self._changed:
            return iter(list(self._events))

    def of(self, kind: str, **data: Any) -> list[Event]:
        """The events of one kind whose data has these values."""
        return [
            event
            for event in self
            if event.kind == kind and all(event.data.get(k) == v for k, v in data.items())
        ]

    def wait_for(self, kind: str, timeout_s: float = 30.0, **data: Any) -> Event:
        """The first such event, now or later; AssertionError after the timeout."""
        with self._changed:
            if self._changed.wait_for(lambda: bool(self.of(kind, **data)), timeout_s):
                return self.of(kind, **data)[0]
        raise AssertionError(f"no {kind} {data} within {timeout_s} s")

    def close(self) -> None:
        self._socket.abort()  # wakes the thread; close() alone leaves it in recv()
        self._thread.join(timeout=5)
        self._socket.shutdown()


@dataclass(frozen=True)
class Run:
    """One finished prompt: what the history says and what the websocket heard."""

    prompt_id: str
    history: dict[str, Any]
    events: list[Event] = field(repr=False)

    def _messages(self, kind: str) -> list[dict[str, Any]]:
        return [data for name, data in self.history["status"]["messages"] if name == kind]

    @property
    def ok(self) -> bool:
        return self.history["status"]["status_str"] == "success"

    @property
    def interrupted(self) -> bool:
        return bool(self._messages("execution_interrupted"))

    @property
    def error(self) -> dict[str, Any]:
        """The execution_error message (exception_message, node_id, ...), or empty."""
        found = self._messages("execution_error")
        return found[0] if found else {}

    @property
    def cached(self) -> list[str]:
        """Ids of nodes that did not run because their inputs were as before."""
        return [name for data in self._messages("execution_cached") for name in data["nodes"]]

    @property
    def outputs(self) -> dict[str, Any]:
        """What each node showed: {node id: {"text": [...], "images": [...], ...}}."""
        return self.history["outputs"]

    def texts(self, node_id: str) -> list[str]:
        """The texts that a node showed."""
        return list(self.outputs[node_id]["text"])

    def of(self, kind: str, **data: Any) -> list[Event]:
        """This prompt's events of one kind whose data has these values."""
        return [
            event
            for event in self.events
            if event.kind == kind and all(event.data.get(k) == v for k, v in data.items())
        ]

    @property
    def order(self) -> list[str]:
        """Node ids in the order in which they began to run."""
        return [event.data["node"] for event in self.of("executing") if event.data.get("node")]


class ComfyHost:
    """A running server; a context manager.

    base: an empty folder of ours that becomes ComfyUI's base directory.
    packs: extra folders to put into custom_nodes, by the name they get there.
    arguments: further command line arguments, such as "--novram".
    """

    def __init__(
        self,
        found: FoundHost,
        base: Path,
        *,
        env: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        packs: Mapping[str, Path] | None = None,
        with_pack: bool = True,
    ) -> None:
        self.found = found
        self.base = base
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = base / "server.log"
        self.startup_s = 0.0
        self._env = dict(env or {})
        self._arguments = list(arguments)
        self._packs = {"probe-pack": PROBE_PACK} if packs is None else dict(packs)
        self._with_pack = with_pack
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._session = requests.Session()
        self._session.trust_env = False

    # life

    def __enter__(self) -> Self:
        self.prepare()
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pack_folder(self) -> Path:
        """Where the pack lies for this server."""
        return self.base / "custom_nodes" / PACK_FOLDER

    def prepare(self) -> None:
        """Make the base directory and put the packs into it."""
        for name in BASE_FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        if self._with_pack:
            copy_pack(self.pack_folder)
        for name, source in self._packs.items():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, self.base / "custom_nodes" / name, ignore=ignored)

    def _command(self) -> list[str]:
        return [
            str(self.found.python),
            str(self.found.home / "main.py"),
            *("--cpu", "--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.base), "--database-url", DATABASE_IN_MEMORY),
            *("--disable-auto-launch", "--disable-api-nodes", *self._arguments),
        ]

    def start(self) -> None:
        """Start the server and wait until it answers; AssertionError with its log if it ends."""
        env = clean_environment() | {"HF_HUB_OFFLINE": "1"} | self._env
        began = time.monotonic()
        self._log = self.log_file.open("ab")
        self._process = subprocess.Popen(
            self._command(), cwd=self.base, env=env, stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._wait_until_up(began + START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise
        self.startup_s = time.monotonic() - began

    def _wait_until_up(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"ComfyUI ended with {self._process.returncode}:\n{self.log}")
            try:
                self._session.get(f"{self.url}/system_stats", timeout=5).raise_for_status()
            except requests.ConnectionError:
                time.sleep(POLL_S)
            else:
                return
        raise AssertionError(f"ComfyUI did not answer in {START_TIMEOUT_S} s:\n{self.log}")

    def peak_memory_bytes(self) -> int:
        """The most memory that the process has had so far, from /proc: Linux only."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    def stop(self) -> None:
        """End the server; its log stays."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def kill(self) -> None:
        """End the server as a system does that is out of memory."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.stop()

    def restart(self, **env: str) -> None:
        """Stop and start with the same folders, and these variables changed."""
        self.stop()
        self._env |= env
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # what the server says

    @property
    def log(self) -> str:
        """Everything that the server printed so far, without colours."""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[\d;]*m", "", text)

    @contextmanager
    def new_log(self) -> Iterator[Callable[[], str]]:
        """`with host.new_log() as said: ...; said()` is what was printed since."""
        start = len(self.log)
        yield lambda: self.log[start:]

    def import_line(self, folder: str = PACK_FOLDER) -> str:
        """A pack's line of "Import times for custom nodes" at the latest start."""
        lines = [line for line in self.log.splitlines() if " seconds" in line and folder in line]
        assert lines, f"ComfyUI's import table has no {folder}:\n{self.log}"
        return lines[-1].strip()

    def import_seconds(self, folder: str = PACK_FOLDER) -> float:
        """The number in import_line, which ComfyUI rounds to a tenth."""
        line = self.import_line(folder)
        assert "FAILED" not in line, self.log
        found = re.search(r"([\d.]+) seconds", line)
        assert found, line
        return float(found[1])

    def get(self, path: str, timeout_s: float = 60.0) -> Any:
        """The JSON at a path."""
        answer = self._session.get(f"{self.url}{path}", timeout=timeout_s)
        answer.raise_for_status()
        return answer.json()

    def get_text(self, path: str) -> str:
        """The text of a page."""
        answer = self._session.get(f"{self.url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.text

    def post(self, path: str, body: Any = None, timeout_s: float = 60.0) -> requests.Response:
        return self._session.post(f"{self.url}{path}", json=body, timeout=timeout_s)

    def object_info(self, node_id: str | None = None) -> dict[str, Any]:
        """/object_info of one node, or of all."""
        if node_id is None:
            return self.get("/object_info")
        return self.get(f"/object_info/{node_id}")[node_id]

    def free(self) -> None:
        """What the button "Unload models and free memory" does."""
        self.post("/free", {"unload_models": True, "free_memory": True}).raise_for_status()

    def interrupt(self) -> None:
        """What the button "Cancel" does."""
        self.post("/interrupt", {}).raise_for_status()

    # files

    def save_input(self, picture: Image.Image | np.ndarray, name: str | None = None) -> str:
        """Put a picture (PIL, or HWC uint8) into the input folder; returns its name there."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        file = name or f"{uuid.uuid4().hex[:12]}.png"
        image.save(self.base / "input" / file)
        return file

    def saved(self, run: Run, node_id: str) -> list[Path]:
        """The files that a SaveImage node wrote in this run."""
        images = run.outputs[node_id]["images"]
        return [self.base / one["type"] / one["subfolder"] / one["filename"] for one in images]

    # runs

    def listen(self) -> EventLog:
        """A websocket client; queue with its client_id to hear the previews of a prompt."""
        return EventLog(self.url.replace("http", "ws", 1))

    def queue(self, graph: Graph, events: EventLog | None = None) -> str:
        """Queue a graph and return the prompt's id; Refused with the server's reason."""
        body: dict[str, Any] = {"prompt": graph}
        if events is not None:
            body["client_id"] = events.client_id
        answer = self.post("/prompt", body)
        if answer.status_code != 200:
            raise Refused(answer.json())
        said = answer.json()
        if said.get("node_errors"):
            raise Refused(said)
        return said["prompt_id"]

    def wait(self, prompt_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The prompt's history entry, once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(POLL_S)
        raise AssertionError(
            f"prompt {prompt_id} did not end in {timeout_s} s:\n{self.log[-4000:]}"
        )

    def finish(self, prompt_id: str, events: EventLog, timeout_s: float = 60.0) -> Run:
        """Wait for a queued prompt and gather what it said."""
        history = self.wait(prompt_id, timeout_s)
        # "executing" with no node, or an error, is the last that a client hears of a prompt
        ended = {"execution_success", "execution_error", "execution_interrupted"}
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            heard = {event.kind for event in events if event.data.get("prompt_id") == prompt_id}
            if heard & ended:
                break
            time.sleep(POLL_S)
        return Run(prompt_id, history, list(events))

    def new_run(self, before: Collection[str], timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for a run that the page has queued; the entry that is new in the history."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            history = self.get("/history")
            if new := history.keys() - before:
                return history[new.pop()]
            time.sleep(POLL_S)
        raise AssertionError(f"the run did not end in {timeout_s} s:\n{self.log[-4000:]}")

    def run(self, graph: Graph, timeout_s: float = 60.0) -> Run:
        """Queue a graph, wait for its end, and gather what it said."""
        events = self.listen()
        try:
            return self.finish(self.queue(graph, events), events, timeout_s)
        finally:
            events.close()
