"""One worker process: what is read from llama.cpp's log, and who can reach it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from image_refinery.llm.llamacpp import process
from image_refinery.llm.llamacpp.library import Library
from image_refinery.llm.llamacpp.process import LoadOptions, Worker, WorkerEnded

PATHS = ("/models", "/v1/models", "/props", "/slots", "/metrics")
POSTS = ("/v1/chat/completions", "/completion", "/embedding", "/tokenize", "/slots/0?action=erase")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            [
                "0.00.1 I srv: loading",
                "0.00.2 E ggml_backend_cpu_alloc: failed to allocate buffer of size 9",
                "0.00.3 E cmn  common_init_: failed to create context",
            ],
            "failed to allocate buffer of size 9",
        ),
        (
            [
                "0.00.1 E cmn  init: something before",
                "0.00.2 E llama_model_load: error loading model: unknown model architecture: 'x'",
            ],
            "unknown model architecture: 'x'",
        ),
        (["/a/ggml.c:5: GGML_ASSERT(a == b) failed"], "GGML_ASSERT(a == b) failed"),
        (["0.00.1 I srv: loading", ""], "exit status 1, 0.00.1 I srv: loading"),
        ([], "exit status 1, it said nothing"),
    ],
)
def test_the_reason_of_an_end_is_the_most_telling_line(
    lines: list[str], reason: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys\nfor line in {lines!r}:\n    print(line, file=sys.stderr)\nsys.exit(1)\n"
    )
    monkeypatch.setattr(process, "_WORKER", script)
    worker = Worker(Library([models]).find("tiny"), LoadOptions(num_ctx=512))
    with pytest.raises(WorkerEnded, match=re.escape(reason)):
        worker.is_ready(60.0)
    assert worker.end_reason() == f"llama.cpp has stopped: {reason}"


LATE_LOG = """
import sys, threading
from unittest.mock import MagicMock as CommonParams

LINE = "0.00.1 E llama_model_load: error loading model: a cut file"

def Server(parameters):
    threading.Timer(0.1, print, [LINE], {"file": sys.stderr, "flush": True}).start()
    raise RuntimeError("Failed to init server")
"""


def test_a_reason_that_is_logged_late_is_read(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's log has a thread of its own, which a busy machine keeps waiting."""
    (tmp_path / "xllamacpp.py").write_text(LATE_LOG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker(Library([models]).find("tiny"), LoadOptions(num_ctx=512))
    with pytest.raises(WorkerEnded, match="a cut file"):
        worker.is_ready(60.0)


def test_memory_is_read_from_llama_cpps_log() -> None:
    """The lines of a GPU build, as llama.cpp writes them."""
    worker = Worker.__new__(Worker)
    worker._buffers, worker._projector_device = {}, "CPU"
    for line in (
        "0.00.1 I load_tensors:   CPU_Mapped model buffer size =    50.00 MiB",
        "0.00.1 I load_tensors:        CUDA0 model buffer size =   200.00 MiB",
        "0.00.1 I llama_kv_cache:      CUDA0 KV buffer size =    30.00 MiB",
        "0.00.1 I sched_reserve:      CUDA0 compute buffer size =    99.00 MiB",
        "0.00.1 I sched_reserve:      CUDA0 compute buffer size =    20.00 MiB",
        "0.00.1 I sched_reserve:  CUDA_Host compute buffer size =     5.00 MiB",
        "0.00.1 I clip_ctx: CLIP using CUDA0 backend",
        "0.00.1 I load_hparams: model size:         40.00 MiB",
        "0.00.1 I srv: something else",
    ):
        worker._note_memory(line)
    mib = 1 << 20
    assert worker.memory == ((50 + 200 + 30 + 20 + 5 + 40) * mib, (200 + 30 + 20 + 40) * mib)


@pytest.fixture(scope="module")
def worker(models: Path) -> Iterator[Worker]:
    worker = Worker(Library([models]).find("tiny"), LoadOptions(num_ctx=512, num_thread=1))
    while not worker.is_ready(1.0):
        pass
    yield worker
    worker.kill()
    worker.wait_until_gone()


def send(worker: Worker, method: str, path: str, **headers: str) -> requests.Response:
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "content": "hi"}
    url = worker.server.url + path
    return requests.request(method, url, json=body, headers=headers, timeout=60)


@pytest.mark.embedded
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer guessed"}])
def test_a_worker_answers_only_with_its_key(worker: Worker, headers: dict[str, str]) -> None:
    methods = [*(("GET", path) for path in PATHS), *(("POST", path) for path in POSTS)]
    statuses = {path: send(worker, method, path, **headers).status_code for method, path in methods}
    assert set(statuses.values()) == {401}, statuses
    key = {"Authorization": f"Bearer {worker.server.api_key}"}
    assert send(worker, "GET", "/v1/models", **key).status_code == 200
    assert send(worker, "POST", "/tokenize", **key).status_code == 200


@pytest.mark.embedded
def test_a_worker_names_no_origin_that_may_read_it(worker: Worker) -> None:
    for headers in ({}, {"Authorization": f"Bearer {worker.server.api_key}"}):
        for origin in ("https://evil.example", "null"):
            response = send(worker, "GET", "/v1/models", Origin=origin, **headers)
            assert response.headers.get("Access-Control-Allow-Origin", "") == ""


@pytest.mark.embedded
def test_a_worker_listens_on_loopback_with_a_key_of_its_own(worker: Worker, user: Any) -> None:
    user.load("tiny")
    [(_, _, other)] = user.engine.registry.loaded()
    assert worker.server.url.startswith("http://127.0.0.1:")
    assert len(worker.server.api_key or "") >= 32
    assert worker.server.api_key != other.server.api_key
    assert worker.server.api_key not in str(worker.server)
