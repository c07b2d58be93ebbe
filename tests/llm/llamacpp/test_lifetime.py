"""Load, unload and cancel: what runs, what `ps` says, and what is left at the end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Stage, TextJob
from image_refinery.captioning.run import process as process_texts
from image_refinery.llm.backend import Unloaded, collect
from image_refinery.llm.errors import (
    Cancelled,
    IncompleteAnswer,
    LoadFailed,
    ModelNotFound,
    ServerTimeout,
)
from image_refinery.llm.llamacpp import backend, process, registry
from image_refinery.llm.llamacpp.library import Library
from image_refinery.memory import StageMemory

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).resolve().parents[3]
SOON_S = 10.0
"""How late "at once" may be on a busy machine; the work that is stopped would take far longer."""
CANCEL_S = 1.0
"""How long a cancel takes at most, in the best of some attempts: one may meet a pause."""
ATTEMPTS = 4
LONG = {"num_predict": 15000, "num_ctx": 16384}
"""Options of an answer without end: in a shorter context it would end by itself before that."""
LONG_PROMPT = "long " * 3200
has_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def cancel(answer: Future[Any], leave: threading.Event) -> float:
    """Cancel a chat of another thread and return how long that took, in seconds."""
    started = time.monotonic()
    leave.set()
    with pytest.raises(Cancelled):
        answer.result(SOON_S)
    return time.monotonic() - started


def attempts(measure: Callable[[], float]) -> None:
    """Measure until one cancel was quick enough."""
    taken: list[float] = []
    while not taken or min(taken) > CANCEL_S:
        assert len(taken) < ATTEMPTS, taken
        taken.append(measure())


# Load and unload


def test_load_ps_and_unload(user: Any, runs: Any) -> None:
    user.load("tiny")
    [loaded] = user.engine.ps()
    assert loaded.name == "tiny:latest"
    assert loaded.size_bytes > 383_000  # the weights alone
    assert loaded.vram_bytes == 0 or loaded.vram_bytes <= loaded.size_bytes
    assert loaded.context_length == 4096
    pid = user.pid()
    assert runs(pid)
    assert user.engine.unload("tiny") == Unloaded(model="tiny", vram_bytes=loaded.vram_bytes)
    assert user.ps() == {}
    assert not runs(pid)


def test_a_longer_context_takes_more_memory(user: Any) -> None:
    sizes = []
    for num_ctx in (512, 16384):
        user.load("slow", options={"num_ctx": num_ctx})
        sizes.append(user.ps()["slow"].size_bytes)
    assert sizes[1] > sizes[0] + 50_000_000  # keys and values of 8 layers, 384 wide, fp16


def test_unloading_what_is_not_loaded_is_fine(user: Any) -> None:
    assert user.engine.unload("tiny").confirmed
    assert user.ps() == {}


def test_a_second_request_uses_the_loaded_model(user: Any) -> None:
    user.load("tiny")
    pid = user.pid()
    user.say("tiny")
    user.load("tiny")
    assert user.pid() == pid


def test_a_file_that_has_changed_is_loaded_again(
    make_user: Callable[..., Any], models: Path, tmp_path: Path
) -> None:
    user = make_user(Library([tmp_path]))
    shutil.copy(models / "tiny.gguf", tmp_path / "model.gguf")
    options = {"temperature": 0, "num_predict": 30}
    first = user.say("model", options=options)
    # As a download does. To write into a file that is mapped would change the loaded model.
    shutil.copy(models / "other.gguf", tmp_path / "new")
    os.replace(tmp_path / "new", tmp_path / "model.gguf")
    assert user.say("model", options=options) != first
    assert len(user.pids()) == 1


# keep_alive


def test_keep_alive_zero_unloads_after_the_answer(user: Any, until: Any) -> None:
    assert user.say("tiny", keep_alive=0)
    until(lambda: not user.ps(), "unloaded")


def test_an_idle_model_is_unloaded_when_its_time_is_over(user: Any, until: Any, runs: Any) -> None:
    user.load("other", keep_alive=60)
    user.say("tiny", keep_alive="60s")
    pids = user.pids()
    user.say("tiny", keep_alive=0.3)
    until(lambda: "tiny" not in user.ps(), "unloaded")
    assert list(user.ps()) == ["other"]
    assert sum(map(runs, pids)) == 1


def test_without_a_keep_alive_the_last_one_counts(
    user: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DEFAULT_KEEP_ALIVE_S", 0.3)
    user.say("tiny")
    until(lambda: not user.ps(), "unloaded after the default time")
    for keep_alive in (60, -1):
        user.load("tiny", keep_alive=keep_alive)
        user.say("tiny")
        time.sleep(0.6)
        assert "tiny" in user.ps()


def test_the_time_of_a_long_answer_does_not_count(user: Any) -> None:
    stream = user.start("slow", options=LONG, keep_alive=0.2)
    next(stream)
    time.sleep(0.5)
    next(stream)
    assert "slow" in user.ps()
    stream.close()


# Options of a load


def test_another_context_length_loads_again(user: Any, runs: Any) -> None:
    user.load("tiny", options={"num_ctx": 512})
    first = user.pid()
    assert user.ps()["tiny"].context_length == 512
    user.say("tiny", options={"num_ctx": 1024})
    assert user.pid() != first
    assert not runs(first)
    assert user.ps()["tiny"].context_length == 1024


def test_two_nodes_with_another_num_ctx_each_get_their_answers(user: Any) -> None:
    options = {"temperature": 0, "num_predict": 20}
    expected = user.say("tiny", options=options)
    answers = [
        user.behind("tiny", options={**options, "num_ctx": num_ctx})
        for num_ctx in (512, 1024, 512, 1024)
    ]
    assert [answer.result(60).text for answer in answers] == [expected] * 4
    assert len(user.pids()) == 1, "never two of one model"


def test_the_context_is_never_longer_than_the_model_was_trained_for(user: Any) -> None:
    user.load("tiny", options={"num_ctx": 100_000})
    assert user.ps()["tiny"].context_length == 4096
    pid = user.pid()
    user.say("tiny", options={"num_ctx": 200_000})
    assert user.pid() == pid, "the same context is no reason to load again"


# Three models at most


def test_five_models_in_turn(user: Any, runs: Any) -> None:
    names = ["tiny", "other", "tiny-vision", "thinker", "slow"]
    pids: set[int] = set()
    for number, name in enumerate([*names, *names], start=1):
        user.load(name)
        assert set(user.ps()) == {(names * 2)[i] for i in range(max(0, number - 3), number)}
        pids |= set(user.pids())
        assert sum(map(runs, pids)) == min(3, number)
    assert len(pids) == 10


def test_the_model_that_is_idle_longest_makes_room(user: Any) -> None:
    for name in ("tiny", "tiny-vision", "thinker"):
        user.load(name)
    user.say("tiny")
    user.load("other")
    assert set(user.ps()) == {"tiny", "thinker", "other"}


def test_a_fourth_model_waits_for_one_of_three_busy_ones(user: Any, until: Any) -> None:
    streams = {name: user.start(name) for name in ("tiny", "other", "tiny-vision")}
    for stream in streams.values():
        next(stream)
    fourth = user.behind("thinker", think=False)
    time.sleep(0.3)
    assert not fourth.done()
    assert set(user.ps()) == set(streams)
    assert collect(streams["other"]).answer_tokens == 8
    assert fourth.result(60).text
    assert set(user.ps()) == {"tiny", "tiny-vision", "thinker"}
    for stream in streams.values():
        stream.close()


# Two nodes at a time


def test_two_nodes_on_one_model_take_turns(user: Any) -> None:
    options = {"temperature": 0, "num_predict": 20}
    texts = ["hello", "a lake", "a hill", "a town"]
    expected = [user.say("tiny", text, options=options) for text in texts]
    answers = [user.behind("tiny", text, options=options) for text in texts]
    assert [answer.result(60).text for answer in answers] == expected
    assert len(user.pids()) == 1


def test_two_nodes_on_two_models_run_at_the_same_time(user: Any) -> None:
    first = user.start("tiny", options={"num_predict": 20})
    second = user.start("other", options={"num_predict": 20})
    assert next(first) and next(second)
    assert set(user.ps()) == {"tiny", "other"}
    assert next(first) and next(second)
    assert collect(second).answer_tokens == collect(first).answer_tokens == 20


def test_two_nodes_that_need_a_model_at_the_same_time_load_it_once(user: Any, until: Any) -> None:
    answers = [user.behind("slow") for _ in range(2)]
    until(user.pids, "loading")
    pid = user.pid()
    assert answers[0].result(60).text == answers[1].result(60).text
    assert user.pid() == pid


def test_an_unload_waits_for_the_running_answer(user: Any, until: Any) -> None:
    running = user.start("slow", options={"num_predict": 60})
    next(running)
    freed: list[Unloaded] = []
    unload = threading.Thread(target=lambda: freed.append(user.engine.unload("slow")))
    unload.start()
    assert collect(running).answer_tokens == 60
    unload.join()
    assert freed[0].confirmed
    assert user.ps() == {}


def test_an_unload_of_a_busy_model_is_done_later(
    user: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "UNLOAD_TIMEOUT_S", 0.2)
    running = user.start("slow", options=LONG)
    next(running)
    assert not user.engine.unload("slow").confirmed
    with pytest.raises(Cancelled):
        user.engine.unload("slow", cancelled=lambda: True)
    assert "slow" in user.ps()
    running.close()
    until(lambda: not user.ps(), "unloaded")


def test_an_unload_does_not_wait_for_the_next_node(user: Any, until: Any) -> None:
    running = user.start("slow", options=LONG)
    next(running)
    first = user.pid()
    freed: list[Unloaded] = []
    unload = threading.Thread(target=lambda: freed.append(user.engine.unload("slow")))
    unload.start()
    leave = threading.Event()
    waiting = user.behind("slow", options=LONG, cancelled=leave.is_set)
    until(lambda: any(slot.unload_asked for slot in registry_slots(user)), "the unload is asked")
    running.close()
    until(lambda: user.pids() not in ([], [first]), "the next node has loaded the model")
    unload.join(SOON_S)
    assert freed == [Unloaded(model="slow")], "the first node has unloaded what it used"
    assert not waiting.done()
    cancel(waiting, leave)


def registry_slots(user: Any) -> list[Any]:
    return list(user.engine.registry._slots.values())


# Cancel


def test_cancel_while_another_node_uses_the_model(user: Any) -> None:
    running = user.start("slow", options=LONG)
    next(running)
    pid = user.pid()

    def measure() -> float:
        leave = threading.Event()
        waiting = user.behind("slow", options=LONG, cancelled=leave.is_set)
        time.sleep(0.2)
        return cancel(waiting, leave)

    attempts(measure)
    assert user.pid() == pid
    assert next(running), "the other node's answer goes on"
    running.close()


def test_cancel_while_three_other_models_are_busy(user: Any) -> None:
    streams = [user.start(name) for name in ("tiny", "other", "tiny-vision")]
    for stream in streams:
        next(stream)
    before = user.pids()

    def measure() -> float:
        leave = threading.Event()
        waiting = user.behind("slow", cancelled=leave.is_set)
        time.sleep(0.2)
        return cancel(waiting, leave)

    attempts(measure)
    assert user.pids() == before
    for stream in streams:
        assert collect(stream).answer_tokens == 8


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A worker that loads without end. Stopped from here, a quick load could have ended before."""
    worker = tmp_path / "worker.py"
    worker.write_text("import time\ntime.sleep(600)\n")
    return worker


