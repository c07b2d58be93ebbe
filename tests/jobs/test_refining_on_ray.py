"""Refining over Ray. Most of it is run by hand where ray is installed, as test_on_ray.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from image_refinery import jobs
from image_refinery.jobs.on_ray import ActorStream
from image_refinery.jobs.refining import Commits, RefinedFiles, Refining
from image_refinery.jobs.refining_on_ray import _Run
from image_refinery.jobs.schedule import Supply
from image_refinery.refine import RefineCancelled, RefineError, RefineSettings
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COUNT = 6


@pytest.fixture
def job(tmp_path: Path) -> Refining:
    item = jobs.Item("a.png", str(tmp_path))
    return Refining(
        folder=tmp_path / "job",
        files=RefinedFiles(folder=tmp_path / "refined"),
        settings=RefineSettings(),
        items={item.id: item},
        todo=[item],
        captions=None,
        waiting=0,
        notes=(),
    )


class Silent:
    """A ray whose actors never answer; notes which were ended."""

    exceptions = SimpleNamespace(RayActorError=OSError, RayTaskError=OSError)

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def wait(self, references: Any, timeout: float) -> Any:
        return [], references

    def kill(self, actor: Any) -> None:
        self.ended.append(actor)


@pytest.fixture
def silent() -> tuple[Silent, ActorStream]:
    ray = Silent()
    remote = SimpleNamespace(remote=lambda *words: None)
    actor = SimpleNamespace(load=remote, work=SimpleNamespace(options=lambda **words: remote))
    return ray, ActorStream(ray, "GPU 1", lambda: actor, RefineError, 0.1)


def test_a_stall_ends_the_worker_with_its_cause(silent: Any) -> None:
    ray, stream = silent
    with pytest.raises(RefineError, match=r"worker of GPU 1 gave no result for 0 s"):
        list(stream.results([], cancelled=lambda: False))
    assert len(ray.ended) == 1


def test_a_gpu_that_is_never_free_is_named(job: Refining, silent: Any) -> None:
    ray, stream = silent
    with closing(jobs.RowLog(job.folder, "x")) as log:
        commits = Commits(job, log, lambda progress: None)
        run = _Run(job, Supply(job.todo), commits, 1, lambda: False)
        run.share(ray, "GPU 1", stream, 0.1)
    (error,) = commits.state.errors.values()
    assert "GPU 1 was not ready after 0 s. Other programs may use the GPUs" in str(error)
    assert len(ray.ended) == 1 and len(run.supply.take(lambda there: there)) == 1


def test_the_wait_for_a_gpu_can_be_cancelled(job: Refining, silent: Any) -> None:
    ray, stream = silent
    with closing(jobs.RowLog(job.folder, "x")) as log:
        commits = Commits(job, log, lambda progress: None)
        run = _Run(job, Supply(job.todo), commits, 1, lambda: True)
        with pytest.raises(RefineCancelled):
            run.share(ray, "GPU 1", stream, 60)
    assert len(ray.ended) == 1 and not commits.state.errors


def test_results_that_were_written_elsewhere_are_refused(job: Refining) -> None:
    row = {"id": "a.png", "by": "box GPU 0", "status": "done", "bytes": 3}
    with closing(jobs.RowLog(job.folder, "x")) as log:
        commits = Commits(job, log, lambda progress: None)
        with pytest.raises(jobs.JobError, match=r"written by box GPU 0, but is not on this"):
            commits.write(job.todo[0], row)
    assert not list(jobs.Rows(job.folder))


@pytest.fixture
def batch(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    """Start the command over six images of noise on `--ray`."""
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", str(tiny_file))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    noise = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        pixels = noise.integers(0, 256, (48, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    started: list[subprocess.Popen[str]] = []

    def start(ray: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT), "batch", str(tmp_path / "images"), *words]
        command += ["--job", str(tmp_path / "job"), "--task", "refine", "--steps", "4"]
        process = subprocess.Popen(
            [*command, "--ray", ray], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def two_gpus(batch: Any) -> Iterator[str]:
    """The address of a cluster that has two GPUs by its own account."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
    yield cluster.address
    cluster.shutdown()


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=300)
    return said


def check_results(tmp_path: Path) -> None:
    rows = list(jobs.Rows(tmp_path / "job"))
    assert len({row["id"] for row in rows}) == len(rows) == COUNT
    for row in rows:
        file = tmp_path / "job" / "refined" / row["file"]
        assert file.stat().st_size == row["bytes"]
        with Image.open(file) as image:
            image.load()
    assert not list(tmp_path.rglob("*.new"))


def test_gpus_share_the_images(batch: Any, two_gpus: str, tmp_path: Path) -> None:
    process = batch(two_gpus)
    said = ended(process)
    assert process.returncode == 0, said
    assert "Refining on 2 GPUs of the Ray cluster." in said
    check_results(tmp_path)
    by = {row["by"].rpartition(" GPU ")[2] for row in jobs.Rows(tmp_path / "job")}
    assert by == {"0", "1"}


def test_a_cluster_without_gpus_and_a_bad_image(batch: Any, tmp_path: Path) -> None:
    (tmp_path / "images" / "0.png").write_text("no image")
    process = batch("local")
    said = ended(process)
    assert process.returncode == 1 and f"{COUNT - 1} done, 1 failed, 0 left." in said, said
    assert "has no GPU: refining on a CPU" in said
    rows = {row["id"]: row for row in jobs.Rows(tmp_path / "job")}
    assert rows["0.png"]["error"]["kind"] == "UnusableImage"


def refiners() -> list[int]:
    """The processes that Ray calls _Refiner."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "ray::_Refiner" in line]


def test_killed_refiners_are_replaced_and_a_killed_driver_continues(
    batch: Any, two_gpus: str, tmp_path: Path
) -> None:
    process = batch(two_gpus)
    wait_for_rows(tmp_path, 1)
    process.kill()
    process.communicate()
    done = len(list(jobs.Rows(tmp_path / "job")))
    process = batch(two_gpus)
    wait_for_rows(tmp_path, done + 1)
    for victim in refiners():
        os.kill(victim, signal.SIGKILL)
    said = ended(process)
    assert process.returncode == 0 and f"{done} of {COUNT} images have a result." in said, said
    check_results(tmp_path)


def test_ctrl_c_keeps_what_is_done(batch: Any, two_gpus: str, tmp_path: Path) -> None:
    process = batch(two_gpus)
    wait_for_rows(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert process.returncode == 130 and "The same command continues." in said, said
    assert 1 <= len(list(jobs.Rows(tmp_path / "job"))) <= COUNT


def wait_for_rows(tmp_path: Path, count: int) -> None:
    until = time.monotonic() + 240
    while len(list(jobs.Rows(tmp_path / "job"))) < count:
        assert time.monotonic() < until, "nothing is refined"
        time.sleep(0.05)
