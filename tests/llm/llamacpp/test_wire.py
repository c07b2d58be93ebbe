"""What a request means, checked without a server."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from image_refinery.llm.llamacpp.engine import default_keep_alive_s
from image_refinery.llm.llamacpp.process import Worker
from image_refinery.llm.llamacpp.wire import (
    ApiError,
    LoadOptions,
    parse_chat,
    parse_keep_alive,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        (-1, math.inf),
        (-0.5, math.inf),
        ("0", 0.0),
        ("0s", 0.0),
        ("5m", 300.0),
        ("1h15m30s", 4530.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("300ms", 0.3),
        ("2us", 2e-6),
        ("+5s", 5.0),
        ("-1s", math.inf),
    ],
)
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert parse_keep_alive(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["-1", "300", "", "5 m", "m", "5x", "1h-5m", [], True, math.nan])
def test_keep_alive_that_go_would_refuse(value: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse_keep_alive(value)
    assert caught.value.status == 400


@settings(deadline=None)
@given(strategies.one_of(strategies.integers(), strategies.floats(), strategies.text()))
def test_any_keep_alive_gives_seconds_or_a_400(value: Any) -> None:
    try:
        seconds = parse_keep_alive(value)
    except ApiError as error:
        assert error.status == 400
    else:
        assert seconds is not None and seconds >= 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 300), ("10m", 600), ("60", 60), ("-1", math.inf), ("nonsense", 300)]
)
def test_keep_alive_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", text)
    assert default_keep_alive_s() == seconds


def sampling(**options: Any) -> dict[str, Any]:
    return parse_chat({"model": "m", "options": options}).sampling


def test_the_defaults_are_ollamas() -> None:
    assert sampling() == {
        "max_tokens": -1,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": -1,
    }


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("num_predict", "max_tokens"),
        ("top_k", "top_k"),
        ("seed", "seed"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("repeat_penalty", "repeat_penalty"),
        ("presence_penalty", "presence_penalty"),
        ("frequency_penalty", "frequency_penalty"),
    ],
)
def test_every_option_reaches_llama_cpp(name: str, field: str) -> None:
    assert sampling(**{name: 2})[field] == 2


@pytest.mark.parametrize("seed", [-5, -1])
def test_negative_seeds_are_random(seed: int) -> None:
    assert sampling(seed=seed)["seed"] == -1


@settings(deadline=None)
@given(strategies.integers(min_value=0, max_value=2**64 - 1))
def test_seeds_stay_within_llama_cpps_range(seed: int) -> None:
    folded = sampling(seed=seed)["seed"]
    assert 0 <= folded < 2**32 - 1
    assert folded == seed or seed >= 2**32 - 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_ctx": "4096"}, 'option "num_ctx" must be of type integer'),
        ({"top_k": 1.5}, 'option "top_k" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"temperature": math.nan}, 'option "temperature" must be of type float32'),
        ({"stop": [1]}, 'option "stop" must be of type array'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"num_ctx": 3}, 'option "num_ctx" must be at least 4'),
    ],
)
def test_options_of_the_wrong_kind(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ApiError, match=text):
        parse_chat({"model": "m", "options": options})


def test_options_of_loading() -> None:
    options = {
        "num_ctx": 8192.0,
        "num_gpu": -1,
        "num_thread": 0,
        "num_batch": 64,
        "use_mmap": False,
    }
    request = parse_chat({"model": "m", "options": options})
    assert request.load == LoadOptions(num_ctx=8192, num_batch=64, use_mmap=False)
    assert request.unknown_options == ()


def test_unknown_options_are_named() -> None:
    request = parse_chat({"model": "m", "options": {"mirostat": 2, "seed": 1, "f16_kv": True}})
    assert request.unknown_options == ("f16_kv", "mirostat")


def test_streaming_is_the_default() -> None:
    assert parse_chat({"model": "m"}).stream
    assert parse_chat({"model": "m", "stream": None}).stream
    assert not parse_chat({"model": "m", "stream": False}).stream


@pytest.mark.parametrize(
    "body",
    [
        {"model": 5},
        {"model": "m", "stream": "no"},
        {"model": "m", "options": []},
        {"model": "m", "options": 3},
        {"model": "m", "messages": [5]},
        {"model": "m", "messages": [{"role": "user", "content": 5}]},
        {"model": "m", "messages": [{"role": "user", "images": "x"}]},
        {"model": "m", "messages": {}},
        {"model": "m", "keep_alive": {}},
    ],
)
def test_malformed_requests_are_400(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(body)
    assert caught.value.status == 400


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
    ],
)
def test_the_reason_of_a_failed_load_is_the_most_telling_line(
    lines: list[str], reason: str
) -> None:
    worker = Worker.__new__(Worker)
    worker._log, worker._killed = deque(lines), False
    worker._process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    worker._process.wait()
    assert worker._reason() == reason


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