def test_cancel_while_loading(
    user: Any, until: Any, runs: Any, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure() -> float:
        leave = threading.Event()
        loading = user.behind("slow", cancelled=leave.is_set)
        pid = until(user.pids, "loading")[0]
        time.sleep(0.1)
        assert list(user.ps()) == ["slow"]
        assert user.ps()["slow"].size_bytes > 1_000_000, "the size of its file, meanwhile"
        taken = cancel(loading, leave)
        assert not runs(pid)
        assert user.ps() == {}
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(process, "_WORKER", endless)
        attempts(measure)
    assert user.say("slow")


def test_cancel_before_the_first_token(user: Any, runs: Any) -> None:
    def measure() -> float:
        user.load("slow", options=LONG)
        pid = user.pid()
        leave = threading.Event()
        reading = user.behind("slow", LONG_PROMPT, options=LONG, cancelled=leave.is_set)
        time.sleep(0.5)
        taken = cancel(reading, leave)
        assert not runs(pid), "llama.cpp would go on with a prompt for seconds"
        assert user.ps() == {}
        return taken

    attempts(measure)
    assert user.say("tiny")


def test_cancel_in_the_middle_of_an_answer(user: Any) -> None:
    pid = 0

    def measure() -> float:
        nonlocal pid
        leave = threading.Event()
        running = user.start("slow", options=LONG, cancelled=leave.is_set)
        next(running)
        pid = user.pid()
        started = time.monotonic()
        leave.set()
        with pytest.raises(Cancelled):
            collect(running)
        return time.monotonic() - started

    attempts(measure)
    started = time.monotonic()
    assert user.say("slow", options={"num_ctx": 16384})
    assert time.monotonic() - started < SOON_S
    assert user.pid() == pid, "the model is kept"


@has_proc
def test_nothing_computes_after_a_cancel(user: Any, until: Any) -> None:
    running = user.start("slow", options=LONG)
    next(running)
    pid = user.pid()
    running.close()

    def ticks() -> int:
        spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, spent))

    def quiet() -> bool:
        before = ticks()
        time.sleep(0.3)
        return ticks() - before <= 1

    until(quiet, "llama.cpp is idle", SOON_S)


