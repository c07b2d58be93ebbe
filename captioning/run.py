"""Describe images with a vision model, then rewrite the descriptions with a text model.

Stage by stage: all descriptions, one swap of models, all rewrites. The nodes and the command line
call `run`, or `process` where the texts are there already. What happens to memory around a stage is
the caller's `Memory`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

from ..llm.backend import Answer, Backend, Model, collect, think_value
from ..llm.errors import (
    AccessDenied,
    Cancelled,
    ContextTooLong,
    LLMError,
    ModelNotFound,
    NoThinking,
    NoVision,
    OutOfMemory,
    ServerBusy,
    ServerConfigError,
    ServerTimeout,
    ServerUnreachable,
)
from ..llm.http import CancelCheck
from ..llm.retry import with_retries
from . import prompts
from .encoding import EncodedAhead, encode_all
from .events import Watcher
from .images import RETRY_SIDE_PX
from .job import (
    Caption,
    ImageSource,
    Job,
    Request,
    Result,
    Rules,
    Stage,
    TextJob,
    rewrite_requests,
    text_pairs,
    text_requests,
    vision_requests,
)
from .options import DEFAULT_NUM_PREDICT, StageOptions, context_size

log = logging.getLogger(__name__)

T = TypeVar("T")

RUN_KEEP_ALIVE_S = 300
"""Between two requests of a run. Finite, so that a crash of ours leaves no model loaded."""

_CHARS_PER_TOKEN = 4
"""Of English, for the length of a description that is not written yet."""
_PROMPT_CHARS = 1000
"""Room for the fixed prompts and the chat template around them."""

_FATAL_ERRORS = (
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
"""After one of these the next request would fail in the same way."""


class Memory(Protocol):
    """What makes room before a stage and frees memory after it."""

    def before(self, backend: Backend, model: Model, settings: StageOptions) -> None:
        """Make room for `model`."""
        ...

    def out_of_memory(self, backend: Backend, model: Model, settings: StageOptions) -> int:
        """The server has no room for `model`: free what can be freed; return the bytes."""
        ...

    def after(self, backend: Backend, model: Model, *, cancelled: CancelCheck) -> None:
        """Unload `model` and wait until it is gone; once `cancelled`, do it in the background."""
        ...


def run(
    backend: Backend,
    images: Sequence[ImageSource],
    job: Job,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
    finished: Callable[[int, Caption], None] | None = None,
) -> list[Caption]:
    """Return one caption per image; with `one_question`, one in all.

    An error is the result of its image only, unless every image would meet it: then it ends the
    stage. A failed description skips its rewrite.

    Args:
        finished: called with the index of an image and its caption when both stages are done
            with it; with `settings.parallel`, from several threads.

    Raises:
        Cancelled: the watcher said so; nothing keeps running on the server.
        LLMError: the first error, with `job.stop_on_error`.
    """
    report = finished or (lambda index, caption: None)
    requests = vision_requests(images, job)
    per_request = len(images) if job.one_question else 1
    needs = [_Need(job.vision, 2 * _longest(job.custom_prompts), per_request)]
    if job.text is not None:
        described = int(job.vision.options.get("num_predict", 0)) * _CHARS_PER_TOKEN
        needs.append(_Need(job.text, 2 * _longest(job.instructions) + described))
    work = _Run(backend, job, needs, memory, watcher or Watcher())
    with work.models():
        if job.text is None:
            descriptions = work.stage(
                "describe",
                job.vision,
                requests,
                lambda index, result: report(index, Caption(description=result)),
            )
            return [Caption(description=result) for result in descriptions]
        descriptions = work.stage("describe", job.vision, requests)
        if not backend.same_model(job.vision.model, job.text.model):
            work.release()
        captions = [
            Caption(description=result, refined=result if result.error else None)
            for result in descriptions
        ]
        rewrites = rewrite_requests(descriptions, job)
        for index in {*range(len(captions))} - {request.index for request in rewrites}:
            report(index, captions[index])

        def rewritten(index: int, result: Result) -> None:
            captions[index] = replace(captions[index], refined=result)
            report(index, captions[index])

        work.stage("rewrite", job.text, rewrites, rewritten)
        return captions


def process(
    backend: Backend,
    job: TextJob,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
) -> list[Result]:
    """Return one result per text: what the model wrote by the instructions.

    Errors are treated as by `run`. A pair of blank text and blank instructions is an error.

    Raises:
        Cancelled, LLMError: as `run`.
    """
    chars = max(len(text) + len(instructions) for text, instructions in text_pairs(job))
    work = _Run(backend, job, [_Need(job.stage, chars)], memory, watcher or Watcher())
    with work.models():
        return work.stage("process", job.stage, text_requests(job))


class _Need(NamedTuple):
    """How much one request of a stage holds, for the num_ctx of its model."""

    stage: Stage
    chars: int
    images: int = 0


class _Run:
    """The state of one run: what the server lists, and which models this run has loaded."""

    def __init__(
        self,
        backend: Backend,
        rules: Rules,
        needs: Sequence[_Need],
        memory: Memory | None,
        watcher: Watcher,
    ) -> None:
        self.backend = backend
        self.rules = rules
        self.needs = needs
        self.memory = memory
        self.watcher = watcher
        self.keep_alive_s = rules.keep_loaded_s or RUN_KEEP_ALIVE_S
        self.installed: Sequence[Model] | None = None
        self.loaded: list[Model] = []
        self.has_made_room = False

    @contextmanager
    def models(self) -> Generator[None]:
        """Unload at the end what the stages inside loaded."""
        try:
            yield
        except Cancelled:
            self.release(cancelled=lambda: True)
            raise
        finally:
            self.release()

    def release(self, *, cancelled: CancelCheck | None = None) -> None:
        """Unload the models that this run loaded, unless the user keeps them."""
        while self.loaded:
            model = self.loaded.pop()
            if self.memory is not None and (cancelled or not self.rules.keep_loaded_s):
                check = cancelled or self.watcher.cancelled
                self.memory.after(self.backend, model, cancelled=check)

    def stage(
        self,
        title: str,
        stage: Stage,
        requests: Sequence[Request],
        report: Callable[[int, Result], None] = lambda index, result: None,
    ) -> list[Result]:
        """Load the model and send each request; return one result for each.

        `report` hears of each result with the index that its request has.
        """
        if not requests:
            return []
        fatal: LLMError | None = None

        def finish(number: int, result: Result) -> Result:
            self.watcher.finished(number, result)
            report(requests[number].index, result)
            return result

        def send(number: int) -> Result:
            nonlocal fatal
            request = requests[number]
            try:
                if error := fatal or request.error:
                    raise error
                answer = self._chat(stage, model, number, request, images)
            except LLMError as error:
                if self.rules.stop_on_error or isinstance(error, _FATAL_ERRORS):
                    fatal = fatal or error
                return finish(number, Result(error=error))
            return finish(number, Result(answer=answer))

        self.watcher.stage(title, stage.model, len(requests))
        numbers = range(len(requests))
        with EncodedAhead([request.images for request in requests], stage.settings) as images:
            try:
                model = self._load(stage, requests)
            except LLMError as error:
                if self.rules.stop_on_error:
                    raise
                return [finish(number, Result(error=error)) for number in numbers]
            if stage.settings.parallel == 1:
                results = [send(number) for number in numbers]
            else:
                with ThreadPoolExecutor(stage.settings.parallel, "image-refinery") as threads:
                    results = list(threads.map(send, numbers))
        if self.rules.stop_on_error and fatal:
            raise fatal
        return results

    def _load(self, stage: Stage, requests: Sequence[Request]) -> Model:
        """Return the stage's model, loaded unless it is already, or runs elsewhere."""
        if all(request.error for request in requests) and (error := requests[0].error):
            raise error
        model = self._find(stage.model)
        if any(request.images for request in requests) and model.lacks("vision"):
            raise NoVision(model.name, self.backend.server)
        think_value(model, stage.settings.think_value, self.backend.server)
        same_model = self.backend.same_model
        if model.remote_host or any(same_model(model.name, other.name) for other in self.loaded):
            return model
        if self.memory is not None:
            self.memory.before(self.backend, model, stage.settings)
        self.loaded.append(model)
        self.watcher.loading(model.name)
        self._request(
            lambda: self.backend.load(
                model.name,
                options=self._options(stage, model),
                keep_alive=self.keep_alive_s,
                timeout_s=stage.settings.timeout_s,
                cancelled=self.watcher.cancelled,
            ),
            model,
            stage,
        )
        return model

    def _find(self, name: str) -> Model:
        if self.installed is None:
            self.installed = self._request(lambda: self.backend.list(self.watcher.cancelled))
        models = self.installed
        return self._request(lambda: self.backend.find(name, self.watcher.cancelled, models=models))

    def _chat(
        self, stage: Stage, model: Model, number: int, request: Request, images: EncodedAhead
    ) -> Answer:
        """Return the answer to a request; where the context is too short, with smaller images."""
        settings = stage.settings
        try:
            answer = self._send(stage, model, number, request, images.take(number))
        except ContextTooLong:
            if not request.images or settings.max_image_side <= RETRY_SIDE_PX:
                raise
            smaller = replace(settings, max_image_side=RETRY_SIDE_PX)
            answer = self._send(stage, model, number, request, encode_all(request.images, smaller))
        if answer.remark:
            log.warning("%s, answer %d: %s", model.name, number + 1, answer.remark)
        if request.clean and settings.format is None:
            return replace(answer, text=prompts.clean(answer.text))
        return answer

    def _send(
        self, stage: Stage, model: Model, number: int, request: Request, images: list[str]
    ) -> Answer:
        messages = list(request.messages)
        if images:
            messages[-1] = {**messages[-1], "images": images}
        return self._request(
            lambda: collect(
                self.backend.chat(
                    model.name,
                    messages,
                    options=self._options(stage, model),
                    think=think_value(model, stage.settings.think_value, self.backend.server),
                    format=stage.settings.format,
                    keep_alive=None if model.remote_host else self.keep_alive_s,
                    timeout_s=stage.settings.timeout_s,
                    cancelled=self.watcher.cancelled,
                ),
                lambda piece: self.watcher.token(number, piece),
            ),
            model,
            stage,
        )

    def _request(
        self, request: Callable[[], T], model: Model | None = None, stage: Stage | None = None
    ) -> T:
        """Return what `request` returns; retry where the failure may pass.

        Where the server's memory is too short for the model, free what can be freed, once in a run.
        """

        def make_room() -> bool:
            if model is None or stage is None or self.memory is None or self.has_made_room:
                return False
            self.has_made_room = True
            log.info("Making room for %s", model.name)
            return self.memory.out_of_memory(self.backend, model, stage.settings) > 0

        return with_retries(
            request,
            self.backend.retries,
            answered=self.installed is not None,
            cancelled=self.watcher.cancelled,
            on_retry=lambda error, pause_s: self.watcher.waiting(_briefly(error), pause_s),
            make_room=make_room,
        )

    def _options(self, stage: Stage, model: Model) -> dict[str, Any]:
        """The stage's options, with one num_ctx for the model's whole run: a change reloads it."""
        options = {"num_predict": DEFAULT_NUM_PREDICT} | dict(stage.options)
        if options.get("num_ctx") is not None:
            return options
        sizes = [
            context_size(
                characters=_PROMPT_CHARS + need.chars,
                images=need.images,
                num_predict=int(need.stage.options.get("num_predict", 0)),
                longest=model.context_length,
            )
            for need in self.needs
            if self.backend.same_model(need.stage.model, model.name)
        ]
        return options | {"num_ctx": max(sizes)}


def _briefly(error: LLMError) -> str:
    if isinstance(error, ServerUnreachable):
        return "the server does not answer yet"
    return "the server is busy" if isinstance(error, ServerBusy) else "the connection broke"


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts))
