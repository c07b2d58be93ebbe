"""Workers on other machines: one Ray actor for each server of a job (`refining_on_ray`: each GPU).

The driver keeps all that decides: which images are taken, rows, outputs, the kept answers. An actor
gets the paths of a chunk, opens the images where it runs, asks its server, and yields each result.
Ray's object store holds paths and texts, never pixels. Needs the extra `ray`; nothing else imports
it.
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .._backends import open_backend
from .._program import install
from ..captioning.events import Watcher
from ..captioning.job import Caption, Job, Result
from ..captioning.kept import KeptAnswers
from ..captioning.run import rewrite, run
from ..llm.backend import Answer
from ..llm.errors import Cancelled, LLMError
from ..llm.servers import Server
from ..memory import StageMemory
from .captions import Worker, answers_of
from .directory import JobError
from .items import Item

LOCAL = "local"
"""The address that starts a Ray of this machine alone."""

STALL_S = 1800.0
"""A chunk without any result for so long ends its worker: a slow model on a CPU takes minutes."""
POLL_S = 0.1
_MOST_DEATHS = 3
"""An actor that dies so often in a row, without a result in between, is not replaced again."""


class Chunk(NamedTuple):
    """What an actor works on: images to describe, or descriptions to rewrite."""

    job: Job
    items: Sequence[Item] = ()
    descriptions: Sequence[Result] = ()


def import_ray() -> Any:
    """Return the package ray.

    Raises:
        JobError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise JobError(
            f"--ray needs the package ray, which cannot be imported here ({error}). Install it "
            "with: " + install('"ray>=2.50"')
        ) from error


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Yield the package ray, connected; then end the actors.

    Args:
        address: of a cluster, such as ray://head:10001; "auto": the one of this machine; `LOCAL`:
            start one.

    Raises:
        JobError: ray is not installed, or the cluster cannot be reached.
    """
    ray = import_ray()
    try:
        ray.init(
            address=None if address == LOCAL else address,
            log_to_driver=False,
            configure_logging=False,
            **({"include_dashboard": False} if address == LOCAL else {}),
        )
    except Exception as error:  # of many families
        raise JobError(f"The Ray cluster {address} cannot be used ({error}).") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def on_ray(
    workers: Sequence[Worker], address: str, folder: Path, *, stall_s: float = STALL_S
) -> Iterator[list[Worker]]:
    """Yield the workers with an actor each, and end the actors.

    Args:
        address: see `ray_cluster`.
        folder: the job's directory, on this machine.
        stall_s: see `STALL_S`.

    Raises:
        JobError: see `ray_cluster`.
    """
    with ray_cluster(address) as ray:
        # On the driver's machine, beside the job's directory.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        keeper = (
            ray.remote(_Keeper)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(str(folder.absolute()))
        )
        yield [replace(one, remote=RayWorker(ray, one, keeper, stall_s)) for one in workers]


class ActorStream:
    """An actor with the methods `work`, a generator, and `cancel`. A dead one is replaced.

    Args:
        name: what messages call it.
        start: returns a new actor.
        error: the kind of error that `work` raises on purpose.
    """

    def __init__(
        self,
        ray: Any,
        name: str,
        start: Callable[[], Any],
        error: type[Exception],
        stall_s: float,
    ) -> None:
        self._ray = ray
        self._name = name
        self._start = start
        self._error = error
        self._stall_s = stall_s
        self._deaths = 0
        self._actor: Any = None

    @property
    def actor(self) -> Any:
        """The actor, which is started if there is none."""
        if self._actor is None:
            self._actor = self._start()
        return self._actor

    def results(self, chunk: Any, *, cancelled: Callable[[], bool]) -> Iterator[Any]:
        """Yield what the actor's `work` yields; what a dead actor has not finished is left.

        Raises:
            Cancelled: `cancelled` returned True.
            Exception: of the kind `error`: the actor cannot continue.
        """
        actor = self.actor
        results = actor.work.options(num_returns="streaming").remote(chunk)
        last = time.monotonic()
        try:
            while True:
                if cancelled():
                    self._ray.wait([actor.cancel.remote()], timeout=10)
                    raise Cancelled
                if not self._ray.wait([results], timeout=POLL_S)[0]:
                    if time.monotonic() - last > self._stall_s:
                        self.drop()
                        raise self._error(
                            f"The Ray worker of {self._name} gave no result for "
                            f"{self._stall_s:.0f} s."
                        )
                    continue
                result = self._ray.get(next(results))
                self._deaths = 0
                yield result
                last = time.monotonic()
        except StopIteration:
            return
        except self._ray.exceptions.RayActorError as error:
            self.drop()
            self._deaths += 1
            if self._deaths >= _MOST_DEATHS:
                raise self._error(
                    f"The Ray worker of {self._name} ended {self._deaths} times without a result "
                    f"({str(error).splitlines()[0]})."
                ) from error
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, self._error):
                raise cause from error
            raise self._error(
                f"The Ray worker of {self._name} failed ({type(cause).__name__}: {cause})."
            ) from error

    def drop(self) -> None:
        """End the actor."""
        if self._actor is not None:
            self._ray.kill(self._actor)
        self._actor = None


class RayWorker:
    """A server's actor, seen from the driver."""

    def __init__(self, ray: Any, worker: Worker, keeper: Any, stall_s: float) -> None:
        servers = tuple(
            None if backend is None else backend.server for backend in (worker.vision, worker.text)
        )
        actor = ray.remote(_Actor).options(
            num_cpus=0, max_concurrency=2, scheduling_strategy="SPREAD"
        )
        self._stream = ActorStream(
            ray, worker.name, lambda: actor.remote(servers, keeper), LLMError, stall_s
        )

    def describe(self, items: Sequence[Item], job: Job, **more: Any) -> None:
        """Do what `captioning.run.run` does, there."""
        self._work(Chunk(job=job, items=items), **more)

    def rewrite(self, descriptions: Sequence[Result], job: Job, **more: Any) -> None:
        """Do what `captioning.run.rewrite` does, there."""
        self._work(Chunk(job=job, descriptions=descriptions), **more)

    def _work(
        self,
        chunk: Chunk,
        *,
        watcher: Watcher,
        finished: Callable[[int, Caption], None],
        **_: object,
    ) -> None:
        """Work on a chunk; what a dead actor has not finished is left.

        Args:
            _: memory, answers and backends, which the actor has for itself.

        Raises:
            Cancelled: the watcher cancelled.
            LLMError: the actor cannot continue, or its server cannot be opened.
        """
        for index, title, caption in self._stream.results(chunk, cancelled=watcher.cancelled):
            if caption is not None:
                finished(index, caption)
            else:
                watcher.stage(title, "", 0)
                watcher.finished(index, Result())


