"""Hub ids, against a small hub on this machine: download once, then no more; refusals in words."""

import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from image_refinery.refine import CheckpointError, HubError, ImageRefiner
from image_refinery.refine.hugging_face import is_cached
from image_refinery.refine.loading import load_components
from PIL import Image

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"num_inference_steps": 4, "working_size": "keep size"}


class Hub:
    """Serves the files of one folder as the model somebody/tiny; knows two refusals."""

    def __init__(self, folder: Path) -> None:
        self.files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        if "somebody/gated" in path:
            return (
                403,
                {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted."},
                b"{}",
            )
        if "somebody/tiny" not in path:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found."}, b"{}"
        if "/tree/" in path:  # huggingface_hub 1 asks for this, older ones for the next
            files = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
                for name, file in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(files).encode()
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "somebody/tiny", "sha": COMMIT, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        body = self.files[path.partition(f"/resolve/{COMMIT}/")[2]].read_bytes()
        etag = f'"{sha256(body).hexdigest()}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants, file_download, utils

    hub = Hub(tiny_folder)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # huggingface_hub before 1.0 has it in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    utils.disable_progress_bars()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    yield hub
    utils.enable_progress_bars()
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def test_a_hub_id_is_downloaded_once_and_then_asks_nothing(hub: Hub) -> None:
    image = Image.new("RGB", (64, 64))
    first = ImageRefiner("cpu", model="somebody/tiny").refine(image, **SMALL)
    assert any("unet/diffusion_pytorch_model.safetensors" in request for request in hub.requests)
    hub.requests.clear()
    second = ImageRefiner("cpu", model="somebody/tiny").refine(image, **SMALL)
    assert hub.requests == []
    assert first.tobytes() == second.tobytes()


def test_whether_weights_are_here_is_known_without_asking(hub: Hub) -> None:
    assert not is_cached("somebody/tiny")
    assert hub.requests == []
    load_components("somebody/tiny")
    hub.requests.clear()
    assert is_cached("somebody/tiny")
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="or a Hugging Face id"):
        is_cached("no/such/folder")


def test_half_precision_files_are_preferred(hub: Hub) -> None:
    halves = {
        name.replace(".safetensors", ".fp16.safetensors"): path
        for name, path in hub.files.items()
        if name.endswith(".safetensors")
    }
    hub.files |= halves
    load_components("somebody/tiny")
    fetched = [request for request in hub.requests if ".safetensors" in request]
    assert fetched
    assert all(".fp16." in request for request in fetched)


def test_a_license_that_was_not_accepted_is_named(hub: Hub) -> None:
    with pytest.raises(HubError, match="you must accept its license"):
        load_components("somebody/gated")


def test_a_name_that_the_hub_does_not_know_is_named(hub: Hub) -> None:
    with pytest.raises(HubError, match="no folder somebody/nothing here and no such model"):
        load_components("somebody/nothing")
