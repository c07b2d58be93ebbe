"""Describe images with a vision model, then rewrite the descriptions with a text model.

Stage by stage: all descriptions first, one swap of models, then all rewrites. The nodes and the
command line call `run`, or `process` where the texts are there already; what happens to memory
around a stage is the caller's `Memory`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..llm.errors import (
    AccessDenied,
    Cancelled,
    ContextTooLong,
    ModelNotFound,
    NoThinking,
    NoVision,
    OllamaError,
    OutOfMemory,
    ServerBusy,
    ServerConfigError,
    ServerTimeout,
    ServerUnreachable,
    UnusableImage,
)
from ..llm.http import CancelCheck
from ..llm.retry import patiently
from ..ollama_client.client import Answer, Message, Model, OllamaClient, collect, same_model
from . import prompts
from .images import RETRY_SIDE_PX, EncodedImage, encode_image
from .options import DEFAULT_NUM_PREDICT, StageOptions, context_size
from .watcher import Outcome as Outcome
from .watcher import Watcher as Watcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

log = logging.getLogger(__name__)

T = TypeVar("T")

ImageSource = Callable[[], "Image.Image | NDArray[np.uint8]"]
"""Gives an image when it is needed, so that a folder of thousands is never in memory at once."""

RUN_KEEP_ALIVE_S = 300
"""Between two requests of a run. Finite, so that a crash of ours leaves nothing loaded for ever."""

_CHARACTERS_PER_TOKEN = 4
"""Of English, for the length of a description that has yet to be written."""
_PROMPT_CHARACTERS = 1000
"""Room for the fixed prompts of `prompts` and the chat template around them."""

_SAME_FOR_ALL = (
    AccessDenied,
    ModelNotFound,
    NoThinking,
    NoVision,
    OutOfMemory,
    ServerBusy,
    ServerConfigError,
    ServerTimeout,
    ServerUnreachable,
)
"""After one of these the next image would fail in the same way."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model, the options sent to it, and how it is used.

    Attributes:
        model: name, as in `ollama list`.
        options: by Ollama's own names; num_ctx is chosen by `run` unless it is here, and
            num_predict is 1024 unless it is here: every answer has an end.
        settings: the rest of Ollama Options.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: StageOptions = field(default_factory=StageOptions)


@dataclass(frozen=True, kw_only=True)
class _Rules:
    keep_loaded_s: float = 0.0
    clean: bool = True
    stop_on_error: bool = False


@dataclass(frozen=True, kw_only=True)
class Job(_Rules):
    """What `run` is to do.

    Attributes:
        vision: stage one.
        text: stage two; None: descriptions only.
        instructions: for stage two, one for each description (a shorter list repeats its last);
            a blank one skips stage two for its image.
        custom_prompts: for stage one, in the same way; blank: the default request.
        one_question: all images in one request, one description.
        keep_loaded_s: seconds that models stay loaded after their stage; 0: unload at once.
        clean: tidy the rewritten text (`prompts.clean`).
        stop_on_error: raise the first error instead of giving it as that image's outcome.
    """

    vision: Stage
    text: Stage | None = None
    instructions: Sequence[str] = ("",)
    custom_prompts: Sequence[str] = ("",)
    one_question: bool = False


@dataclass(frozen=True, kw_only=True)
class TextJob(_Rules):
    """What `process` is to do; keep_loaded_s, clean and stop_on_error are those of a `Job`.

    Attributes:
        stage: the one stage.
        texts: the material, one for each request.
        instructions: in the same way. The longer of the two lists counts, and the shorter repeats
            its last. Where only one of the two is there, it is the whole prompt.
    """

    stage: Stage
    texts: Sequence[str]
    instructions: Sequence[str] = ("",)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One description and its rewrite; `refined` is None where stage two was not asked for."""

    description: Outcome
    refined: Outcome | None = None


class Memory(Protocol):
    """What makes room before a stage and gives memory back after it."""

    def before(self, client: OllamaClient, model: Model, settings: StageOptions) -> None:
        """Make room for `model`."""
        ...

    def out_of_memory(self, client: OllamaClient, model: Model, settings: StageOptions) -> int:
        """The server has no room for `model`: free what can be freed; return the bytes."""
        ...

    def after(self, client: OllamaClient, model: Model, *, cancelled: CancelCheck) -> None:
        """Unload `model` and see it gone; once `cancelled`, return at once and do it behind."""
        ...


def run(
    client: OllamaClient,
    images: Sequence[ImageSource],
    job: Job,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
    finished: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Return one result per image; with `one_question`, one in all.

    `finished` is called with the place of an image and its result as soon as it is there; with
    `settings.parallel`, from several threads.

    An error of one image is its outcome, and the others go on; an error that would meet every
    image ends the stage. A failed description skips its rewrite.

    Raises:
        Cancelled: the watcher said so; nothing keeps running on the server.
        OllamaError: the first error, when `job.stop_on_error`.
    """
    run = _Run(client, job, memory, watcher or Watcher())
    groups = [list(images)] if job.one_question else [[image] for image in images]
    run.plan(
        job.vision,
        characters=2 * max(map(len, job.custom_prompts)),
        images=len(images) if job.one_question else 1,
    )
    if job.text is not None:
        described = int(job.vision.options.get("num_predict", 0)) * _CHARACTERS_PER_TOKEN
        run.plan(job.text, characters=2 * max(map(len, job.instructions)) + described)
    tell = finished or (lambda index, result: None)
    with run.loaded():
        if job.text is None:
            descriptions = run.describe(
                job.vision,
                groups,
                job.custom_prompts,
                lambda index, outcome: tell(index, Result(description=outcome)),
            )
            return [Result(description=outcome) for outcome in descriptions]
        descriptions = run.describe(job.vision, groups, job.custom_prompts)
        if not same_model(job.vision.model, job.text.model):
            run.release()
        refined = run.rewrite(
            job.text,
            descriptions,
            job.instructions,
            lambda index, outcome: tell(
                index, Result(description=descriptions[index], refined=outcome)
            ),
        )
    return [Result(description=d, refined=r) for d, r in zip(descriptions, refined, strict=True)]