class _Keeper:
    """The job's kept answers, for actors on any machine."""

    def __init__(self, folder: str) -> None:
        self._answers = answers_of(Path(folder))

    def get(self, key: bytes) -> Answer | None:
        return self._answers.get(key)

    def put(self, key: bytes, answer: Answer) -> None:
        self._answers.put(key, answer)


class _RemoteAnswers(KeptAnswers):
    """`KeptAnswers` of another process."""

    def __init__(self, keeper: Any) -> None:
        super().__init__(Path())
        self._keeper = keeper

    def get(self, key: bytes) -> Answer | None:
        return _ray_get(self._keeper.get.remote(key))

    def put(self, key: bytes, answer: Answer) -> None:
        _ray_get(self._keeper.put.remote(key, answer))


def _ray_get(reference: Any) -> Any:
    return import_ray().get(reference)


class _Actor:
    """Asks a server, on any machine of the cluster."""

    def __init__(self, servers: Sequence[Server | None], keeper: Any) -> None:
        self._backends = [None if one is None else open_backend(one) for one in servers]
        self._answers = _RemoteAnswers(keeper)
        self._memory = StageMemory()
        self._stop = threading.Event()

    def cancel(self) -> None:
        """End the chunk that is worked on."""
        self._stop.set()

    def work(self, chunk: Chunk) -> Iterator[tuple[int, str, Caption | None]]:
        """Yield (index, "", caption) for each result, and (index, stage, None) for each answer."""
        out: queue.Queue[tuple[int, str, Caption | None] | BaseException | None] = queue.Queue()
        watcher = _Watcher(self._stop, out)

        def go() -> None:
            more: dict[str, Any] = {
                "memory": self._memory,
                "watcher": watcher,
                "kept": self._answers,
                "finished": lambda index, caption: out.put((index, "", caption)),
            }
            vision, text = self._backends
            try:
                if chunk.descriptions:
                    assert text is not None
                    rewrite(text, chunk.descriptions, chunk.job, **more)
                else:
                    assert vision is not None
                    sources = [item.open for item in chunk.items]
                    run(vision, sources, chunk.job, text_backend=text, **more)
            except BaseException as error:  # noqa: BLE001 (for the generator's thread)
                out.put(error)
            else:
                out.put(None)

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        while (result := out.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result


class _Watcher(Watcher):
    def __init__(self, stop: threading.Event, out: queue.Queue[Any]) -> None:
        self._stop = stop
        self._out = out
        self._title = ""

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def stage(self, title: str, model: str, count: int) -> None:
        self._title = title

    def finished(self, index: int, result: Result) -> None:
        self._out.put((index, self._title, None))
