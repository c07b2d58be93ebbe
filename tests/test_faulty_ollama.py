"""The scripted Ollama itself: does it do what tests of the client will rely on?"""

from __future__ import annotations

import base64
import importlib.util
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

PATH = Path(__file__).resolve().parent / "faulty_ollama.py"
if "faulty_ollama" not in sys.modules:
    spec = importlib.util.spec_from_file_location("faulty_ollama", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faulty_ollama"] = module
    spec.loader.exec_module(module)

from faulty_ollama import (  # noqa: E402 - loaded by path just above
    FAULTS,
    GB,
    FaultyOllama,
    RecordedRequest,
    Reply,
    cloud_model,
    image_size,
    parse_keep_alive,
    text_model,
    thinking_model,
    vision_model,
)

HELLO = [{"role": "user", "content": "hello there"}]
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + b"\x08\x02\0\0\0"


@pytest.fixture
def server() -> Iterator[FaultyOllama]:
    with FaultyOllama() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def chat(server: FaultyOllama, model: str = "llama3.2", **fields: Any) -> requests.Response:
    body = {"model": model, "messages": HELLO, **fields}
    return requests.post(f"{server.url}/api/chat", json=body, timeout=10)


def lines(response: requests.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.content.split(b"\n") if line]


def text(response: requests.Response) -> str:
    return "".join(line["message"]["content"] for line in lines(response))


@contextmanager
def raw_chat(server: FaultyOllama, model: str = "llama3.2") -> Iterator[socket.socket]:
    body = json.dumps({"model": model, "messages": HELLO}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as sock:
        head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        yield sock


def test_a_plain_chat_streams_tokens_and_ends_with_counts(server: FaultyOllama) -> None:
    response = chat(server)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    *tokens, done = lines(response)
    assert text(response) == "A crimson disc floats on snow."
    assert len(tokens) == 6 and not any(token["done"] for token in tokens)
    assert done["done_reason"] == "stop"
    assert done["eval_count"] == 6 and done["prompt_eval_count"] == 2
    assert done["total_duration"] > 0


def test_without_streaming_one_object_comes(server: FaultyOllama) -> None:
    answer = chat(server, stream=False).json()
    assert answer["message"]["content"] == "A crimson disc floats on snow." and answer["done"]


def test_generate_answers_in_its_own_form(server: FaultyOllama) -> None:
    body = {"model": "llama3.2", "prompt": "hello"}
    response = requests.post(f"{server.url}/api/generate", json=body, timeout=10)
    assert "".join(line["response"] for line in lines(response)).startswith("A crimson")


def test_requests_are_recorded_with_headers_times_and_images(server: FaultyOllama) -> None:
    image = base64.b64encode(PNG).decode()
    chat(server, "llava", messages=[{"role": "user", "content": "what?", "images": [image]}])
    record = server.of("chat")[0]
    # The client has its answer a moment before the server notes that it is done.
    assert server.wait_until(lambda: record.ended is not None)
    assert record.method == "POST" and record.path == "/api/chat"
    assert record.headers["content-type"] == "application/json"
    assert record.images == [PNG] and record.image_sizes == [(640, 480)]
    assert record.body["model"] == "llava" and record.status == 200
    assert record.first_byte is not None and record.ended is not None
    assert record.started <= record.first_byte <= record.ended
    assert not record.client_closed and record.tokens_sent == 7


def test_a_jpeg_has_its_size_read() -> None:
    start = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08"
    assert image_size(start + struct.pack(">HH", 480, 640) + bytes(12)) == (640, 480)
    assert image_size(b"GIF89a") is None


@pytest.mark.parametrize(
    ("version", "tags", "show", "ps"),
    [
        ("0.6.0", False, False, False),
        ("0.6.4", False, True, False),
        ("0.12.0", False, True, True),
        ("0.20.0", False, True, True),
        ("0.33.0-rc2", True, True, True),
    ],
)
def test_fields_come_and_go_with_the_release(
    version: str, tags: bool, show: bool, ps: bool
) -> None:
    with FaultyOllama(version=version) as server:
        chat(server)
        listed = requests.get(f"{server.url}/api/tags", timeout=5).json()["models"][0]
        body = {"model": "llava"}
        shown = requests.post(f"{server.url}/api/show", json=body, timeout=5).json()
        running = requests.get(f"{server.url}/api/ps", timeout=5).json()["models"][0]
        assert ("capabilities" in listed) is tags
        assert shown.get("capabilities") == (["completion", "vision"] if show else None)
        assert running.get("context_length") == (4096 if ps else None)
        assert running["size"] == running["size_vram"] == 4 * GB
        answer = requests.get(f"{server.url}/api/version", timeout=5).json()
        assert answer == {"version": version}


def test_the_root_answers_get_and_head(server: FaultyOllama) -> None:
    assert requests.get(server.url, timeout=5).text == "Ollama is running"
    head = requests.head(server.url, timeout=5)
    assert head.status_code == 200 and head.text == ""
    assert requests.get(f"{server.url}/nothing", timeout=5).status_code == 404


def test_loads_and_unloads_are_counted_and_confirmed_by_ps(
    server: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute, which no pause of the machine can pass for; at its end the clock is put forward.
    server.models["llava:latest"] = vision_model(unload_s=60.0)
    load = {"model": "llava", "keep_alive": "5m"}
    unload = {"model": "llava", "keep_alive": 0}
    first = requests.post(f"{server.url}/api/generate", json=load, timeout=5).json()
    assert first["done_reason"] == "load" and server.loaded == ["llava:latest"]
    chat(server, "llava")
    begun = time.monotonic()
    last = requests.post(f"{server.url}/api/generate", json=unload, timeout=5).json()
    assert last["done_reason"] == "unload" and time.monotonic() - begun < 30
    assert server.loaded == ["llava:latest"] and server.unloads == {}
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60, sleep=time.sleep)
    monkeypatch.setattr("faulty_ollama.time", later)
    assert server.loaded == []
    assert server.loads == {"llava:latest": 1} and server.unloads == {"llava:latest": 1}
    assert [request.kind for request in server.requests] == ["load", "chat", "unload"]


def test_unload_of_an_idle_model_is_fine_and_of_an_unknown_one_is_404(server: FaultyOllama) -> None:
    for model, status in (("llava", 200), ("nothing", 404)):
        body = {"model": model, "messages": [], "keep_alive": 0}
        assert requests.post(f"{server.url}/api/chat", json=body, timeout=5).status_code == status
    assert server.unloads == {}


def test_keep_alive_zero_unloads_after_the_answer(server: FaultyOllama) -> None:
    chat(server, keep_alive=0)
    assert server.wait_until(lambda: server.unloads == {"llama3.2:latest": 1})


def test_keep_alive_runs_out(server: FaultyOllama) -> None:
    chat(server, keep_alive="700ms")
    assert server.wait_until(lambda: server.loaded == [])
    # By its books: a look at `loaded` before could come too late.
    load, unload = server.events
    assert (load.what, unload.what) == ("load", "unload")
    assert unload.at - load.at >= 0.7
    chat(server, keep_alive=-1)
    expires = requests.get(f"{server.url}/api/ps", timeout=5).json()["models"][0]["expires_at"]
    assert int(expires[:4]) > 2100


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), (7, 7.0), ("5m", 300.0), ("1h30m", 5400.0), ("0", 0.0)]
)
def test_keep_alive_is_parsed_as_go_does(value: Any, seconds: float | None) -> None:
    assert parse_keep_alive(value) == seconds


