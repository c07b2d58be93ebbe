"""Loading, unloading and cancelling: what runs, what /api/ps says, and what is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from image_refinery.llm.llamacpp import EmbeddedServer, Library, engine, process

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).resolve().parents[3]
SOON_S = 10.0
"""How late "at once" may be on a busy machine; the work that is stopped would take far longer."""
LONG = {"num_predict": 15000, "num_ctx": 16384}
"""Options of an answer without end: in a shorter context it would end by itself before that."""


def expires_in_s(entry: dict[str, Any]) -> float:
    when = datetime.fromisoformat(entry["expires_at"].replace("Z", "+00:00"))
    return (when - datetime.now(timezone.utc)) / timedelta(seconds=1)


def only_pid(api: Any) -> int:
    (pid,) = api.server.worker_pids()
    return pid


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_load_and_unload_by_empty_requests(api: Any, until: Any, runs: Any, path: str) -> None:
    loaded = api.post(path, {"model": "tiny", "keep_alive": "5m", "stream": False}).json()
    assert (loaded["done"], loaded["done_reason"]) == (True, "load")
    entry = api.ps()["tiny:latest"]
    assert entry["size"] > 383_000  # the weights alone
    assert entry["size_vram"] == 0 or entry["size_vram"] <= entry["size"]
    assert entry["context_length"] == 4096
    pid = only_pid(api)
    assert runs(pid)
    unloaded = api.post(path, {"model": "tiny", "keep_alive": 0}).json()
    assert (unloaded["done"], unloaded["done_reason"]) == (True, "unload")
    until(lambda: not api.ps(), "gone from /api/ps")
    assert not runs(pid)


def test_unloading_what_is_not_loaded_is_fine(api: Any) -> None:
    answer = api.post("/api/chat", {"model": "tiny", "messages": [], "keep_alive": 0}).json()
    assert answer["done_reason"] == "unload"
    assert api.ps() == {}


def test_a_second_request_uses_the_loaded_model(api: Any) -> None:
    api.load("tiny")
    pid = only_pid(api)
    api.say("tiny")
    assert only_pid(api) == pid


def test_keep_alive_zero_unloads_after_the_answer(api: Any, until: Any) -> None:
    assert api.say("tiny", keep_alive=0)
    until(lambda: not api.ps(), "unloaded")


def test_keep_alive_expires(api: Any, until: Any, runs: Any) -> None:
    api.say("tiny", keep_alive="5s")
    pid = only_pid(api)
    assert 0 <= expires_in_s(api.ps()["tiny:latest"]) <= 5
    api.say("tiny", keep_alive="300ms")  # too short to be looked at on a slow machine
    until(lambda: not api.ps(), "expired")
    assert not runs(pid)


def test_keep_alive_rules(api: Any) -> None:
    api.say("tiny")
    assert 290 < expires_in_s(api.ps()["tiny:latest"]) <= 300
    api.say("tiny", keep_alive="1h")
    api.say("tiny")  # says nothing: as before
    assert 3500 < expires_in_s(api.ps()["tiny:latest"]) <= 3600
    api.say("tiny", keep_alive=-1)
    assert expires_in_s(api.ps()["tiny:latest"]) > 100 * 365 * 86400


def test_the_environment_sets_the_default_lifetime(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "10m")
    api.say("tiny")
    assert 590 < expires_in_s(api.ps()["tiny:latest"]) <= 600


def test_another_context_length_loads_anew(api: Any, runs: Any) -> None:
    api.load("tiny", options={"num_ctx": 512})
    first = only_pid(api)
    assert api.ps()["tiny:latest"]["context_length"] == 512
    api.say("tiny", options={"num_ctx": 1024})
    assert only_pid(api) != first
    assert not runs(first)
    assert api.ps()["tiny:latest"]["context_length"] == 1024


def test_the_context_is_never_longer_than_the_model_and_long_enough_to_see(api: Any) -> None:
    api.load("tiny", options={"num_ctx": 100_000})
    assert api.ps()["tiny:latest"]["context_length"] == 4096
    api.load("tiny-vision", options={"num_ctx": 256})
    assert api.ps()["tiny-vision:latest"]["context_length"] == 2048


def test_the_longest_idle_model_makes_room(api: Any) -> None:
    for name in ("tiny", "tiny-vision", "thinker"):
        api.load(name)
    api.say("tiny")
    api.load("slow")
    assert set(api.ps()) == {"tiny:latest", "thinker:latest", "slow:latest"}


def test_damaged_weights_give_llama_cpps_reason(api: Any) -> None:
    response = api.post("/api/chat", api.body("cut"))
    assert response.status_code == 500
    error = response.json()["error"]
    assert error.startswith("failed to load model 'cut:latest': tensor '")
    assert error.endswith("data is not within the file bounds, model is corrupted or incomplete")
    assert api.ps() == {}
    assert api.say("tiny")


def test_a_crash_between_answers_is_healed(api: Any, until: Any) -> None:
    api.load("tiny")
    os.kill(only_pid(api), signal.SIGTERM)
    until(lambda: not api.ps(), "noticed")
    assert api.say("tiny")


def test_a_crash_within_an_answer_is_an_error_line(api: Any) -> None:
    body = api.body("slow", options={"num_predict": 5000})
    lines = []
    with api.post("/api/chat", body, stream=True) as response:
        for line in response.iter_lines():
            lines.append(json.loads(line))
            if len(lines) == 3:
                os.kill(only_pid(api), signal.SIGTERM)
    assert lines[0]["done"] is False
    assert list(lines[-1]) == ["error"]
    assert "llama.cpp has stopped" in lines[-1]["error"]
    assert api.say("tiny")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_process_that_the_system_kills_was_too_large(api: Any) -> None:
    with api.post("/api/chat", api.body("slow", options={"num_predict": 5000}), stream=True) as r:
        lines = r.iter_lines()
        next(lines)
        os.kill(only_pid(api), signal.SIGKILL)  # as Linux does when memory runs out
        assert "out of memory" in json.loads(list(lines)[-1])["error"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system has no SIGSTOP")
def test_a_client_that_leaves_ends_the_load(
    api: Any, until: Any, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A load that takes for ever. Stopped from here, a quick load could have ended before.
    endless = tmp_path / "worker.py"
    endless.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    with monkeypatch.context() as patch:
        patch.setattr(process, "_WORKER", endless)
        connection = api.raw("/api/chat", api.body("slow"))
        (pid,) = until(api.server.worker_pids, "loading")
    time.sleep(0.1)
    assert "slow:latest" in api.ps()
    connection.close()
    until(lambda: not runs(pid), "the process ended", SOON_S)
    until(lambda: not api.ps(), "gone from /api/ps", SOON_S)
    assert api.say("tiny")


def test_a_client_that_leaves_stops_the_work_on_its_prompt(api: Any, until: Any, runs: Any) -> None:
    api.load("slow", options={"num_ctx": 16384})
    pid = only_pid(api)
    body = api.body("slow", "long " * 3200, options={"num_ctx": 16384})
    connection = api.raw("/api/chat", body)
    time.sleep(0.5)
    connection.setblocking(False)
    with pytest.raises(BlockingIOError):  # no token yet: the prompt is still worked on
        connection.recv(1)
    connection.close()
    until(lambda: not runs(pid), "the work ended", SOON_S)
    assert api.say("tiny")


def test_a_client_that_leaves_ends_the_stream_and_the_model_stays(api: Any, until: Any) -> None:
    connection = api.raw("/api/chat", api.body("slow", options=LONG))
    assert b'"done": false' in until(lambda: connection.recv(4096), "streaming") + connection.recv(
        4096
    )
    pid = only_pid(api)
    connection.close()
    started = time.monotonic()
    assert api.say("slow", options={"num_ctx": 16384})
    assert time.monotonic() - started < SOON_S
    assert only_pid(api) == pid


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see CPU time")
def test_nothing_computes_after_a_client_has_left(api: Any, until: Any) -> None:
    connection = api.raw("/api/chat", api.body("slow", options=LONG))
    connection.recv(4096)
    pid = only_pid(api)
    connection.close()

    def ticks() -> int:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return int(user) + int(system)

    def quiet() -> bool:
        before = ticks()
        time.sleep(0.3)
        return ticks() - before <= 1

    until(quiet, "llama.cpp is idle", SOON_S)


def test_a_client_that_leaves_the_queue_is_forgotten(api: Any) -> None:
    busy = api.raw("/api/chat", api.body("slow", options=LONG))
    busy.recv(4096)
    waiting = api.raw("/api/chat", api.body("slow", options=LONG))
    time.sleep(0.1)
    waiting.close()
    busy.close()
    started = time.monotonic()
    assert api.say("slow", options={"num_ctx": 16384})
    assert time.monotonic() - started < SOON_S


def test_a_full_queue_says_busy(api: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LONGEST_QUEUE", 1)
    api.raw("/api/chat", api.body("slow", options=LONG)).recv(4096)
    api.raw("/api/chat", api.body("slow"))
    until(lambda: api.server._http.engine._waiting, "one request waits")
    response = api.post("/api/chat", api.body("slow"))
    assert response.status_code == 503
    assert response.json() == {
        "error": "server busy, please try again.  maximum pending requests exceeded"
    }


def test_an_unload_waits_for_the_running_answer(api: Any, until: Any) -> None:
    body = api.body("slow", options={"num_predict": 60})
    with api.post("/api/chat", body, stream=True) as response:
        lines = response.iter_lines()
        next(lines)
        assert api.load("slow", keep_alive=0)["done_reason"] == "unload"
        assert json.loads(list(lines)[-1])["eval_count"] == 60
    until(lambda: not api.ps(), "unloaded")


def test_two_requests_for_one_model_wait_for_each_other(api: Any, make_api: Any) -> None:
    options = {"temperature": 0, "num_predict": 20}
    expected = api.say("tiny", options=options)
    answers: list[str] = []

    def ask(client: Any) -> None:
        answers.append(client.say("tiny", options=options))

    clients = [make_api(api.server) for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4
    assert len(api.server.worker_pids()) == 1


def test_close_ends_everything_even_in_the_middle(models: Path, runs: Any, make_api: Any) -> None:
    threads = threading.active_count()
    server = EmbeddedServer(Library([models]))
    api = make_api(server)
    api.load("tiny")
    connection = api.raw("/api/chat", api.body("slow", options=LONG))
    connection.recv(4096)
    pids = server.worker_pids()
    assert len(pids) == 2
    started = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - started < SOON_S
    assert not any(runs(pid) for pid in pids)
    with pytest.raises(OSError):
        api.raw("/api/version", {}).recv(1)
    end = time.monotonic() + SOON_S
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= threads


PARENT = """
    import importlib.util, sys
    from pathlib import Path
    root, models, phase = sys.argv[1:]
    spec = importlib.util.spec_from_file_location(
        "image_refinery", Path(root, "__init__.py"), submodule_search_locations=[root])
    package = importlib.util.module_from_spec(spec)
    sys.modules["image_refinery"] = package
    spec.loader.exec_module(package)
    from image_refinery.llm.llamacpp import EmbeddedServer, Library, engine
    assert "xllamacpp" not in sys.modules
    import requests, threading, time
    server = EmbeddedServer(Library([Path(models)]))
    chat = {"model": "slow", "messages": []}
    load = threading.Thread(target=requests.post, args=(server.url + "/api/chat",),
                            kwargs={"json": chat}, daemon=True)
    load.start()
    if phase == "loaded":
        load.join()
    while not server.worker_pids():
        time.sleep(0.001)
    print(*server.worker_pids(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("phase", ["loading", "loaded"])
def test_no_process_outlives_a_killed_parent(
    models: Path, until: Any, runs: Any, phase: str
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(ROOT), str(models), phase],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout as output:
        pid = int(output.readline())
        assert runs(pid)
        parent.kill()
        parent.wait()
    until(lambda: not runs(pid), "the worker ended")


EXITING = """
    from image_refinery.llm import llamacpp as embedded
    import requests
    url = embedded.start_shared()
    assert embedded.start_shared() == url
    requests.post(url + "/api/chat", json={"model": "tiny", "messages": []}).raise_for_status()
    print(*embedded._shared.worker_pids(), flush=True)
"""


def test_the_shared_server_ends_with_the_interpreter(
    models: Path, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(models))
    head = textwrap.dedent(PARENT).split("from image_refinery")[0]
    code = head.replace("root, models, phase = sys.argv[1:]", "root = sys.argv[1]")
    done = subprocess.run(
        [sys.executable, "-c", code + textwrap.dedent(EXITING), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not runs(int(done.stdout))


def test_without_the_binding_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from image_refinery.llm import llamacpp as embedded

    assert embedded.available()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name)
    )
    assert not embedded.available()
    monkeypatch.setattr(embedded, "_shared", None)  # another test's engine may run already
    with pytest.raises(embedded.EngineMissing, match="python -m pip install xllamacpp"):
        embedded.start_shared()
