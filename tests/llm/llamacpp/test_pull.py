"""Downloading models by huggingface_hub from a small Hugging Face of our own on a real socket."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from image_refinery.llm.llamacpp.library import Library
from image_refinery.llm.llamacpp.pull import PULLABLE, NotPullable, PullError, pull

ROOT = Path(__file__).resolve().parents[3]
REPOSITORY = "ggml-org/SmolVLM-256M-Instruct-GGUF"
MODEL, PROJECTOR = "SmolVLM-256M-Instruct-Q8_0.gguf", "mmproj-SmolVLM-256M-Instruct-Q8_0.gguf"


@dataclass
class Hub:
    """Answers like Hugging Face for one repository.

    `break_after` closes the connection of each file after so many bytes, `drip` sends a file in
    small pieces for a minute, `status` answers everything with an error.
    """

    files: dict[str, bytes]
    url: str = ""
    break_after: int | None = None
    drip: bool = False
    status: int = 200
    gets: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def got(self) -> list[str]:
        return [name for name, _ in self.gets]


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    files = {
        MODEL: (models / "tiny-vision.gguf").read_bytes(),
        PROJECTOR: (models / "mmproj-tiny-vision.gguf").read_bytes(),
    }
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            if self.path.endswith(".gguf"):  # huggingface_hub asks for other things, too
                hub.gets.append((self.path.rpartition("/")[2], self.headers["Range"]))
            self.answer()

        def answer(self) -> None:
            content = hub.files.get(self.path.removeprefix(f"/{REPOSITORY}/resolve/main/"))
            status = hub.status if content is not None else 404
            content = content or b""
            digest = hashlib.sha256(content).hexdigest()
            first = int((self.headers["Range"] or "bytes=0-").split("=")[1].split("-")[0])
            self.send_response(206 if first and status == 200 else status)
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", f'"{digest}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET" and status == 200:
                self.send_body(content[first:])

        def send_body(self, content: bytes) -> None:
            if not hub.drip:
                self.wfile.write(content[: hub.break_after])
                return
            try:
                for at in range(0, len(content), len(content) // 600):
                    self.wfile.write(content[at : at + len(content) // 600])
                    time.sleep(0.1)
            except ConnectionError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        use(hub.url, monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send huggingface_hub to `url`: it has read HF_ENDPOINT when it was imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(autouse=True)
def no_wait_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))


@pytest.fixture
def command(hub: Hub, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """command("models", "--pull", ...): the command line in a process of its own."""

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT), *arguments],
            env={
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "home"),
                "IMAGE_REFINERY_MODELS": str(tmp_path / "models"),
                "OLLAMA_BASE_URL": "embedded",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ggufs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.gguf")}


def test_a_pulled_model_is_in_the_library_and_has_vision(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "models"
    assert pull("smolvlm", folder=folder) == "smolvlm:256m"
    assert ggufs(folder) == hub.files
    model = Library([folder]).find("smolvlm")
    assert (model.name, model.capabilities) == ("smolvlm:256m", ["completion", "vision"])
    assert hub.got == [PROJECTOR, MODEL], "half of a pull is no text model"


def test_a_connection_that_keeps_breaking_is_one_message(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 20_000
    with pytest.raises(PullError) as caught:
        pull("smolvlm", folder=tmp_path)
    check(str(caught.value), hub.url, tmp_path)
    assert Library([tmp_path]).models() == []
    hub.break_after = None
    pull("smolvlm", folder=tmp_path)
    assert ggufs(tmp_path) == hub.files


def test_files_that_are_there_are_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / PROJECTOR).write_bytes(hub.files[PROJECTOR])  # by hand
    pull("smolvlm", folder=tmp_path)
    pull("smolvlm", folder=tmp_path)
    assert hub.got == [MODEL]


def test_a_later_pull_completes_an_earlier_one(hub: Hub, tmp_path: Path) -> None:
    model = hub.files.pop(MODEL)
    with pytest.raises(PullError, match="404"):
        pull("smolvlm", folder=tmp_path)
    assert Library([tmp_path]).models() == []
    hub.files[MODEL] = model
    pull("smolvlm", folder=tmp_path)
    assert ggufs(tmp_path) == hub.files
    assert hub.got == [PROJECTOR, MODEL]


@pytest.mark.parametrize("status", [401, 500, 503])
def test_an_error_of_the_server_is_one_message(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.status = status
    with pytest.raises(PullError) as caught:
        pull("smolvlm", folder=tmp_path)
    check(str(caught.value), hub.url, tmp_path)
    assert str(status) in str(caught.value)


def test_no_network_is_one_message(hub: Hub, tmp_path: Path, monkeypatch: Any) -> None:
    use("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(PullError) as caught:
        pull("smolvlm", folder=tmp_path)
    check(str(caught.value), "http://127.0.0.1:9", tmp_path)


def check(text: str, url: str, folder: Path) -> None:
    """What failed, why, and what to do, in one line."""
    assert re.fullmatch(
        rf"Can't download 'smolvlm:256m' from {re.escape(url)} \([^\n]{{10,200}}\)\. Check the "
        rf"connection, or download {PROJECTOR} and {MODEL} of {REPOSITORY} elsewhere and put them "
        rf"into {re.escape(str(folder))}\.",
        text,
    )


def test_a_folder_that_cannot_be_written_is_one_message(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullError) as caught:
        pull("smolvlm", folder=tmp_path / "file")
    assert str(caught.value).startswith(f"Can't save 'smolvlm:256m' in {tmp_path / 'file'} (")
    assert "IMAGE_REFINERY_MODELS" in str(caught.value)


def test_only_known_names(tmp_path: Path) -> None:
    with pytest.raises(NotPullable, match="can't download 'llava'"):
        pull("llava", folder=tmp_path)
    assert all(source.files[-1].endswith(".gguf") for source in PULLABLE.values())


def test_the_command_uses_the_mirror_that_hf_endpoint_names(
    hub: Hub, command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out, err = command("models", "--pull", "smolvlm").communicate(timeout=60)
    assert f"smolvlm:256m is in {tmp_path / 'models'}" in out, err
    assert ggufs(tmp_path / "models") == hub.files


def test_hf_hub_offline_is_obeyed(hub: Hub, command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command("models", "--pull", "smolvlm", HF_HUB_OFFLINE="1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: Can't download 'smolvlm:256m'" in err and "HF_HUB_OFFLINE" in err
    assert hub.gets == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a signal for one process")
def test_ctrl_c_ends_it_and_a_later_call_completes_it(
    hub: Hub, command: Callable[..., subprocess.Popen[str]], tmp_path: Path, until: Any
) -> None:
    hub.drip = True
    process = command("models", "--pull", "smolvlm")
    until(lambda: hub.gets, "the download begins", 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert ggufs(tmp_path / "models") == {}
    hub.drip = False
    _, err = command("models", "--pull", "smolvlm").communicate(timeout=60)
    assert ggufs(tmp_path / "models") == hub.files, err
