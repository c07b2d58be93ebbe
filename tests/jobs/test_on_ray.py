"""Jobs over Ray: run by hand where ray is installed (its packages are many).

pip install "ray>=2.50"; pytest -c tests/pytest.ini tests/jobs/test_on_ray.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery import jobs
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]
RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."

Batch = Callable[..., "subprocess.Popen[str]"]


def test_without_ray_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.jobs.on_ray import on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = pytest.raises(jobs.JobError, match=r"pip install .ray>=2\.50")
    with wanted, on_ray([], "local", tmp_path):
        pass


@pytest.fixture
def batch(
    tmp_path: Path, make_ollama: Callable[..., FaultyOllama], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Batch]:
    """Start the command over two servers, `one` and `two`, on `--ray`."""
    pytest.importorskip("ray", reason="ray is not installed")
    servers = {name: make_ollama() for name in ("one", "two")}
    config = tmp_path / "config" / "image-refinery" / "image-refinery.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "".join(f'[servers.{name}]\nurl = "{one.url}"\n' for name, one in servers.items())
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for number in range(COUNT):
        file = tmp_path / "images" / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (number, 0, 0)).save(file)
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, ray: str = "local") -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT), "batch", str(tmp_path / "images"), *words]
        command += ["--job", str(tmp_path / "job"), "--out", "txt,jsonl", "--ray", ray]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    start.servers = servers  # type: ignore[attr-defined]
    yield start
    for process in started:
        process.kill()
        process.communicate()


COUNT = 40
BOTH = ("--server", "one", "--server", "two")


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=180)
    return said


def check_outputs(tmp_path: Path, text: str) -> None:
    done = [row["id"] for row in jobs.Rows(tmp_path / "job")]
    assert len(done) == len(set(done)) == COUNT
    assert {file.read_text() for file in (tmp_path / "images").glob("*.txt")} == {text}
    assert len(list((tmp_path / "images").glob("*.txt"))) == COUNT
    lines = (tmp_path / "job" / "metadata.jsonl").read_text().splitlines()
    assert len({json.loads(line)["file_name"] for line in lines}) == len(lines) == COUNT
    assert not list(tmp_path.rglob("*.new"))


def requests_of(batch: Any) -> list[bytes]:
    """The image of each request to any server."""
    return [request.images[0] for s in batch.servers.values() for request in s.of("chat")]


def wait_for_requests(batch: Any, count: int) -> None:
    """Wait for requests to either server: one may have begun before the other's actor is there."""
    until = time.monotonic() + 120
    while len(requests_of(batch)) < count:
        assert time.monotonic() < until, "nothing is asked"
        time.sleep(0.01)


def check_requests(batch: Any, *, twice_at_most: int) -> None:
    """Check that each image was asked, and only what was in flight again."""
    asked = Counter(requests_of(batch))
    twice = sum(count - 1 for count in asked.values())
    assert len(asked) == COUNT and twice <= twice_at_most


def test_two_servers_share_the_images(batch: Any, tmp_path: Path) -> None:
    process = batch(*BOTH, "--task", "caption", "--instructions", "Shorten it.", "--chunk", "5")
    said = ended(process)
    assert process.returncode == 0, said
    check_outputs(tmp_path, CRIMSON)
    assert {row["by"] for row in jobs.Rows(tmp_path / "job")} == {"one", "two"}


def test_roles(batch: Any, tmp_path: Path) -> None:
    words = ("--vision-server", "one", "--text-server", "two", "--chunk", "5")
    process = batch(*words, "--task", "caption", "--instructions", "Shorten it.")
    said = ended(process)
    assert process.returncode == 0, said
    check_outputs(tmp_path, CRIMSON)
    one, two = batch.servers.values()
    assert one.loads == {"llava:latest": 1} and two.loads == {"llama3.2:latest": 1}