def test_keep_alive_without_a_unit_is_refused(server: FaultyOllama) -> None:
    response = chat(server, keep_alive="-1")
    assert response.status_code == 400
    assert response.json() == {"error": 'time: missing unit in duration "-1"'}


def test_another_num_ctx_reloads(server: FaultyOllama) -> None:
    for num_ctx in (4096, 4096, 8192):
        chat(server, options={"num_ctx": num_ctx})
    assert server.loads == {"llama3.2:latest": 2} and server.unloads == {"llama3.2:latest": 1}


def test_a_full_gpu_evicts_the_oldest_idle_model_and_then_spills() -> None:
    def ask(model: str) -> None:
        """Chat, and wait until the server has put the model down: only then it is idle."""
        chat(server, model)
        running = server._residents.values()
        assert server.wait_until(lambda: not any(entry.running for entry in running), 20)

    models = [text_model("a", size=6 * GB), text_model("b", size=6 * GB), text_model("c", size=GB)]
    with FaultyOllama(models, vram_bytes=8 * GB) as server:
        ask("a")
        ask("b")
        assert server.loaded == ["b:latest"] and server.unloads == {"a:latest": 1}
        ask("c")
        assert server.free_vram_bytes == GB
        server.models["big:latest"] = text_model("big", size=20 * GB)
        ask("big")
        running = requests.get(f"{server.url}/api/ps", timeout=5).json()["models"]
        assert [(entry["name"], entry["size_vram"]) for entry in running] == [
            ("big:latest", 8 * GB)
        ]


