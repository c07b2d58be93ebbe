"""Two ComfyUI processes and a command line at the same time, and a ComfyUI that is killed.

Both processes have one base folder, so they share its checkpoints, jobs and kept answers.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from faulty_ollama import FaultyOllama, RecordedRequest, Reply, text_model, vision_model
from host import PACK_FOLDER, TINY, ComfyHost, EventLog, FoundHost, Graph, node, put_tiny
from image_refinery.captioning.kept import KeptAnswers
from image_refinery.captioning.run import RUN_KEEP_ALIVE_S
from image_refinery.jobs import Rows
from PIL import Image

VISION, TEXT = "llava:latest", "llama3.2:latest"
MODELS = {"vision_model": VISION, "text_model": TEXT}
ANSWER_S = 0.1
CLI_TIMEOUT_S = 200
TROUBLE = ("locked", "Answers are not kept", "Could not unload", f"/{PACK_FOLDER}/")
"""In a log; the last is part of a traceback through the pack."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")


class Users(NamedTuple):
    """Two servers over one base folder, and where their temporary files are."""

    first: ComfyHost
    second: ComfyHost
    temporary: Path

    @property
    def base(self) -> Path:
        return self.first.base

    def folder(self, name: str, count: int) -> Path:
        """Make a folder of the input with `count` small images."""
        folder = self.base / "input" / name
        folder.mkdir()
        for number in range(count):
            picture(number).save(folder / f"{number:02}.png")
        return folder


