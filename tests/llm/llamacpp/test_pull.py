"""Fetching models from a hub of our own on a real socket."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from image_refinery.llm.llamacpp import (
    PULLABLE,
    EmbeddedServer,
    Library,
    NotPullable,
    PullError,
    pull,
)

MODEL, PROJECTOR = "SmolVLM-256M-Instruct-Q8_0.gguf", "mmproj-SmolVLM-256M-Instruct-Q8_0.gguf"


@dataclass
class Hub:
    """Answers like the hub: a list with sizes and hashes, files by range.

    `break_after` closes the connection of each file after so many bytes, `damage` sends others,
    `drip` sends 100 KB a second and notes in `left` that the client has closed its connection.
    """

    files: dict[str, bytes]
    url: str = ""
    break_after: int | None = None
    damage: bool = False
    drip: bool = False
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def hub(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {
        MODEL: (models / "tiny-vision.gguf").read_bytes(),
        PROJECTOR: (models / "mmproj-tiny-vision.gguf").read_bytes(),
    }
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            range_header = self.headers["Range"]
            hub.asked.append((self.path, range_header))
            if self.path == "/api/models/ggml-org/SmolVLM-256M-Instruct-GGUF/tree/main":
                self.answer(200, json.dumps([entry(*item) for item in files.items()]).encode())
                return
            content = files[self.path.rpartition("/resolve/main/")[2]]
            first = int(range_header.removeprefix("bytes=").removesuffix("-"))
            content = content[first:]
            if hub.damage:
                content = b"x" * len(content)
            self.answer(206, content, hub.break_after)

        def answer(self, status: int, content: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not (hub.drip and status == 206):
                self.wfile.write(content[:cut])
                return
            try:
                for start in range(0, len(content), 1000):
                    self.wfile.write(content[start : start + 1000])
                    time.sleep(0.01)
            except ConnectionError:
                hub.left.set()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def entry(name: str, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        return {"path": name, "size": len(content), "lfs": {"oid": sha256, "size": len(content)}}

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
        server.shutdown()
        thread.join()


def test_a_pulled_model_is_in_the_library_and_can_see(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "models"
    assert pull("smolvlm", folder=folder) == "smolvlm:256m"
    assert sorted(path.name for path in folder.iterdir()) == sorted([MODEL, PROJECTOR])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files
    model = Library([folder]).find("smolvlm")
    assert (model.name, model.capabilities) == ("smolvlm:256m", ["completion", "vision"])
    # The projector first: half of a pull must not pass for a text model.
    assert [path for path, _ in hub.asked][1].endswith(PROJECTOR)


def test_progress_is_in_bytes_and_ends_at_all(hub: Hub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pull("smolvlm:256m", folder=tmp_path, progress=lambda *step: seen.append(step))
    for content in hub.files.values():
        own = [completed for completed, total in seen if total == len(content)]
        assert own == sorted(own)
        assert (own[0], own[-1]) == (0, len(content))


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 150_000
    pull("smolvlm", folder=tmp_path)
    asked = [begin for path, begin in hub.asked if path.endswith("/" + MODEL)]
    kept = 150_000 // 16_384 * 16_384  # whole pieces
    assert asked == ["bytes=0-", f"bytes={kept}-", f"bytes={2 * kept}-"]
    assert (tmp_path / MODEL).read_bytes() == hub.files[MODEL]


def test_a_later_pull_takes_up_what_an_earlier_left(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 20_000
    with pytest.raises(PullError, match=re.escape(hub.url)):
        pull("smolvlm", folder=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert Library([tmp_path]).models() == []
    hub.break_after = None
    hub.asked.clear()
    pull("smolvlm", folder=tmp_path)
    assert (tmp_path / PROJECTOR).read_bytes() == hub.files[PROJECTOR]
    assert hub.asked[1][1] == f"bytes={4 * 16_384}-"  # four tries, one piece each


def test_what_is_there_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    pull("smolvlm", folder=tmp_path)
    hub.asked.clear()
    pull("smolvlm", folder=tmp_path)
    assert len(hub.asked) == 1  # the list only


def test_a_damaged_file_is_never_installed(hub: Hub, tmp_path: Path) -> None:
    hub.damage = True
    with pytest.raises(PullError, match=r"came damaged from .*; pull again"):
        pull("smolvlm", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with pytest.raises(PullError) as caught:
            pull("smolvlm", folder=tmp_path)
    text = str(caught.value)
    assert text.startswith(f"Cannot fetch 'smolvlm:256m' from {address} (")
    assert text.endswith(
        f"): check the network, or put {PROJECTOR} and {MODEL} of "
        f"ggml-org/SmolVLM-256M-Instruct-GGUF into {tmp_path} by hand."
    )
    assert "\n" not in text


def test_offline_by_the_hubs_own_switch(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PullError, match="HF_HUB_OFFLINE is set"):
        pull("smolvlm", folder=tmp_path / "models")
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    del hub.files[MODEL]
    with pytest.raises(PullError, match="does not list"):
        pull("smolvlm", folder=tmp_path)


def test_only_known_names(tmp_path: Path) -> None:
    with pytest.raises(NotPullable, match="cannot fetch 'llava', only these: smolvlm:256m, "):
        pull("llava", folder=tmp_path)
    assert all(source.files[-1].endswith(".gguf") for source in PULLABLE.values())


@pytest.fixture
def server(hub: Hub, tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(Library([tmp_path]), pull_folder=tmp_path) as server:
        yield server


def ask(server: EmbeddedServer, **body: Any) -> requests.Response:
    return requests.post(f"{server.url}/api/pull", json=body, stream=True, timeout=30)


def test_pull_over_http_is_ollamas(hub: Hub, server: EmbeddedServer) -> None:
    lines = [json.loads(line) for line in ask(server, model="smolvlm").iter_lines()]
    assert lines[0] == {"status": "pulling manifest"}
    statuses = [line["status"] for line in lines]
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    digest = hashlib.sha256(hub.files[MODEL]).hexdigest()
    last = [line for line in lines if line["status"] == f"pulling {digest[:12]}"][-1]
    size = len(hub.files[MODEL])
    assert (last["digest"], last["total"], last["completed"]) == (f"sha256:{digest}", size, size)
    tags = requests.get(f"{server.url}/api/tags", timeout=30).json()["models"]
    assert [entry["name"] for entry in tags] == ["smolvlm:256m"]


def test_pull_in_one_piece(server: EmbeddedServer) -> None:
    assert ask(server, name="smolvlm:256m", stream=False).json() == {"status": "success"}


def test_an_unknown_name_is_ollamas_error_line(server: EmbeddedServer) -> None:
    response = ask(server, model="llava")
    lines = [json.loads(line) for line in response.iter_lines()]
    assert response.status_code == 200
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[1] == {"error": "pull model manifest: file does not exist"}


def test_a_client_that_leaves_ends_the_pull(hub: Hub, server: EmbeddedServer) -> None:
    hub.drip = True
    response = ask(server, model="smolvlm")
    next(response.iter_lines(chunk_size=1))
    response.close()
    assert hub.left.wait(10)
    assert len(hub.asked) == 2  # the list and the first file