def test_requests_for_one_model_queue_up_as_far_as_parallel_says() -> None:
    with FaultyOllama([text_model("a")], parallel=1) as server:
        server.always("chat", Reply(prompt_s=0.1))
        threads = [threading.Thread(target=chat, args=(server, "a")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.peak_running == {"a:latest": 1} and server.loads == {"a:latest": 1}


def test_a_full_queue_is_busy() -> None:
    with FaultyOllama(max_queue=0) as server:
        response = chat(server)
        assert response.status_code == 503 and response.json()["error"].startswith("server busy")


@pytest.mark.parametrize(
    ("version", "think", "where"),
    [
        ("0.6.0", None, "inline"),
        ("0.12.0", None, "inline"),
        ("0.12.0", True, "apart"),
        ("0.33.0", None, "apart"),
        ("0.33.0", False, "none"),
        ("0.33.0", "low", "apart"),
    ],
)
def test_thinking_goes_where_the_release_puts_it(version: str, think: Any, where: str) -> None:
    model = thinking_model("m", answer="Yes.", thinking="Hm.")
    with FaultyOllama([model], version=version) as server:
        response = chat(server, "m", **({} if think is None else {"think": think}))
        thinking = "".join(line["message"].get("thinking", "") for line in lines(response))
        assert thinking == ("Hm." if where == "apart" else "")
        assert text(response) == ("<think>Hm.</think>\n\nYes." if where == "inline" else "Yes.")


@pytest.mark.parametrize(
    ("version", "fields", "status", "error"),
    [
        ("0.33.0", {"think": True}, 400, '"llama3.2" does not support thinking'),
        (
            "0.9.6",
            {"think": True},
            400,
            "registry.ollama.ai/library/llama3.2 does not support thinking",
        ),
        ("0.33.0", {"model": "gone"}, 404, "model 'gone' not found"),
        ("0.6.0", {"model": "gone"}, 404, 'model "gone" not found, try pulling it first'),
        ("0.33.0", {"model": ""}, 400, "model is required"),
        ("0.33.0", {"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ("0.33.0", {"options": {"num_ctx": "x"}}, 500, 'option "num_ctx" must be of type integer'),
        (
            "0.33.0",
            {
                "messages": [
                    {"role": "user", "content": "x", "images": ["data:image/png;base64,AA"]}
                ]
            },
            400,
            "illegal base64 data at input byte 4",
        ),
        (
            "0.33.0",
            {"format": "xml"},
            500,
            'invalid format: "xml"; expected "json" or a valid JSON Schema object',
        ),
    ],
)
def test_wrong_requests_get_the_release_s_own_words(
    version: str, fields: dict[str, Any], status: int, error: str
) -> None:
    with FaultyOllama(version=version) as server:
        response = chat(server, **fields)
        assert (response.status_code, response.json()) == (status, {"error": error})


def test_think_false_is_never_an_error(server: FaultyOllama) -> None:
    assert chat(server, think=False).status_code == 200


def test_num_predict_ends_with_length_and_counts_thinking() -> None:
    with FaultyOllama([thinking_model("m", answer="a b c", thinking="x y")]) as server:
        response = chat(server, "m", options={"num_predict": 3})
        assert text(response) == "a" and lines(response)[-1]["done_reason"] == "length"
        response = chat(server, "m", options={"num_predict": 2})
        assert text(response) == "" and lines(response)[-1]["eval_count"] == 2


def test_a_foreign_host_header_is_403_without_a_body(server: FaultyOllama) -> None:
    headers = {"Host": "example.com"}
    response = requests.get(f"{server.url}/api/tags", headers=headers, timeout=5)
    assert response.status_code == 403 and response.content == b""


def test_a_key_is_asked_for() -> None:
    with FaultyOllama(api_key="secret") as server:
        assert chat(server).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        assert requests.get(f"{server.url}/api/tags", headers=headers, timeout=5).ok


def test_cloud_models_are_never_loaded_and_want_a_sign_in() -> None:
    with FaultyOllama([cloud_model("big:cloud")]) as server:
        entry = requests.get(f"{server.url}/api/tags", timeout=5).json()["models"][0]
        assert entry["remote_host"] == "https://ollama.com:443"
        assert chat(server, "big:cloud").status_code == 200
        assert server.loads == {} and server.loaded == []
        server.signed_in = False
        response = chat(server, "big:cloud")
        assert response.status_code == 401 and "signin_url" in response.json()


def test_pull_reports_progress_or_an_error_line() -> None:
    with FaultyOllama([], pullable=[vision_model("llava")]) as server:
        url = f"{server.url}/api/pull"
        good = lines(requests.post(url, json={"model": "llava"}, timeout=5))
        assert good[0] == {"status": "pulling manifest"} and good[-1] == {"status": "success"}
        assert max(line.get("completed", 0) for line in good) == 4 * GB
        assert "llava:latest" in server.models
        bad = lines(requests.post(url, json={"model": "nothing"}, timeout=5))
        assert bad[-1] == {"error": "pull model manifest: file does not exist"}


Reached = Callable[[FaultyOllama, RecordedRequest], bool]


def is_loading(server: FaultyOllama, _: RecordedRequest) -> bool:
    return server._loading is not None


def is_loaded(server: FaultyOllama, _: RecordedRequest) -> bool:
    return server.loads == {"llama3.2:latest": 1}


def streams(_: FaultyOllama, record: RecordedRequest) -> bool:
    return record.tokens_sent >= 2


@pytest.mark.parametrize(
    ("model", "reply", "reached"),
    [
        (text_model(load_s=30), Reply(), is_loading),
        (text_model(), Reply(prompt_s=30), is_loaded),
        (text_model(), Reply(token_s=30), is_loaded),
        (text_model(), "hang", is_loaded),
        (text_model(), "hang_mid_line", streams),
        (text_model(), Reply(tokens=("a",) * 1000, token_s=0.02), streams),
    ],
    ids=["load", "prompt", "token", "hang", "mid-line", "between tokens"],
)
def test_a_closed_connection_is_noticed_at_once(model: Any, reply: Any, reached: Reached) -> None:
    with FaultyOllama([model]) as server:
        server.script("chat", reply)
        with raw_chat(server):
            record = server.wait_for("chat")
            assert server.wait_until(lambda: reached(server, record))
            time.sleep(0.1)  # in which a client that is still there must not be taken for gone
            assert not record.client_closed
            closed = time.monotonic()
        assert server.wait_until(lambda: record.ended is not None, 20)
        assert record.client_closed and record.closed_at is not None
        assert record.closed_at - closed < 5
        assert server.aborted_loads == ({"llama3.2:latest": 1} if model.load_s else {})
        assert server.loads == ({} if model.load_s else {"llama3.2:latest": 1})
        server.models["llama3.2:latest"] = text_model()
        assert chat(server).status_code == 200  # and nobody holds the model any more


def test_a_client_that_waits_in_the_queue_may_leave() -> None:
    with FaultyOllama() as server:
        server.script("chat", "hang")
        with raw_chat(server):
            server.wait_for("chat")
            assert server.wait_until(lambda: server.loads != {} and server._pending == 0)
            with raw_chat(server):
                second = server.wait_for("chat", 2)
                assert server.wait_until(lambda: server._pending == 1)
            assert server.wait_until(lambda: second.client_closed, 20)


def test_an_unload_that_never_shows() -> None:
    with FaultyOllama([text_model(never_unloads=True)]) as server:
        chat(server, keep_alive=0)
        body = {"model": "llama3.2", "keep_alive": 0}
        assert requests.post(f"{server.url}/api/generate", json=body, timeout=5).ok
        assert server.loaded == ["llama3.2:latest"] and server.unloads == {}


def test_a_model_that_vanished_is_listed_and_not_found() -> None:
    with FaultyOllama([text_model(vanished=True)]) as server:
        assert requests.get(f"{server.url}/api/tags", timeout=5).json()["models"]
        assert chat(server).status_code == 404


def test_busy_and_then_good(server: FaultyOllama) -> None:
    server.script("chat", "busy", "busy", Reply(text="At last."))
    assert [chat(server).status_code for _ in range(2)] == [503, 503]
    assert text(chat(server)) == "At last."
    assert text(chat(server)) == "A crimson disc floats on snow."


def test_a_script_may_hold_for_one_model_and_ask_the_request(server: FaultyOllama) -> None:
    server.always("chat", lambda record: Reply(text=record.model.upper()), model="llava")
    server.script("chat", "busy", model="llama3.2")
    assert text(chat(server, "llava")) == "LLAVA"
    assert chat(server, "llama3.2").status_code == 503
    server.forget_script()
    assert text(chat(server, "llava")).startswith("A red circle")


def test_an_unknown_fault_is_refused_where_it_is_written(server: FaultyOllama) -> None:
    with pytest.raises(KeyError, match="no fault is called 'bussy'"):
        server.script("chat", "bussy")


def test_a_refused_connection_and_back_again(server: FaultyOllama) -> None:
    session = requests.Session()
    url = f"{server.url}/api/version"
    with session:
        assert session.get(url, timeout=5).ok
        with server.refusing(), pytest.raises(requests.ConnectionError):
            session.get(url, timeout=5)
        assert session.get(url, timeout=5).ok


STATUS_FAULTS = {name: reply for name, reply in FAULTS.items() if reply.status >= 400}


@pytest.mark.parametrize("name", STATUS_FAULTS)
def test_status_faults(server: FaultyOllama, name: str) -> None:
    reply = STATUS_FAULTS[name]
    server.script("chat", name)
    response = chat(server)
    assert response.status_code == reply.status and server.loads == {}
    if reply.error is not None:
        assert response.json() == {"error": reply.error, **reply.error_fields}
    elif reply.body is None:
        assert response.content == b""
    else:
        assert response.content.startswith(b"<html>")


@pytest.mark.parametrize("name", ["drop", "reset"])
def test_connections_that_end_without_an_answer(server: FaultyOllama, name: str) -> None:
    server.script("chat", name)
    with pytest.raises(requests.ConnectionError):
        chat(server)


@pytest.mark.parametrize("name", ["cut_mid_stream", "reset_mid_stream"])
def test_streams_that_break(server: FaultyOllama, name: str) -> None:
    server.script("chat", name)
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)):
        chat(server)
    assert not server.of("chat")[0].client_closed


@pytest.mark.parametrize("kind", ["tags", "ps", "show", "version"])
def test_small_answers_can_break_too(server: FaultyOllama, kind: Any) -> None:
    server.script(kind, "cut_mid_stream", "not_json", "wrong_body")
    body = {"model": "llava"} if kind == "show" else None
    method = "POST" if kind == "show" else "GET"
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.request(method, f"{server.url}/api/{kind}", json=body, timeout=5)
    answer = requests.request(method, f"{server.url}/api/{kind}", json=body, timeout=5)
    assert answer.content == b"this is not JSON"
    answer = requests.request(method, f"{server.url}/api/{kind}", json=body, timeout=5)
    assert answer.json()["models"][0] == 7


def test_streams_that_end_wrongly(server: FaultyOllama) -> None:
    def ends(name: str) -> list[dict[str, Any]]:
        server.script("chat", name)
        return lines(chat(server))

    assert ends("error_line")[-1] == {"error": "an error was encountered while running"}
    assert not any(line["done"] for line in ends("no_done"))
    assert ends("no_line") == []
    assert "eval_count" not in ends("no_counts")[-1]
    assert "done_reason" not in ends("no_done_reason")[-1]
    empty = ends("empty_length")
    assert len(empty) == 1 and empty[0]["done_reason"] == "length"
    thinking = ends("thinking_only")
    assert all(line["message"]["content"] == "" for line in thinking)
    assert thinking[0]["message"]["thinking"] == "Well,"


@pytest.mark.parametrize("name", ["error_line", "no_done", "half_utf8", "no_line"])
def test_a_stream_that_ends_wrongly_leaves_the_connection_open(
    server: FaultyOllama, name: str
) -> None:
    server.script("chat", name)
    with requests.Session() as session:
        for _ in range(2):
            body = {"model": "llama3.2", "messages": [{"role": "user", "content": "Hello"}]}
            assert session.post(f"{server.url}/api/chat", json=body, timeout=5).status_code == 200
    assert {request.connection for request in server.of("chat")} == {1}


def test_bytes_that_are_hard_to_read(server: FaultyOllama) -> None:
    server.script("chat", "half_utf8", "line_separators", "one_byte", "gzip")
    with pytest.raises(UnicodeDecodeError):
        chat(server).content.decode()
    assert "one\u0085two three\u2028four\u2029".encode() in text(chat(server)).encode()
    assert text(chat(server)) == "A crimson disc floats on snow."
    packed = chat(server)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert text(packed) == "A crimson disc floats on snow."


def test_a_line_of_twenty_megabytes(server: FaultyOllama) -> None:
    server.script("chat", "big_line", "endless_line")
    assert len(chat(server).content) >= 20_000_000
    assert b"\n" not in chat(server).content


def test_it_runs_as_a_process_with_a_script_file(tmp_path: Path) -> None:
    script = {
        "version": "0.20.0",
        "models": [{"name": "m", "capabilities": ["completion"], "answer": "Hi."}],
        "script": {"chat": ["busy", {"text": "From the file."}]},
    }
    path = tmp_path / "script.json"
    path.write_text(json.dumps(script), "utf-8")
    command = [sys.executable, str(PATH), "--port", "0", "--script", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        body = {"model": "m", "messages": HELLO}
        answers = [requests.post(f"{url}/api/chat", json=body, timeout=5) for _ in range(3)]
        process.terminate()
    assert answers[0].status_code == 503
    assert [text(answer) for answer in answers[1:]] == ["From the file.", "Hi."]