def test_rewrites_of_captions_that_exist(batch: Any, tmp_path: Path) -> None:
    for number in range(1, COUNT):
        (tmp_path / "images" / f"{number:02}.txt").write_text(f"ohwx {number}")
    words = ("--task", "rewrite", "--instructions", "Shorten it.", "--existing", "overwrite")
    process = batch(*BOTH, *words, "--chunk", "5")
    said = ended(process)
    assert process.returncode == 1 and f"{COUNT - 1} done, 1 failed, 0 left." in said, said
    rows = {row["id"]: row for row in jobs.Rows(tmp_path / "job")}
    assert rows["00.png"]["error"]["kind"] == "NoPrompt" and rows["07.png"]["tags"] == "ohwx 7"
    assert (tmp_path / "images" / "07.txt").read_text() == CRIMSON
    assert not any(server.loads.get("llava:latest") for server in batch.servers.values())


def test_a_bad_image_and_a_server_that_ends(batch: Any, tmp_path: Path) -> None:
    (tmp_path / "images" / "00.png").write_text("no image")
    batch.servers["one"].always("chat", "busy")
    process = batch(*BOTH, "--chunk", "4")
    said = ended(process)
    assert process.returncode == 1 and f"{COUNT - 1} done, 1 failed, 0 left." in said, said
    assert "Error: one: " in said and "(R109)" in said
    rows = {row["id"]: row for row in jobs.Rows(tmp_path / "job")}
    assert rows["00.png"]["error"]["kind"] == "UnusableImage"


def test_ctrl_c_and_continue(batch: Any, tmp_path: Path) -> None:
    from faulty_ollama import Reply

    for server in batch.servers.values():
        server.always("chat", Reply(token_s=0.01))
    process = batch(*BOTH, "--chunk", "5")
    assert batch.servers["one"].wait_until(lambda: len(batch.servers["one"].of("chat")) >= 3, 90)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert process.returncode == 130 and "The same command continues." in said, said
    process = batch(*BOTH)
    said = ended(process)
    assert process.returncode == 0, said
    check_outputs(tmp_path, RED)


def actors_of(driver: int) -> list[int]:
    """The processes that Ray calls _Actor, among those that a driver has started."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "ray::_Actor" in line]


@pytest.mark.parametrize("seed", range(int(os.environ.get("RAY_KILLS", "1"))))
def test_killed_actors_are_replaced(batch: Any, tmp_path: Path, seed: int) -> None:
    from faulty_ollama import Reply

    chance = random.Random(seed)
    for server in batch.servers.values():
        server.always("chat", Reply(token_s=0.01))
    process = batch(*BOTH, "--chunk", "8")
    wait_for_requests(batch, 2 + chance.randrange(4))
    victims = actors_of(process.pid)
    os.kill(chance.choice(victims), signal.SIGKILL)
    said = ended(process)
    assert process.returncode == 0, said
    check_outputs(tmp_path, RED)
    check_requests(batch, twice_at_most=1)


@pytest.mark.parametrize("seed", range(int(os.environ.get("RAY_KILLS", "1"))))
def test_a_killed_driver_continues(batch: Any, tmp_path: Path, seed: int) -> None:
    from faulty_ollama import Reply

    chance = random.Random(100 + seed)
    for server in batch.servers.values():
        server.always("chat", Reply(token_s=0.01))
    process = batch(*BOTH, "--chunk", "8")
    wait_for_requests(batch, 2 + chance.randrange(4))
    time.sleep(chance.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    process = batch(*BOTH)
    said = ended(process)
    assert process.returncode == 0, said
    check_outputs(tmp_path, RED)
    check_requests(batch, twice_at_most=4)


@pytest.mark.parametrize("seed", range(int(os.environ.get("RAY_KILLS", "1"))))
def test_a_killed_node_loses_nothing(batch: Any, tmp_path: Path, seed: int) -> None:
    from faulty_ollama import Reply
    from ray.cluster_utils import Cluster

    chance = random.Random(200 + seed)
    for server in batch.servers.values():
        server.always("chat", Reply(token_s=0.02))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = batch(*BOTH, "--chunk", "8", ray=cluster.address)
        wait_for_requests(batch, 2 + chance.randrange(4))
        cluster.remove_node(node, allow_graceful=False)
        said = ended(process)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, said
    check_outputs(tmp_path, RED)
    check_requests(batch, twice_at_most=2)