class Leaves(Watcher):
    """Cancels a run at the first piece of an answer, or when a model is loaded."""

    def __init__(self, at: str) -> None:
        self._at = at
        self._has_come = False

    def cancelled(self) -> bool:
        return self._has_come

    def loading(self, model: str) -> None:
        self._has_come |= self._at == "load"

    def token(self, index: int, piece: str) -> None:
        self._has_come |= self._at == "token"


@pytest.mark.parametrize("at", ["load", "token"])
def test_a_cancelled_run_leaves_nothing_loaded(user: Any, until: Any, at: str) -> None:
    job = TextJob(stage=Stage(model="slow", options=user.options(**LONG)), texts=["hello"])
    with pytest.raises(Cancelled):
        process_texts(user.engine, job, memory=StageMemory(), watcher=Leaves(at))
    until(lambda: not user.ps(), "unloaded", SOON_S)


def test_a_run_unloads_a_model_that_was_loaded_before(user: Any, until: Any) -> None:
    user.load("tiny")
    job = TextJob(stage=Stage(model="tiny", options=user.options()), texts=["hello"])
    process_texts(user.engine, job, memory=StageMemory())
    until(lambda: not user.ps(), "unloaded", SOON_S)


# Failures


def test_a_load_without_end_is_given_up(
    user: Any, until: Any, runs: Any, endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process, "_WORKER", endless)
        loading = user.behind("slow", timeout_s=0.3)
        pid = until(user.pids, "loading")[0]
        sentence = 'The embedded engine sent nothing for 0.3 s while loading "slow:latest"'
        with pytest.raises(ServerTimeout, match=sentence):
            loading.result(SOON_S)
        assert not runs(pid) and user.ps() == {}
        with pytest.raises(ServerTimeout):
            user.load("slow", timeout_s=0.3)
    assert user.say("slow")