@pytest.fixture(scope="module")
def users(
    found_comfyui: FoundHost, ollama_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Users]:
    """Two running ComfyUI with the tiny refiner."""
    base, temporary = tmp_path_factory.mktemp("users"), tmp_path_factory.mktemp("temporary")
    env = {
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{ollama_port}",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    second = ComfyHost(found_comfyui, base, env=env)
    second.log_file = base / "second.log"
    with ComfyHost(found_comfyui, base, env=env) as first:
        put_tiny(first)
        try:
            second.start()
            yield Users(first, second, temporary)
        finally:
            second.stop()


@pytest.fixture(autouse=True)
def nothing_is_kept_from_another_test(users: Users) -> None:
    for file in (users.base / "user" / "image-refinery").glob("answers.db*"):
        file.unlink()


@pytest.fixture
def seeing(ollama: FaultyOllama) -> FaultyOllama:
    """Answers with the size of the image, and the text model repeats the size it was given."""

    def size(request: RecordedRequest) -> str:
        width, height = size_of(request)
        return f"a picture of {width} by {height}"

    def again(request: RecordedRequest) -> str:
        found = re.search(r"\d+ by \d+", request.body["messages"][-1]["content"])
        assert found
        return f"rewritten {found[0]}"

    slowly = {"load_s": 0.2, "unload_s": 0.2}
    for model in (vision_model(answer=size, **slowly), text_model(answer=again, **slowly)):
        ollama.models[model.key] = model
    ollama.always("chat", Reply(token_s=ANSWER_S / 6))
    return ollama


def size_of(request: RecordedRequest) -> tuple[int, int]:
    """Width and height of the one image that was sent."""
    (size,) = request.image_sizes
    assert size
    return size


def picture(number: int, width: int = 96, height: int = 64) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def call(command: Sequence[str], *words: str, **env: str) -> tuple[int, str]:
    """Run the command line; return its exit status and what it printed on stderr."""
    ended = subprocess.run(
        [*command, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=CLI_TIMEOUT_S,
        check=False,
    )
    return ended.returncode, ended.stderr


def command_of(host: ComfyHost) -> list[str]:
    """The command line of the pack in custom_nodes: with ComfyUI's Python, answers and jobs."""
    return [str(host.found.python), str(host.pack_folder)]


# one server


def sizes_graph(*widths: int) -> Graph:
    """LLM Image Refine for a list of images, one of each width."""
    listed = [[width, 40, [0.5, 0.5, 0.5]] for width in widths]
    probe = node("ProbePictures", pictures=str(listed), batch=False, salt=0)
    asks = node("RefineryLLMImageRefine", image=["1", 0], user_instructions="Rewrite it.", **MODELS)
    return {
        "1": probe,
        "2": asks,
        "3": node("PreviewAny", source=["2", 1]),
        "4": node("PreviewAny", source=["2", 2]),
    }


def check_texts(host: ComfyHost, *widths: int) -> None:
    run = host.run(sizes_graph(*widths), timeout_s=120)
    assert run.ok, run.error
    assert run.texts("3") == [f"a picture of {width} by 40" for width in widths]
    assert run.texts("4") == [f"rewritten {width} by 40" for width in widths]


def test_one_server_for_two_comfyui_and_a_command_line(users: Users, seeing: FaultyOllama) -> None:
    """An unload by one user while another one describes costs a load, and no answer."""
    short, long = [range(100 + 2 * run, 102 + 2 * run) for run in range(4)], range(200, 216)
    folder = users.base / "input" / "described"
    folder.mkdir()
    for width in range(300, 308):
        picture(width, width, 40).save(folder / f"{width}.png")

    def first() -> None:
        for widths in short:
            check_texts(users.first, *widths)

    with ThreadPoolExecutor(3) as threads:
        third = threads.submit(
            call,
            command_of(users.first),
            *("describe", str(folder), "--txt", "--instructions", "Rewrite it."),
            *("--vision-model", VISION, "--text-model", TEXT),
            OLLAMA_BASE_URL=seeing.url,
        )
        seeing.wait_for("chat")
        both = [threads.submit(first), threads.submit(check_texts, users.second, *long)]
        for one in both:
            one.result()
        code, said = third.result()
    assert code == 0, said
    for width in range(300, 308):
        assert (folder / f"{width}.txt").read_text() == f"rewritten {width} by 40"

    chats = [one for one in seeing.of("chat") if one.images and size_of(one)[0] in long]
    assert len(chats) == len(long)
    between = chats[0].started, chats[-1].started
    unloads = [one.at for one in seeing.events if one.what == "unload" and one.model == VISION]
    assert any(between[0] < at < between[1] for at in unloads), "another user's unload came between"
    assert seeing.loaded == []
    for log in (users.first.log, users.second.log, said):
        assert not any(word in log for word in TROUBLE), log

    count = 2 * (8 + 16 + 8)
    assert len(seeing.of("chat")) == count
    answers = KeptAnswers(users.base / "user" / "image-refinery" / "answers.db")
    assert answers.totals()[0] == count, "all three keep their answers in one file"
    answers.close()
    check_texts(users.second, *short[0], *short[1])
    assert len(seeing.of("chat")) == count, "and each uses those of the others"


# one checkpoint


def refining(host: ComfyHost, number: int, **inputs: Any) -> Graph:
    """SDXL Refiner for an image whose file has a new name, so that nothing is cached."""
    usual = {
        "checkpoint": TINY,
        "prompt": "",
        "negative_prompt": "",
        "strength": 0.5,
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "seed": 0,
        "working_size": "keep size",
    }
    return {
        "1": node("LoadImage", image=host.save_input(picture(number))),
        "2": node("RefinerySDXLRefiner", image=["1", 0], **(usual | inputs)),
        "3": node("SaveImage", images=["2", 0], filename_prefix="refined"),
    }


def refined(host: ComfyHost, number: int) -> np.ndarray:
    run = host.run(refining(host, number), timeout_s=300)
    assert run.ok, run.error
    (file,) = host.saved(run, "3")
    return pixels(file)


def test_one_checkpoint_for_two_comfyui_and_a_command_line(
    users: Users, small_process: list[str], tmp_path: Path
) -> None:
    """All three load it in the same moment; each result is that of a run alone."""
    picture(1).save(tmp_path / "one.png")
    checkpoint = users.base / "models" / "checkpoints" / TINY

    def command_line(name: str) -> np.ndarray:
        code, said = call(
            small_process,
            *("refine", str(tmp_path / "one.png"), "--model", str(checkpoint)),
            *("--strength", "0.5", "--steps", "8", "--output", str(tmp_path / name)),
        )
        assert code == 0, said
        return pixels(tmp_path / name / "one-refined.png")

    with ThreadPoolExecutor(3) as threads:
        third = threads.submit(command_line, "together")
        first, second = threads.map(lambda host: refined(host, 1), users[:2])
    assert np.array_equal(first, second)
    assert np.array_equal(refined(users.first, 1), first)
    assert np.array_equal(command_line("alone"), third.result())
    assert (first != pixels(tmp_path / "one.png")).any()


# one job


def captioning(folder: str) -> Graph:
    return {
        "1": node("RefineryCaptionFolder", folder=folder, instructions="", **MODELS),
        "2": node("PreviewAny", source=["1", 2]),
    }


def refining_folder(folder: str) -> Graph:
    usual = {
        "checkpoint": TINY,
        "strength": 0.5,
        "num_inference_steps": 8,
        "guidance_scale": 7.5,
        "prompt": "",
        "negative_prompt": "",
        "working_size": "keep size",
    }
    return {
        "1": node("RefineryRefineFolder", folder=folder, **usual),
        "2": node("PreviewAny", source=["1", 2]),
    }


def job_of(users: Users, name: str) -> Path:
    (job,) = (users.base / "user" / "image-refinery" / "jobs").glob(f"{name}-*")
    return job


def check_refused(users: Users, graph: Graph, job: Path, *words: str) -> None:
    """Run a job that the first ComfyUI is working on: one sentence for each of the others."""
    run = users.second.run(graph, timeout_s=120)
    sentence = f"Another process is working on the job in {job}. Wait until it has ended, or "
    assert run.error["exception_message"].strip().startswith(sentence)
    code, said = call(command_of(users.first), "batch", *words, "--job", str(job))
    assert code == 1
    *before, last = said.splitlines()
    assert last.startswith(f"Error: {sentence}")
    assert "Error" not in "".join(before)


def test_one_job_of_captions(users: Users, seeing: FaultyOllama) -> None:
    count = 30
    folder, graph = users.folder("captions", count), captioning("captions")
    seeing.always("chat", Reply(token_s=ANSWER_S))
    events = users.first.listen()
    prompt = users.first.queue(graph, events)
    seeing.wait_for("chat", 2)
    job = job_of(users, "captions")
    words = (str(folder), "--task", "describe", "--vision-model", VISION, "--out", "txt,jsonl")
    check_refused(users, graph, job, *words)
    assert users.first.get("/queue")["queue_running"], "the first one still works"
    seeing.always("chat", Reply())
    run = users.first.finish(prompt, events, timeout_s=120)
    events.close()
    assert run.ok and run.texts("2")[0].startswith(f"{count} of {count} images captioned, {count}")
    assert {file.read_text() for file in folder.glob("*.txt")} == {"a picture of 96 by 64"}
    assert len(list(folder.glob("*.txt"))) == len(seeing.of("chat")) == count
    run = users.second.run(graph)
    assert run.ok and run.texts("2")[0].startswith(f"{count} of {count} images captioned, 0 of")
    code, said = call(
        command_of(users.first),
        *("batch", *words, "--job", str(job)),
        OLLAMA_BASE_URL=seeing.url,
    )
    assert code == 0, said
    assert len(seeing.of("chat")) == count and seeing.loaded == []


def test_one_job_of_refined_images(users: Users) -> None:
    count = 4
    folder, graph = users.folder("refined", count), refining_folder("refined")
    picture(1, 3072, 3072).save(folder / "01.png")  # a minute of work
    events = users.first.listen()
    prompt = users.first.queue(graph, events)
    events.wait_for("progress", timeout_s=200, node="1", value=1000, max=1000 * count)
    job = job_of(users, "refined")
    model = str(users.base / "models" / "checkpoints" / TINY)
    check_refused(users, graph, job, str(folder), "--task", "refine", "--model", model)
    users.first.interrupt()
    run = users.first.finish(prompt, events, timeout_s=60)
    events.close()
    assert run.interrupted, "the first one has worked all the time"
    picture(1).save(folder / "01.png")
    run = users.second.run(graph, timeout_s=60)
    assert run.ok and run.texts("2")[0].startswith(f"{count} of {count} images refined, 3 of them")


# a ComfyUI that is killed


def kill_and_start(users: Users, events: EventLog) -> None:
    """Kill the first ComfyUI and start it again; the pack has nothing to say about it."""
    users.first.kill()
    events.close()
    with users.first.new_log() as said:
        users.first.start()
    own = [
        line
        for line in said().splitlines()
        if (PACK_FOLDER in line or "refinery" in line.lower()) and " seconds: " not in line
    ]
    assert own == []


def drafts(users: Users) -> list[Path]:
    """Unfinished files of ours, in the base folder and among the temporary ones."""
    return [*users.base.rglob("*.new"), *users.temporary.glob("image-refinery*")]


def test_killed_while_it_describes(users: Users, seeing: FaultyOllama) -> None:
    events = users.first.listen()
    seeing.always("chat", Reply(token_s=1.0))
    seeing.script("chat", Reply())
    users.first.queue(sizes_graph(401, 402, 403), events)
    hanging = seeing.wait_for("chat", 2)
    seeing.wait_until(lambda: hanging.tokens_sent > 0)
    kill_and_start(users, events)
    assert hanging.client_closed, "which is when Ollama stops"
    sent = [one.body["keep_alive"] for one in seeing.of("load", "chat")]
    assert sent == [RUN_KEEP_ALIVE_S] * 3
    assert seeing.loaded == [VISION], "for five minutes at most, as docs/memory.md says"
    left_s = seeing._residents[VISION].expires_at - time.monotonic()
    assert 0 < left_s <= RUN_KEEP_ALIVE_S == 300
    seeing.always("chat", Reply())
    check_texts(users.first, 401, 402, 403)
    assert seeing.loaded == [] and seeing.loads == {VISION: 1, TEXT: 1}
    asked = [size_of(one)[0] for one in seeing.of("chat") if one.images]
    assert asked == [401, 402, 402, 403], "what was in flight is asked again, and nothing else"


def test_killed_while_it_refines(users: Users) -> None:
    expected = refined(users.second, 2)
    before = {*users.base.joinpath("output").rglob("*")}
    events = users.first.listen()
    users.first.queue(refining(users.first, 2, num_inference_steps=1000, strength=1.0), events)
    events.wait_for("progress", timeout_s=200, node="2", value=5)
    kill_and_start(users, events)
    assert {*users.base.joinpath("output").rglob("*")} == before and drafts(users) == []
    assert np.array_equal(refined(users.first, 2), expected)


def test_killed_while_it_loads_a_checkpoint(users: Users) -> None:
    expected = refined(users.second, 3)
    users.first.restart()
    events = users.first.listen()
    users.first.queue(refining(users.first, 3), events)
    until = time.monotonic() + 200
    while not drafts(users):
        assert time.monotonic() < until, users.first.log
        time.sleep(0.001)
    kill_and_start(users, events)
    (left,) = drafts(users)
    assert sum(file.stat().st_size for file in left.rglob("*")) < 10_000_000
    os.utime(left, (0, 0))  # after a day, a load removes it
    assert np.array_equal(refined(users.first, 3), expected)
    assert drafts(users) == []


def test_killed_in_caption_folder(users: Users, seeing: FaultyOllama) -> None:
    count, at = 12, 6
    folder, graph = users.folder("killed-captions", count), captioning("killed-captions")
    events = users.first.listen()
    users.first.queue(graph, events)
    seeing.wait_for("chat", at)
    kill_and_start(users, events)
    done = {row["id"] for row in Rows(job_of(users, "killed-captions"))}
    assert at - 1 <= len(done) < count
    run = users.first.run(graph)
    assert run.ok, run.error
    assert run.texts("2")[0].startswith(f"{count} of {count} images captioned, {count - len(done)}")
    assert {file.read_text() for file in folder.glob("*.txt")} == {"a picture of 96 by 64"}
    assert len(list(folder.glob("*.txt"))) == count
    assert len(seeing.of("chat")) <= count + 1, "only what was in flight is asked again"
    assert seeing.loaded == [] and drafts(users) == []


def test_killed_in_refine_folder(users: Users) -> None:
    count = 12
    folder, graph = users.folder("killed-refined", count), refining_folder("killed-refined")
    events = users.first.listen()
    users.first.queue(graph, events)
    events.wait_for("progress", timeout_s=200, node="1", value=5000, max=1000 * count)
    kill_and_start(users, events)
    results = users.base / "output" / "refined" / job_of(users, "killed-refined").name
    done = {file: file.stat().st_mtime_ns for file in results.glob("*.png")}
    assert 4 <= len(done) < count
    assert all(pixels(file).shape == (64, 96, 3) for file in done), "no half file"
    run = users.first.run(graph, timeout_s=200)
    assert run.ok, run.error
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert len(list(results.iterdir())) == count == len(list(folder.iterdir()))
    assert drafts(users) == []


def test_killed_while_it_refines_a_splat(
    users: Users, found_comfyui: FoundHost, draw_splat: Callable[..., Any]
) -> None:
    from image_refinery.refine.splats import write_ply

    if found_comfyui.version < (0, 23):
        pytest.skip("this ComfyUI has no splats")
    write_ply(draw_splat(3000), users.base / "input" / "sphere.ply")
    size = {"width": 512, "height": 512, "viewport_state": {}}
    how = {"strength": 0.25, "views": 2, "passes": 2, "num_inference_steps": 4, "seed": 1}
    graph: Graph = {
        "1": node("Load3DAdvanced", model_file="sphere.ply", **size),
        "2": node("File3DToSplat", model_3d=["1", 0]),
        "3": node(
            "RefinerySplat",
            splat=["2", 0],
            checkpoint=TINY,
            prompt="",
            negative_prompt="",
            **how,
        ),
        "4": node("SplatToFile3D", splat=["3", 0], format="ply"),
        "5": node("SaveGLB", mesh=["4", 0], filename_prefix="splat"),
    }
    events = users.first.listen()
    users.first.queue(graph, events)
    until = time.monotonic() + 200
    while not any("step" in event.data["text"] for event in events.of("progress_text", node="3")):
        assert time.monotonic() < until, users.first.log
        time.sleep(0.01)
    kill_and_start(users, events)
    output = users.base / "output"
    assert not [*output.glob("splat*")] and drafts(users) == []
    for host in users[:2]:
        run = host.run(graph, timeout_s=200)
        assert run.ok, run.error
    first, second = sorted(output.glob("splat*.ply"))
    assert first.read_bytes() == second.read_bytes()
