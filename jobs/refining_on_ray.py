"""Refiners on other machines: one Ray actor for each GPU of a cluster.

The driver decides which images are taken, writes the rows and puts each draft into its place. An
actor gets paths and settings, opens the images where it runs, and writes the drafts, so the folder
of the results has the same path on all machines. Importing this imports torch, as `refining`.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, NamedTuple

import torch

from ..llm.errors import Cancelled
from ..refine import CheckpointError, ImageRefiner, RefineCancelled, RefineError
from ..refine.identity import identify
from ..refine.settings import MemoryMode
from .captions import Progress
from .items import Item
from .on_ray import POLL_S, STALL_S, ActorStream, import_ray, ray_cluster
from .refining import LOG, Commits, Refining, Work, refined_row
from .rows import Row, RowLog
from .schedule import ChunkSizes, Supply


class Checkpoint(NamedTuple):
    """What each actor loads.

    Attributes:
        model: as for `ImageRefiner`.
        identity: what `identify` says about it on the driver's machine.
    """

    model: str
    identity: Mapping[str, Any]
    memory_mode: MemoryMode = "auto"


def run_refining_on_ray(
    job: Refining,
    todo: Sequence[Item],
    checkpoint: Checkpoint,
    address: str,
    *,
    should_stop: Callable[[], bool],
    progress: Callable[[Progress], None] = lambda progress: None,
    note: Callable[[str], None] = lambda text: None,
    stall_s: float = STALL_S,
) -> Progress:
    """Do what `run_refining` does on all GPUs of a Ray cluster, or on one CPU if it has none.

    An error that is not that of one image ends its worker; the others continue.

    Args:
        address: see `ray_cluster`.
        note: called with a sentence for the user.
        stall_s: see `STALL_S`.

    Raises:
        RefineCancelled: `should_stop` returned True. All rows that were finished are there.
        JobError: the cluster cannot be used, or the results are not on storage that all share.
        OSError: a file cannot be written.
    """
    job = replace(job, files=replace(job.files, folder=job.files.folder.absolute()))
    if os.path.exists(checkpoint.model):
        checkpoint = checkpoint._replace(model=os.path.abspath(checkpoint.model))
    with ray_cluster(address) as ray, closing(RowLog(job.folder, LOG)) as log:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus:
            note(f"Refining on {gpus} GPU{'s' * (gpus > 1)} of the Ray cluster.")
        else:
            note("The Ray cluster has no GPU: refining on a CPU, which is slow.")
        actor = ray.remote(_Refiner).options(
            num_cpus=0, num_gpus=1 if gpus else 0, max_concurrency=2, scheduling_strategy="SPREAD"
        )
        start = partial(actor.remote, checkpoint)
        names = [f"GPU {number + 1}" for number in range(gpus)] or ["CPU"]
        streams = {name: ActorStream(ray, name, start, RefineError, stall_s) for name in names}
        run = _Run(job, Supply(todo), Commits(job, log, progress), len(names), should_stop)
        with ThreadPoolExecutor(len(names), "image-refinery-ray") as threads:
            tasks = [
                threads.submit(run.share, ray, name, stream, stall_s)
                for name, stream in streams.items()
            ]
        for task in tasks:
            task.result()
        return run.commits.state


class _Run:
    """What the workers of a run share."""

    def __init__(
        self,
        job: Refining,
        supply: Supply[Item],
        commits: Commits,
        workers: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self.job = job
        self.supply = supply
        self.commits = commits
        self.workers = workers
        self.should_stop = should_stop
        self.ended = Event()

    def share(self, ray: Any, name: str, stream: ActorStream, stall_s: float) -> None:
        """Work on what one worker takes, until there is no more, or it fails."""
        sizes = ChunkSizes(None, swaps=False, workers=self.workers)
        try:
            # Another program may have the GPU: its images are taken when it is ready.
            if not self._is_ready(ray, name, stream, stall_s):
                return
            while not self._stops() and (taken := self.supply.take(sizes)):
                left = {item.id: item for item in taken}
                try:
                    self._work(stream, left)
                finally:
                    self.supply.put_back(left.values())
            self.ended.set()
        except Cancelled:
            if self.should_stop():
                raise RefineCancelled("The job was cancelled.") from None
        except RefineError as error:
            self.commits.state.errors[name] = error
        except BaseException:
            self.ended.set()
            raise
        finally:
            stream.drop()  # it may be at an image that another worker takes now

    def _stops(self) -> bool:
        return self.ended.is_set() or self.should_stop()

    def _is_ready(self, ray: Any, name: str, stream: ActorStream, stall_s: float) -> bool:
        """Wait for an actor that has loaded; False if there is nothing left to do for it."""
        loaded = stream.actor.load.remote()
        until = time.monotonic() + stall_s
        while not ray.wait([loaded], timeout=POLL_S)[0]:
            if self._stops():
                if self.should_stop():
                    raise Cancelled
                return False
            if time.monotonic() > until:
                stream.drop()
                raise RefineError(
                    f"The Ray worker of {name} was not ready after {stall_s:.0f} s. Other programs "
                    "may use the GPUs of the cluster: `ray status` shows them."
                )
        return True  # an error of `load` is that of `work`, too

    def _work(self, stream: ActorStream, left: dict[str, Item]) -> None:
        """Refine images, and remove those that have a row."""
        works = [self.job.work(item) for item in left.values()]
        for folder in {self.job.files.file(item).parent for item in left.values()}:
            # Made here: a network file system may remember for a minute that it was not there.
            folder.mkdir(parents=True, exist_ok=True)
        for row in stream.results(works, cancelled=self._stops):
            self.commits.write(left.pop(row["id"]), row)


class _Refiner:
    """Refines on one GPU, on any machine of the cluster."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._refiner: ImageRefiner | None = None
        self._loading = threading.Lock()
        self._stop = Event()
        self._name = platform.node()

    def load(self) -> None:
        """Load the weights, once.

        Raises:
            RefineError: they cannot be loaded, or are those of another checkpoint.
        """
        with self._loading:
            self._loaded()

    def _loaded(self) -> ImageRefiner:
        if self._refiner is None:
            wanted = self._checkpoint
            if identify(wanted.model) != wanted.identity:
                raise CheckpointError(
                    f"{wanted.model} is another checkpoint on {self._name} than on the machine "
                    "where the job was started. Copy the same file to both."
                )
            gpus = import_ray().get_gpu_ids()
            if not gpus:  # Ray limits a process that asked for no CPU to one thread
                torch.set_num_threads(os.cpu_count() or 1)
            refiner = ImageRefiner(
                "cuda" if gpus else "cpu", model=wanted.model, memory_mode=wanted.memory_mode
            )
            refiner.load()
            self._name += f" GPU {gpus[0]}" if gpus else " CPU"
            self._refiner = refiner
        return self._refiner

    def cancel(self) -> None:
        """End the work on the current image."""
        self._stop.set()

    def work(self, works: Sequence[Work]) -> Iterator[Row]:
        """Yield the row of each image, whose draft is written."""
        with self._loading:
            refiner = self._loaded()
        for work in works:
            yield refined_row(work, refiner, by=self._name, should_stop=self._stop.is_set)