def test_a_model_whose_file_is_gone_is_unloaded(
    make_user: Callable[..., Any], models: Path, tmp_path: Path
) -> None:
    user = make_user(Library([tmp_path]))
    shutil.copy(models / "tiny.gguf", tmp_path / "model.gguf")
    user.load("model")
    (tmp_path / "model.gguf").unlink()
    assert user.engine.unload("model:latest").confirmed
    assert user.ps() == {}
    with pytest.raises(ModelNotFound):
        user.engine.unload("model:latest")


def test_damaged_weights_give_llama_cpps_reason(user: Any) -> None:
    with pytest.raises(LoadFailed) as caught:
        user.chat("cut")
    sentence = str(caught.value)
    assert sentence.startswith('The embedded engine could not load "cut:latest" (tensor \'')
    assert sentence.endswith(
        "data is not within the file bounds, model is corrupted or incomplete)."
    )
    assert user.ps() == {}
    assert user.say("tiny")


def test_a_crash_between_answers_is_healed(user: Any, until: Any) -> None:
    user.load("tiny")
    os.kill(user.pid(), signal.SIGTERM)
    until(lambda: not user.ps(), "noticed")
    assert user.say("tiny")
    os.kill(user.pid(), signal.SIGTERM)
    until(lambda: not user.ps(), "noticed")
    assert user.engine.unload("tiny").confirmed


def test_a_crash_in_the_middle_of_an_answer(user: Any) -> None:
    running = user.start("slow", options=LONG)
    text = next(running)
    os.kill(user.pid(), signal.SIGTERM)
    with pytest.raises(IncompleteAnswer) as caught:
        while True:
            text += next(running)
    sentence = str(caught.value)
    assert sentence.startswith(
        f'The answer of "slow:latest" in the embedded engine broke off after {len(text)} characters'
    )
    assert "(llama.cpp has stopped: exit status " in sentence
    assert user.ps() == {}
    assert user.say("slow")


