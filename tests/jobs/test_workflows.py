"""Workflows over folders: a scripted ComfyUI, and what a job does with it."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from image_refinery.jobs import workflows
from image_refinery.jobs.captions import seed_of
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "{image}"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0], "seed": "{seed}"}},
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 0], "filename_prefix": "new/{name}"},
    },
}
IDS = ["a.png", "b.png", "c.png", "d.png", "inner/a.png", "inner/b.png"]


class ScriptedComfyUI:
    """The routes of ComfyUI that a job uses. It inverts images, one prompt after the other.

    Attributes:
        seconds: that a prompt takes; None: it does not end.
        fails: returns what the prompt of an image raises, or None.
        refuses: the answer with status 400 to any prompt.
        images: how many output images a prompt has.
        redirects: the place that all answers name.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.seconds: float | None = 0.0
        self.fails: Callable[[str], Any] = lambda name: None
        self.refuses: dict[str, Any] | None = None
        self.images = 1
        self.redirects = ""
        self.inputs: dict[str, bytes] = {}
        self.outputs: dict[str, bytes] = {}
        self.queued: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.interrupted: list[str] = []
        self.deleted: list[str] = []
        self.connections: list[socket.socket] = []
        self._lock = threading.Lock()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}"

    def start(self) -> None:
        """Listen, at the same port as before, with an empty queue and history."""
        self.queue: list[tuple[str, Any, float]] = []
        self.history: dict[str, Any] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """End all connections, and refuse others."""
        self._server.shutdown()
        while self.connections:
            with suppress(OSError):
                self.connections.pop().shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def count(self, path: str) -> int:
        return sum(one[1] == path for one in self.requests)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        with self._lock:
            self.requests.append((method, path, body))
            self._work()
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if (method, path) == ("POST", "/upload/image"):
            self.inputs[f"{body['subfolder']}/{body['name']}"] = body["data"]
            return 200, {"name": body["name"], "subfolder": body["subfolder"], "type": "input"}
        if (method, path) == ("POST", "/prompt"):
            if self.refuses is not None:
                return 400, self.refuses
            self.queued.append(body)
            self.queue.append((body["prompt_id"], body["prompt"], time.monotonic()))
            return 200, {"prompt_id": body["prompt_id"], "number": 1, "node_errors": {}}
        if (method, path) == ("POST", "/queue"):
            # The first is running, and stays.
            self.deleted += [one[0] for one in self.queue[1:] if one[0] in body["delete"]]
            self.queue[1:] = [one for one in self.queue[1:] if one[0] not in body["delete"]]
            return 200, None
        if (method, path) == ("POST", "/interrupt"):
            self.interrupted.append(body["prompt_id"])
            return 200, None
        if path == "/queue":
            entries = [[0, id, prompt, {}, []] for id, prompt, _ in self.queue]
            return 200, {"queue_running": entries[:1], "queue_pending": entries[1:]}
        if path.startswith("/history/"):
            id = path.rpartition("/")[2]
            return 200, {id: self.history[id]} if id in self.history else {}
        if path == "/view":
            data = self.outputs.get(f"{query['subfolder']}/{query['filename']}")
            return (200, data) if data is not None else (404, None)
        return 404, None

    def _work(self) -> None:
        while self.queue and self.seconds is not None:
            id, prompt, since = self.queue[0]
            if time.monotonic() - since < self.seconds:
                return
            self.queue.pop(0)
            self.history[id] = self._run(prompt)

    def _run(self, prompt: Any) -> dict[str, Any]:
        name = prompt["1"]["inputs"]["image"]
        if (message := self.fails(name)) is not None:
            return {"outputs": {}, "status": {"status_str": "error", "messages": [message]}}
        with Image.open(io.BytesIO(self.inputs[name])) as image:
            inverted = io.BytesIO()
            ImageOps.invert(image.convert("RGB")).save(inverted, "PNG")
        folder, _, stem = prompt["3"]["inputs"]["filename_prefix"].rpartition("/")
        files = [f"{stem}_{len(self.outputs) + 1 + more:05}_.png" for more in range(self.images)]
        self.outputs |= {f"{folder}/{file}": inverted.getvalue() for file in files}
        images = [{"filename": file, "subfolder": folder, "type": "output"} for file in files]
        return {
            "outputs": {"3": {"images": images}, "4": {"text": [f"Inverted {stem}."]}},
            "status": {"status_str": "success", "completed": True, "messages": []},
        }