def process(
    client: OllamaClient,
    job: TextJob,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
) -> list[Outcome]:
    """Return one outcome per text: what the model made of it by the instructions.

    Errors are treated as by `run`; a text and instructions that are both blank are one.

    Raises:
        Cancelled, OllamaError: as `run`.
    """
    run = _Run(client, job, memory, watcher or Watcher())
    count = max(len(job.texts), len(job.instructions))
    given = list(zip(_spread(job.texts, count), _spread(job.instructions, count), strict=True))
    run.plan(job.stage, characters=max(len(text) + len(wanted) for text, wanted in given))
    with run.loaded():
        return run.process(job.stage, given)


class _Run:
    """The state of one run: what the server lists, what was looked up, what we hold loaded."""

    def __init__(
        self, client: OllamaClient, rules: _Rules, memory: Memory | None, watcher: Watcher
    ) -> None:
        self.client = client
        self.rules = rules
        self.memory = memory
        self.watcher = watcher
        self.installed: list[Model] | None = None
        self.found: dict[str, Model] = {}
        self.held: list[Model] = []
        self.made_room = False
        self.planned: list[tuple[Stage, Callable[[int | None], int]]] = []

    def plan(self, stage: Stage, *, characters: int, images: int = 0) -> None:
        """Say how much one request of a stage will hold, for the num_ctx of its model."""

        def context(longest: int | None) -> int:
            return context_size(
                characters=_PROMPT_CHARACTERS + characters,
                images=images,
                num_predict=int(stage.options.get("num_predict", 0)),
                longest=longest,
            )

        self.planned.append((stage, context))

    @contextmanager
    def loaded(self) -> Generator[None]:
        """Give back at the end what the stages inside loaded."""
        try:
            yield
        except Cancelled:
            self.release(cancelled=lambda: True)
            raise
        finally:
            self.release()

    def describe(
        self,
        stage: Stage,
        groups: list[list[ImageSource]],
        custom_prompts: Sequence[str],
        tell: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Ask the vision model about each group of images."""
        wanted = _spread(custom_prompts, len(groups))

        def prepare() -> Model:
            if not all(groups):
                raise UnusableImage("There is no image to ask about: the batch is empty.")
            model = self._find(stage.model)
            if model.lacks("vision"):
                raise NoVision(model.name, self.client.place)
            return model

        ahead = _Ahead(groups, stage.settings)

        def ask(client: OllamaClient, index: int) -> Answer:
            messages = prompts.vision_messages(ahead.take(index), wanted[index])
            try:
                return self._ask(client, stage, messages, index)
            except ContextTooLong:
                if stage.settings.max_image_side <= RETRY_SIDE_PX:
                    raise
                smaller = replace(stage.settings, max_image_side=RETRY_SIDE_PX)
                images = [_encode(source, smaller).base64 for source in groups[index]]
                messages = prompts.vision_messages(images, wanted[index])
                return self._ask(client, stage, messages, index)

        with ahead:
            return self._stage("describe", stage, len(groups), prepare, ask, tell)

    def rewrite(
        self,
        stage: Stage,
        described: list[Outcome],
        instructions: Sequence[str],
        tell: Callable[[int, Outcome | None], None],
    ) -> list[Outcome | None]:
        """Rewrite the descriptions that there are, where there are instructions."""
        wanted = _spread(instructions, len(described))
        # A failed description is not rewritten: its error stands in both places.
        refined: list[Outcome | None] = [
            outcome if isinstance(outcome, OllamaError) else None for outcome in described
        ]
        todo: list[tuple[int, str]] = []
        for index, outcome in enumerate(described):
            if isinstance(outcome, Answer) and wanted[index].strip():
                todo.append((index, outcome.text))
            else:
                tell(index, refined[index])

        def ask(client: OllamaClient, position: int) -> Answer:
            index, description = todo[position]
            messages = prompts.rewrite_messages(description, wanted[index])
            return self._cleaned(stage, self._ask(client, stage, messages, position))

        if todo:
            outcomes = self._stage(
                "rewrite",
                stage,
                len(todo),
                lambda: self._find(stage.model),
                ask,
                lambda position, outcome: tell(todo[position][0], outcome),
            )
            for (index, _), outcome in zip(todo, outcomes, strict=True):
                refined[index] = outcome
        return refined

    def process(self, stage: Stage, given: list[tuple[str, str]]) -> list[Outcome]:
        """Ask the text model once for each pair of text and instructions."""

        def ask(client: OllamaClient, index: int) -> Answer:
            messages = prompts.process_messages(*given[index])
            return self._cleaned(stage, self._ask(client, stage, messages, index))

        return self._stage("process", stage, len(given), lambda: self._find(stage.model), ask)

    def _cleaned(self, stage: Stage, answer: Answer) -> Answer:
        if not self.rules.clean or stage.settings.format is not None:
            return answer
        return replace(answer, text=prompts.clean(answer.text))

    def _stage(
        self,
        title: str,
        stage: Stage,
        count: int,
        prepare: Callable[[], Model],
        ask: Callable[[OllamaClient, int], Answer],
        tell: Callable[[int, Outcome], None] | None = None,
    ) -> list[Outcome]:
        """Load the model and ask `count` times; an error that meets all ends the stage."""

        def finished(index: int, outcome: Outcome) -> None:
            self.watcher.finished(index, outcome)
            if tell is not None:
                tell(index, outcome)

        self.watcher.stage(title, stage.model, count)
        try:
            model = prepare()
            self.client.check_think(model, stage.settings.think_value)
            self._hold(model, stage)
        except Cancelled:
            raise
        except OllamaError as error:
            if self.rules.stop_on_error:
                raise
            for index in range(count):
                finished(index, error)
            return [error] * count
        stop = _Stop()

        def one(index: int, client: OllamaClient) -> Outcome:
            if stop.error is not None:
                outcome: Outcome = stop.error
            else:
                try:
                    outcome = ask(client, index)
                except Cancelled:
                    raise
                except OllamaError as error:
                    outcome = error
                    if self.rules.stop_on_error or isinstance(error, _SAME_FOR_ALL):
                        stop.error = error
            finished(index, outcome)
            return outcome

        workers = min(stage.settings.parallel, count)
        if workers <= 1:
            outcomes = [one(index, self.client) for index in range(count)]
        else:
            outcomes = self._in_parallel(one, count, workers)
        if self.rules.stop_on_error and stop.error is not None:
            raise stop.error
        return outcomes

    def _in_parallel(
        self, one: Callable[[int, OllamaClient], Outcome], count: int, workers: int
    ) -> list[Outcome]:
        clients: SimpleQueue[OllamaClient] = SimpleQueue()
        for _ in range(workers):
            clients.put(OllamaClient(self.client.server, self.client.timeouts))

        def borrow(index: int) -> Outcome:
            client = clients.get()
            try:
                return one(index, client)
            finally:
                clients.put(client)

        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="image-refinery") as pool:
                return list(pool.map(borrow, range(count)))
        finally:
            while not clients.empty():
                clients.get().close()

    def _ask(
        self, client: OllamaClient, stage: Stage, messages: list[Message], index: int
    ) -> Answer:
        model = self._find(stage.model)
        keep_s = self.rules.keep_loaded_s or RUN_KEEP_ALIVE_S

        def chat() -> Answer:
            tokens = client.chat(
                model.name,
                messages,
                options=self._options(stage, model),
                think=client.check_think(model, stage.settings.think_value),
                format=stage.settings.format,
                keep_alive=None if model.remote_host else keep_s,
                timeout_s=stage.settings.timeout_s,
                cancelled=self.watcher.cancelled,
            )
            return collect(tokens, lambda piece: self.watcher.token(index, piece))

        answer = self._with_room(model, stage, chat)
        if answer.remark:
            log.warning("%s, answer %d: %s", model.name, index + 1, answer.remark)
        return answer

    def _find(self, name: str) -> Model:
        if self.installed is None:
            self.installed = self._patiently(lambda: self.client.models(self.watcher.cancelled))
        if name not in self.found:
            model = self.client.pick(self.installed, name)
            self.found[name] = self._patiently(
                lambda: self.client.with_capabilities(model, self.watcher.cancelled)
            )
        return self.found[name]

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again where that is safe, and say so on the node."""
        return patiently(
            ask,
            self.client.retries,
            place=self.client.place,
            answered=self.installed is not None,
            cancelled=self.watcher.cancelled,
            told=lambda error, seconds: self.watcher.waiting(_briefly(error), seconds),
        )

    def _with_room(self, model: Model, stage: Stage, ask: Callable[[], T]) -> T:
        """As `_patiently`; where memory is short, free what we can, once in a run, and try again.

        Where nothing was freed, nothing has changed, and the error stands.
        """
        try:
            return self._patiently(ask)
        except OutOfMemory as error:
            if self.memory is None or self.made_room:
                raise
            self.made_room = True
            log.info("Image Refinery makes room for %s: %s", model.name, error)
            if not self.memory.out_of_memory(self.client, model, stage.settings):
                raise
        return self._patiently(ask)

    def _hold(self, model: Model, stage: Stage) -> None:
        """Make room for the model and load it, unless the stage before left it loaded."""
        if model.remote_host or any(same_model(model.name, held.name) for held in self.held):
            return
        if self.memory is not None:
            self.memory.before(self.client, model, stage.settings)
        self.held.append(model)
        self.watcher.loading(model.name)
        self._with_room(
            model,
            stage,
            lambda: self.client.load(
                model.name,
                options=self._options(stage, model),
                keep_alive=self.rules.keep_loaded_s or RUN_KEEP_ALIVE_S,
                timeout_s=stage.settings.timeout_s,
                cancelled=self.watcher.cancelled,
            ),
        )

    def release(self, *, cancelled: CancelCheck | None = None) -> None:
        while self.held:
            model = self.held.pop()
            if self.memory is not None and (cancelled or not self.rules.keep_loaded_s):
                check = cancelled or self.watcher.cancelled
                self.memory.after(self.client, model, cancelled=check)

    def _options(self, stage: Stage, model: Model) -> dict[str, Any]:
        """The stage's options, with one num_ctx for the model's whole run: a change reloads it."""
        given = {"num_predict": DEFAULT_NUM_PREDICT} | dict(stage.options)
        if given.get("num_ctx") is not None:
            return given
        sizes = [
            context(model.context_length)
            for planned, context in self.planned
            if same_model(planned.model, model.name)
        ]
        return given | {"num_ctx": max(sizes)}


def _briefly(error: OllamaError) -> str:
    if isinstance(error, ServerUnreachable):
        return "the server does not answer yet"
    return "the server is busy" if isinstance(error, ServerBusy) else "the connection broke"


class _Stop:
    """The error that ended a stage early, once there is one."""

    error: OllamaError | None = None


_HEAD_START_S = 0.005
"""For a request to be sent first: Pillow's JPEG encoder holds the interpreter's lock."""


class _Ahead:
    """Encodes the images of the next request in a thread while the server works on this one."""

    def __init__(self, groups: Sequence[Sequence[ImageSource]], settings: StageOptions) -> None:
        self._groups = groups
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="image-refinery-encode")
        self._pending: dict[int, Future[list[str]]] = {}
        self._lock = Lock()
        self._next = 0

    def __enter__(self) -> _Ahead:
        self._fill(self._settings.parallel - 1)  # while the model loads
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def take(self, index: int) -> list[str]:
        """Return the base64 images of a request; the same errors come out as from `_encode`."""
        self._fill(index + self._settings.parallel)
        return self._pending.pop(index).result()

    def _fill(self, last: int) -> None:
        with self._lock:
            while self._next <= min(last, len(self._groups) - 1):
                self._pending[self._next] = self._pool.submit(self._encode_group, self._next)
                self._next += 1

    def _encode_group(self, index: int) -> list[str]:
        time.sleep(_HEAD_START_S)
        return [_encode(source, self._settings).base64 for source in self._groups[index]]


def _encode(source: ImageSource, settings: StageOptions) -> EncodedImage:
    try:
        return encode_image(source(), max_side=settings.max_image_side, lossless=settings.lossless)
    except (OSError, ValueError) as error:
        raise UnusableImage(f"The image cannot be sent ({error}).") from error


def _spread(values: Sequence[str], count: int) -> list[str]:
    """Repeat the last value as ComfyUI does with a list that is shorter than another."""
    return [values[min(index, len(values) - 1)] for index in range(count)]