def test_an_earlier_error_does_not_explain_a_crash(user: Any, until: Any) -> None:
    with pytest.raises(Exception, match="exceeds the available context"):
        user.chat("slow", "x" * 1000, options={**LONG, "num_ctx": 512})
    [(_, _, worker)] = user.engine.registry.loaded()
    until(lambda: any("exceeds" in line for line in [*worker._log]), "its line has been read")
    running = user.start("slow", options={**LONG, "num_ctx": 512})
    next(running)
    os.kill(user.pid(), signal.SIGTERM)
    with pytest.raises(IncompleteAnswer) as caught:
        collect(running)
    assert "exceeds" not in str(caught.value)


def test_a_crash_costs_one_text_of_a_run(user: Any) -> None:
    class Kills(Watcher):
        def token(self, index: int, piece: str) -> None:
            if index == 1 and (pids := user.pids()):
                os.kill(pids[0], signal.SIGTERM)

    options = user.options(num_predict=100, num_ctx=1024)
    job = TextJob(stage=Stage(model="slow", options=options), texts=["one", "two", "three"])
    results = process_texts(user.engine, job, memory=StageMemory(), watcher=Kills())
    assert [type(result.error) for result in results] == [type(None), IncompleteAnswer, type(None)]
    assert user.ps() == {}


# The end


@has_proc
def test_nothing_is_left_at_the_end(make_user: Callable[..., Any], runs: Any) -> None:
    make_user().close()  # what is made once for all comes before the count
    files = open_files()
    threads = set(threading.enumerate())
    user = make_user()
    user.say("tiny")
    user.say("other", keep_alive=0)
    stream = user.start("slow", options=LONG)
    next(stream)
    stream.close()
    busy = user.start("slow", options=LONG)
    next(busy)
    pids = user.pids()
    user.engine.unload("tiny")
    started = time.monotonic()
    user.close()
    user.engine.registry.close()
    assert time.monotonic() - started < SOON_S
    with pytest.raises(IncompleteAnswer, match=r"llama\.cpp has stopped"):
        collect(busy)
    with pytest.raises(Cancelled):
        user.say("tiny")
    assert not any(map(runs, pids))
    end = time.monotonic() + SOON_S
    while set(threading.enumerate()) - threads and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) - threads == set()
    assert open_files() == files


def open_files() -> list[str]:
    """What the descriptors of this process are, without their numbers."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(entry).partition(":")[0])
        except OSError:  # the listing's own
            continue
    return sorted(found)


PARENT = """
    import importlib.util, sys
    from pathlib import Path
    root, models, phase = sys.argv[1:]
    spec = importlib.util.spec_from_file_location(
        "image_refinery", Path(root, "__init__.py"), submodule_search_locations=[root])
    package = importlib.util.module_from_spec(spec)
    sys.modules["image_refinery"] = package
    spec.loader.exec_module(package)
    from image_refinery.llm.llamacpp.backend import EmbeddedEngine
    from image_refinery.llm.llamacpp.library import Library
    assert "xllamacpp" not in sys.modules
    import threading, time
    engine = EmbeddedEngine(library=Library([Path(models)]))
    assert engine.registry is EmbeddedEngine().registry, "all engines of a process share it"
    load = threading.Thread(target=engine.load, args=("slow",), daemon=True)
    load.start()
    if phase != "loading":
        load.join()
    if phase == "answering":
        answer = engine.chat("slow", [{"role": "user", "content": "hello"}])
        next(answer)
    while not engine.registry.loaded():
        time.sleep(0.001)
    print(*[worker.pid for _, _, worker in engine.registry.loaded()], flush=True)
    if phase != "exiting":
        time.sleep(600)
"""


def parent(models: Path, phase: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(ROOT), str(models), phase]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("phase", ["loading", "loaded", "answering"])
def test_no_process_outlives_a_killed_parent(
    models: Path, until: Any, runs: Any, phase: str
) -> None:
    with parent(models, phase) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert runs(pid)
        program.kill()
    until(lambda: not runs(pid), "the worker ended")


def test_the_models_of_a_program_end_with_it(models: Path, runs: Any) -> None:
    with parent(models, "exiting") as program:
        printed, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (0, "")
    assert not runs(int(printed))