def _handler(server: ScriptedComfyUI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections.append(self.connection)

        def _do(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.headers.append(dict(self.headers.items()))
            parts = urlsplit(self.path)
            query = {name: one[0] for name, one in parse_qs(parts.query, True).items()}
            query.setdefault("subfolder", "")
            kind = self.headers.get("Content-Type", "")
            body: Any = None
            if kind.startswith("multipart/"):
                body = _fields(kind, raw)
            elif raw:
                body = json.loads(raw)
            if server.redirects:
                self.send_response(302)
                self.send_header("Location", server.redirects)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if not parts.path.startswith(server.prefix):
                status, said = 404, None
            else:
                path = parts.path[len(server.prefix) :]
                status, said = server.answer(self.command, path, query, body)
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _fields(kind: str, raw: bytes) -> dict[str, Any]:
    """Return the fields of a form with a file."""
    from email import message_from_bytes

    found: dict[str, Any] = {}
    parts = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw)
    for part in parts.get_payload():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename():
            found |= {"name": part.get_filename(), "data": part.get_payload(decode=True)}
        else:
            found[name] = part.get_payload()
    return found


@pytest.fixture
def make_comfyui() -> Iterator[Callable[..., ScriptedComfyUI]]:
    with ExitStack() as stack:

        def make(prefix: str = "") -> ScriptedComfyUI:
            server = ScriptedComfyUI(prefix)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def comfyui(make_comfyui: Callable[..., ScriptedComfyUI]) -> ScriptedComfyUI:
    return make_comfyui()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images, two of them in a folder inside."""
    top = tmp_path / "set"
    (top / "inner").mkdir(parents=True)
    for shade, name in enumerate(IDS):
        Image.new("RGB", (60, 40), (10 * shade, 0, 0)).save(top / name)
    return top


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    file = tmp_path / "invert.json"
    file.write_text(json.dumps(WORKFLOW))
    return file


@pytest.fixture
def batch(
    images: Path, workflow: Path, tmp_path: Path, comfyui: ScriptedComfyUI
) -> Callable[..., int]:
    def run(*options: str, servers: tuple[str, ...] = ()) -> int:
        words = ["batch", str(images), "--recursive", "--job", str(tmp_path / "job")]
        for url in servers or (comfyui.url,):
            words += ["--comfyui", url]
        return main([*words, "--workflow", str(workflow), *options])

    return run


def rows_of(tmp_path: Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(tmp_path / "job")}


def test_each_image_is_uploaded_queued_and_has_a_row(
    batch: Callable[..., int], tmp_path: Path, images: Path, comfyui: ScriptedComfyUI, capsys: Any
) -> None:
    assert batch("--seed", "5") == 0
    rows = rows_of(tmp_path)
    assert sorted(rows) == IDS
    row = rows["inner/a.png"]
    assert row == {
        **{name: row[name] for name in ("at", "version", "seconds", "prompt_id")},
        "id": "inner/a.png",
        "status": "done",
        "by": comfyui.url,
        "outputs": {
            "3": {"images": [{**row["outputs"]["3"]["images"][0], "type": "output"}]},
            "4": {"text": ["Inverted a."]},
        },
    }
    queued = {one["prompt_id"]: one for one in comfyui.queued}[row["prompt_id"]]
    nodes = queued["prompt"]
    name = nodes["1"]["inputs"]["image"]
    assert name.startswith("image-refinery/job/a-") and name.endswith(".png")
    assert comfyui.inputs[name] == (images / "inner" / "a.png").read_bytes()
    assert len(comfyui.inputs) == 6, "a.png and inner/a.png have two names"
    seeds = {seed_of(jobs.Item(id, "/x"), 5) for id in IDS}
    assert {one["prompt"]["2"]["inputs"]["seed"] for one in comfyui.queued} == seeds
    assert nodes["3"]["inputs"]["filename_prefix"] == "new/a"
    assert queued["client_id"], "without one, every open page would get the events"
    said = capsys.readouterr()
    assert "6 done, 0 failed, 0 left." in said.err
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert report["done"] == 6 and report["by"] == {comfyui.url: 6} and report["flags"] == {}
    assert "Inverted a." in (tmp_path / "job" / "report.html").read_text("utf-8")
    assert comfyui.count("/view") == 0, "nothing is downloaded"


def test_the_same_command_again_queues_nothing(
    batch: Callable[..., int], images: Path, comfyui: ScriptedComfyUI, capsys: Any
) -> None:
    assert batch("--limit", "2", "--estimate") == 0
    assert "the 4 images that are left would take" in capsys.readouterr().out
    assert len(comfyui.queued) == 2
    assert batch("--dry-run") == 0
    assert capsys.readouterr().out == "6 images, 2 have a result, 4 to do.\n"
    assert batch() == batch() == 0
    assert len(comfyui.queued) == 6
    Image.new("RGB", (60, 40), "white").save(images / "new.png")
    assert batch() == 0
    assert len(comfyui.queued) == 7, "the input may grow"


def test_another_workflow_or_seed_is_another_job(
    batch: Callable[..., int], workflow: Path, comfyui: ScriptedComfyUI, capsys: Any
) -> None:
    assert batch("--limit", "1") == 0
    workflow.write_text(json.dumps(WORKFLOW, indent=2))
    assert batch("--limit", "1") == 0, "only the content counts"
    assert batch("--seed", "2") == 1
    assert "was begun with seed 0, and now it is 2" in capsys.readouterr().err
    workflow.write_text(json.dumps(WORKFLOW).replace("ImageInvert", "ImageBlur"))
    assert batch() == 1
    assert "was begun with workflow" in capsys.readouterr().err
    assert len(comfyui.queued) == 2


def test_several_servers_share_the_images(
    batch: Callable[..., int],
    tmp_path: Path,
    comfyui: ScriptedComfyUI,
    make_comfyui: Callable[..., ScriptedComfyUI],
) -> None:
    other = make_comfyui("/behind/a/proxy")
    comfyui.seconds = other.seconds = 0.1
    assert batch(servers=(comfyui.url, f"{other.url}/")) == 0
    by = Counter(row["by"] for row in rows_of(tmp_path).values())
    assert sum(by.values()) == 6 and set(by) == {comfyui.url, other.url}
    assert len(comfyui.queued) + len(other.queued) == 6


def test_a_node_that_fails_is_a_row(
    batch: Callable[..., int],
    images: Path,
    tmp_path: Path,
    comfyui: ScriptedComfyUI,
    capsys: Any,
) -> None:
    about = {
        "node_id": "2",
        "node_type": "ImageInvert",
        "exception_type": "torch.OutOfMemoryError",
        "exception_message": "Allocation failed.\n",
    }
    comfyui.fails = lambda name: (
        ["execution_error", about]
        if "/b-" in name
        else ["execution_interrupted", {}]
        if "/c-" in name
        else None
    )
    (images / "d.png").unlink()
    (images / "d.png").symlink_to(images / "inner")  # the list below names it, and it is no file
    listed = images / "list.txt"
    listed.write_text("a.png\nb.png\nc.png\nd.png\n")
    words = ["batch", str(listed), "--job", str(tmp_path / "job"), "--comfyui", comfyui.url]
    words += ["--workflow", str(tmp_path / "invert.json")]
    assert main(words) == 1
    errors = {id: row["error"] for id, row in rows_of(tmp_path).items() if "error" in row}
    message = "ImageInvert (node 2): torch.OutOfMemoryError: Allocation failed."
    assert errors["b.png"] == {"kind": "torch.OutOfMemoryError", "code": "R514", "message": message}
    assert errors["c.png"]["kind"] == "Interrupted"
    assert errors["d.png"]["code"] == "R503"
    said = capsys.readouterr().err
    assert "1 done, 3 failed, 0 left." in said and "1 R514 torch.OutOfMemoryError" in said
    comfyui.fails = lambda name: None
    assert main(words) == 1 and len(comfyui.queued) == 3, "a failure stays until it is retried"
    assert main([*words, "--retry-failed"]) == 1
    assert Counter(row["status"] for row in rows_of(tmp_path).values()) == {"done": 3, "failed": 1}


def test_a_workflow_that_comfyui_refuses_ends_the_job(
    batch: Callable[..., int], tmp_path: Path, comfyui: ScriptedComfyUI, capsys: Any
) -> None:
    missing = {
        "message": "Value not in list",
        "details": "ckpt_name: 'sd.safetensors' not in []",
    }
    comfyui.refuses = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed"},
        "node_errors": {"7": {"errors": [missing], "class_type": "CheckpointLoaderSimple"}},
    }
    assert batch() == 1
    said = capsys.readouterr().err
    assert "refuses the workflow: node 7 (CheckpointLoaderSimple): Value not in list: ckpt_" in said
    assert said.endswith("(R513)\n") and not rows_of(tmp_path) and comfyui.count("/prompt") == 1
    comfyui.refuses = {"error": {"message": "Node 'X' not found."}, "node_errors": {}}
    assert batch() == 1
    assert "refuses the workflow: Node 'X' not found." in capsys.readouterr().err
    comfyui.refuses = None
    assert batch() == 0


def test_a_server_that_cannot_be_reached_leaves_its_images_to_the_others(
    batch: Callable[..., int],
    tmp_path: Path,
    comfyui: ScriptedComfyUI,
    make_comfyui: Callable[..., ScriptedComfyUI],
    capsys: Any,
) -> None:
    gone = ScriptedComfyUI()
    gone.stop()
    assert batch(servers=(gone.url, comfyui.url)) == 0
    assert f"Can't reach ComfyUI at {gone.url} (Connection refused)" in capsys.readouterr().err
    assert len(rows_of(tmp_path)) == 6
    assert batch("--seed", "0", servers=(gone.url,)) == 0, "there is nothing to do"


def test_an_unreachable_server_makes_no_rows(
    batch: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    gone = ScriptedComfyUI()
    gone.stop()
    assert batch(servers=(gone.url,)) == 1
    said = capsys.readouterr().err
    assert "0 done, 0 failed, 6 left." in said and "(R512)" in said and not rows_of(tmp_path)


def test_a_server_that_restarts_gets_the_lost_prompt_again(
    batch: Callable[..., int],
    tmp_path: Path,
    comfyui: ScriptedComfyUI,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(workflows, "_LOOK_S", 0.1)
    comfyui.seconds = None

    def restart() -> None:
        while not comfyui.queued:
            time.sleep(0.01)
        comfyui.stop()
        time.sleep(0.3)
        comfyui.seconds = 0.0
        comfyui.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert batch() == 0
    thread.join()
    assert len(rows_of(tmp_path)) == 6 and len(comfyui.queued) == 7
    assert "The job waits for it" in capsys.readouterr().err


def test_a_server_that_stays_away_ends_its_work(
    images: Path, tmp_path: Path, comfyui: ScriptedComfyUI
) -> None:
    comfyui.seconds = None
    notes: list[str] = []
    items = jobs.find_items([images])
    found = jobs.Workflow(WORKFLOW, frozenset(("image", "seed", "name")))

    def stop() -> None:
        while not comfyui.queued:
            time.sleep(0.01)
        comfyui.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    server = jobs.ComfyUI(comfyui.url)
    state = jobs.run_workflow(
        items, found, [server], tmp_path / "job", return_s=0.2, note=notes.append
    )
    thread.join()
    server.close()
    comfyui.start()  # for the fixture, which stops it
    assert list(state.errors) == [comfyui.url] and len(notes) == 1 and not state.counts


def test_an_image_that_ends_the_server_is_a_row_in_the_end(
    batch: Callable[..., int],
    tmp_path: Path,
    comfyui: ScriptedComfyUI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workflows, "_LOOK_S", 0.01)
    before = comfyui._run

    def run(prompt: Any) -> Any:
        if "/b-" in prompt["1"]["inputs"]["image"]:
            return {}  # as if it had never been there
        return before(prompt)

    monkeypatch.setattr(comfyui, "_run", run)
    assert batch("--pattern", "[ab].png") == 1
    rows = rows_of(tmp_path)
    assert rows["a.png"]["status"] == "done"
    assert rows["b.png"]["error"]["kind"] == "Lost"
    assert len(comfyui.queued) == 4


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_cancels_what_was_queued(
    images: Path, workflow: Path, tmp_path: Path, comfyui: ScriptedComfyUI, make_comfyui: Any
) -> None:
    """One server is running our prompt, the other one that of somebody else."""
    other = make_comfyui()
    comfyui.seconds = other.seconds = None
    other.queue.append(("foreign", WORKFLOW, 0.0))
    words = [sys.executable, str(ROOT), "batch", str(images), "--job", str(tmp_path / "job")]
    words += ["--workflow", str(workflow), "--comfyui", comfyui.url, "--comfyui", other.url]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    until = time.monotonic() + 60
    while not (comfyui.queued and other.queued):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "4 images are left. The same command continues." in said and "Traceback" not in said
    (ours,) = comfyui.queued
    (theirs,) = other.queued
    assert comfyui.interrupted == [ours["prompt_id"]]
    assert other.deleted == [theirs["prompt_id"]] and other.interrupted == []
    assert [id for id, *_ in other.queue] == ["foreign"]


def test_outputs_are_downloaded_by_the_ids_of_the_images(
    batch: Callable[..., int], tmp_path: Path, images: Path, comfyui: ScriptedComfyUI, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert batch("--output", str(out)) == 0
    for id in IDS:
        with Image.open(images / id) as before, Image.open(out / id) as after:
            assert ImageOps.invert(before).tobytes() == after.tobytes()
    assert sum(file.is_file() for file in out.rglob("*")) == 6
    Image.new("RGB", (60, 40), "white").save(images / "new.png")
    comfyui.images = 2
    Image.new("RGB", (60, 40), "white").save(images / "new_1.png")
    assert batch("--output", str(out), "--pattern", "new*") == 0
    names = {file.stem for file in out.iterdir() if file.stem.startswith("new")}
    assert names == {"new_1_", "new_2", "new_1_1", "new_1_2"}
    capsys.readouterr()
    assert batch("--output", str(tmp_path / "late")) == 0
    assert "Results of earlier runs are not downloaded." in capsys.readouterr().err
    assert batch("--output", str(images / "out")) == 1
    assert "is inside the input" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").write_text("mine")
    assert batch("--output", str(tmp_path / "full")) == 1
    assert "has files that are not from this job" in capsys.readouterr().err
    Image.new("RGB", (60, 40)).save(images / "A.jpg")
    assert batch("--output", str(out)) == 1
    assert "would have the same file" in capsys.readouterr().err


def test_an_output_that_is_gone_is_a_row(
    batch: Callable[..., int], tmp_path: Path, comfyui: ScriptedComfyUI
) -> None:
    comfyui.outputs = _Forgetful()
    assert batch("--output", str(tmp_path / "out"), "--limit", "1") == 1
    assert rows_of(tmp_path)["a.png"]["error"]["kind"] == "MissingOutput"
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


class _Forgetful(dict[str, bytes]):
    def get(self, key: str, default: Any = None) -> Any:
        return None


def test_a_path_is_for_files(
    batch: Callable[..., int], workflow: Path, images: Path, comfyui: ScriptedComfyUI
) -> None:
    nodes = json.loads(json.dumps(WORKFLOW))
    nodes["2"]["inputs"]["path"] = "{path}"
    workflow.write_text(json.dumps(nodes))
    assert batch("--limit", "1") == 0
    assert comfyui.queued[0]["prompt"]["2"]["inputs"]["path"] == str(images / "a.png")
    source: Any = object()
    with pytest.raises(jobs.JobError, match="is no file on a disk"):
        jobs.begin_workflow(
            [jobs.Item("x/a.png", "/in", source)], jobs.read_workflow(workflow), images / "job"
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON file"),
        ('{"nodes": [], "links": []}', "has the format of the page"),
        ('{"prompt": {}}', "is no workflow of ComfyUI"),
        ('{"1": {"class_type": "A", "inputs": {"a": "b", "c": 1}}}', "has no placeholder"),
    ],
)
def test_a_file_that_is_no_workflow_is_one_sentence(
    batch: Callable[..., int], workflow: Path, content: str, said: str, capsys: Any
) -> None:
    workflow.write_text(content)
    assert batch() == 1
    error = capsys.readouterr().err
    assert said in error and error.endswith("(R513)\n")


def test_only_the_named_address_is_asked(
    batch: Callable[..., int], comfyui: ScriptedComfyUI, make_comfyui: Any, capsys: Any
) -> None:
    comfyui.redirects = make_comfyui().url
    assert batch() == 1
    assert "redirects to another address" in capsys.readouterr().err
    assert batch(servers=("ftp://me:secret@box",)) == 1
    said = capsys.readouterr().err
    assert "cannot be used" in said and "secret" not in said


def test_user_and_password_are_sent_and_not_shown(
    batch: Callable[..., int], comfyui: ScriptedComfyUI, tmp_path: Path, capsys: Any
) -> None:
    assert batch(servers=(comfyui.url.replace("://", "://me:secret@"),)) == 0
    wanted = "Basic " + base64.b64encode(b"me:secret").decode()
    assert {one.get("Authorization") for one in comfyui.headers} == {wanted}
    files = [file.read_bytes() for file in (tmp_path / "job").rglob("*") if file.is_file()]
    assert "secret" not in capsys.readouterr().err and b"secret" not in b"".join(files)


def test_options_of_captions_are_refused(
    batch: Callable[..., int], images: Path, tmp_path: Path, capsys: Any
) -> None:
    for words, said in (
        (("--vision-prompt", "x"), "takes no --vision-prompt"),
        (("--out", "txt"), "takes no --out"),
    ):
        with pytest.raises(SystemExit) as ended:
            batch(*words)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["batch", str(images), "--job", str(tmp_path), "--comfyui", "http://box"])
    assert "belong together" in capsys.readouterr().err
