"""What is answered without a model: lists, descriptions, errors, and who may ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

pytestmark = pytest.mark.embedded


def test_it_says_that_it_is_there(shared_api: Any) -> None:
    assert shared_api.get("/").text == "Ollama is running"
    assert shared_api.get("/api/version").json()["version"]
    head = requests.head(shared_api.url + "/api/version", timeout=60)
    assert (head.status_code, head.content) == (200, b"")


def test_tags_list_every_usable_model_with_what_it_can_do(shared_api: Any) -> None:
    models = {entry["name"]: entry for entry in shared_api.get("/api/tags").json()["models"]}
    # `cut` has a whole header and shows its damage only when loaded; `noise` is no GGUF file.
    names = ["cut", "slow", "thinker", "tiny", "tiny-vision"]
    assert sorted(models) == sorted(f"{name}:latest" for name in names)
    assert models["tiny:latest"]["capabilities"] == ["completion"]
    assert models["tiny-vision:latest"]["capabilities"] == ["completion", "vision"]
    assert models["thinker:latest"]["capabilities"] == ["completion", "thinking"]
    tiny = models["tiny:latest"]
    assert tiny["model"] == tiny["name"]
    assert len(bytes.fromhex(tiny["digest"])) == hashlib.sha256().digest_size
    assert tiny["modified_at"].endswith("Z")
    assert tiny["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "95.04K",
        "quantization_level": "F32",
    }


def test_the_size_of_a_vision_model_counts_both_files(shared_api: Any, models: Any) -> None:
    listed = {entry["name"]: entry for entry in shared_api.get("/api/tags").json()["models"]}
    files = [models / "tiny-vision.gguf", models / "mmproj-tiny-vision.gguf"]
    assert listed["tiny-vision:latest"]["size"] == sum(file.stat().st_size for file in files)


def test_show_describes_a_model(shared_api: Any) -> None:
    shown = shared_api.post("/api/show", {"model": "tiny-vision"}).json()
    assert shown["capabilities"] == ["completion", "vision"]
    assert shown["model_info"]["llama.context_length"] == 4096
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert shown["details"]["families"] == ["llama", "clip"]
    assert shown["projector_info"]["clip.vision.image_size"] == 64
    assert "<|im_start|>" in shown["template"]
    assert shown == shared_api.post("/api/show", {"name": "TINY-VISION:latest"}).json()


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/show", {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/chat", {"model": "nope", "messages": []}, 404, "model 'nope' not found"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/generate", {"prompt": ""}, 404, "model '' not found"),
        ("/api/generate", {"model": "tiny", "prompt": "hi"}, 400, "by /api/chat only"),
        ("/api/chat", {"model": "nope", "keep_alive": 0}, 404, "model 'nope' not found"),
        ("/api/chat", {"model": "tiny", "keep_alive": "-1"}, 400, 'missing unit in duration "-1"'),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "x"}]}, 400, "invalid role: x"),
        ("/api/chat", {"model": "tiny", "messages": "hi"}, 400, "messages must be a list"),
        ("/api/chat", {"model": "tiny", "think": True}, 400, '"tiny" does not support thinking'),
        ("/api/chat", {"model": "tiny", "think": "much"}, 400, "invalid think value"),
        ("/api/chat", {"model": "tiny", "tools": [{}]}, 400, '"tiny" does not support tools'),
        ("/api/chat", {"model": "tiny", "format": "xml"}, 500, "invalid format: 'xml'"),
        (
            "/api/chat",
            {"model": "tiny", "options": {"num_ctx": "big"}},
            500,
            'option "num_ctx" must be of type integer',
        ),
        (
            "/api/chat",
            {"model": "tiny", "options": {"stop": "x"}},
            500,
            'option "stop" must be of type array',
        ),
        ("/api/chat", {"model": "noise"}, 500, "does not begin with the letters GGUF"),
    ],
)
def test_errors_have_the_shape_and_words_of_ollama(
    shared_api: Any, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    response = shared_api.post(path, body)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert text in response.json()["error"]
    assert shared_api.ps() == {}


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(shared_api: Any, body: bytes) -> None:
    response = requests.post(shared_api.url + "/api/chat", data=body, timeout=60)
    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", "illegal base64 data at input byte 4"),
        ("R0lGODlhAQABAAAAACw=", "neither PNG nor JPEG"),
        (5, "images must be base64 strings"),
    ],
)
def test_images_that_cannot_be_read_are_refused(shared_api: Any, image: Any, text: str) -> None:
    response = shared_api.post("/api/chat", shared_api.body("tiny-vision", images=[image]))
    assert response.status_code == 400
    assert text in response.json()["error"]


def test_a_text_model_refuses_images_instead_of_guessing(
    shared_api: Any, picture: Callable[..., str]
) -> None:
    response = shared_api.post("/api/chat", shared_api.body("tiny", images=[picture("red")]))
    assert response.status_code == 400
    assert response.json()["error"].startswith('"tiny" does not support images: it has no vision')
    assert shared_api.ps() == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:11434"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.168.1.5"},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
def test_web_pages_cannot_reach_it(shared_api: Any, headers: dict[str, str]) -> None:
    response = shared_api.get("/api/tags", headers=headers)
    assert (response.status_code, response.content) == (403, b"")
    body = json.dumps({"model": "tiny"})
    url = shared_api.url + "/api/chat"
    response = requests.post(url, data=body, headers=headers, timeout=60)
    assert (response.status_code, response.content) == (403, b"")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1:1", "[::1]:8", "a.localhost"]
)
def test_programs_of_this_machine_can(shared_api: Any, host: str) -> None:
    assert shared_api.get("/api/version", headers={"Host": host}).status_code == 200


def test_unknown_paths_and_methods(shared_api: Any) -> None:
    assert shared_api.get("/api/embed").status_code == 404
    assert shared_api.get("/api/chat").status_code == 405
    assert shared_api.post("/api/tags", {}).status_code == 405


def test_a_body_without_a_length_is_refused(shared_api: Any) -> None:
    with shared_api.connect() as connection:
        head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 411 ")
