"""Describe images with a vision model, then rewrite the descriptions with a text model.

Works stage by stage: all descriptions, one swap of models, all rewrites. The nodes and the command
line call `run`, or `process` for existing texts. The caller's `Memory` frees memory before and
after each stage.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

from ..llm.backend import Answer, Backend, Message, Model, collect, think_value
from ..llm.choice import AUTO, choose, instead_of, last_used, remember
from ..llm.errors import (
    AccessDenied,
    Cancelled,
    ContextTooLong,
    LLMError,
    LoadFailed,
    ModelNotFound,
    NoModel,
    NoThinking,
    NoVision,
    OutOfMemory,
    ServerBusy,
    ServerConfigError,
    ServerTimeout,
    ServerUnreachable,
    capital,
)
from ..llm.http import CancelCheck
from ..llm.retry import with_retries
from ..llm.servers import Server
from . import prompts, wording
from .encoding import EncodedAhead, encode_all
from .events import Sent, Watcher
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
from .kept import KeptAnswers, answer_key
from .options import DEFAULT_NUM_PREDICT, StageOptions, context_size
from .placeholders import used_in

log = logging.getLogger(__name__)

T = TypeVar("T")

RUN_KEEP_ALIVE_S = 300
"""keep_alive between two requests of a run. Finite, so that no model stays loaded if we crash."""

_CHARS_PER_TOKEN = 4
"""Of English text, to estimate the length of a description in advance."""
_PROMPT_CHARS = 1000
"""Reserved for the fixed prompts and the chat template."""

_CALLED = {"vision": "describing images", "completion": "writing text"}

FATAL_ERRORS = (
    AccessDenied,
    LoadFailed,
    ModelNotFound,
    NoModel,
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
    """Frees memory before a stage and after it."""

    def room_bytes(self, backend: Backend) -> int | None:
        """Return the memory that a model of this server may use, in bytes; None: not known."""
        ...

    def before(
        self,
        backend: Backend,
        model: Model,
        settings: StageOptions,
        *,
        cancelled: CancelCheck | None = None,
    ) -> None:
        """Free memory for `model`."""
        ...

    def out_of_memory(self, backend: Backend, model: Model, settings: StageOptions) -> int:
        """Free as much memory as possible: `model` did not fit; return the bytes freed."""
        ...

    def after(self, backend: Backend, model: Model, *, cancelled: CancelCheck) -> None:
        """Unload `model` and wait until it is gone; once `cancelled`, do it in the background."""
        ...


def run(
    backend: Backend,
    images: Sequence[ImageSource],
    job: Job,
    *,
    text_backend: Backend | None = None,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
    kept: KeptAnswers | None = None,
    finished: Callable[[int, Caption], None] | None = None,
) -> list[Caption]:
    """Return one caption per image; with `one_question`, one in all.

    An error affects only its own image, unless it would affect every image: then it ends the stage.
    A failed description is not rewritten.

    Args:
        backend: server of the vision model.
        text_backend: server of the text model; None: the same.
        kept: answers of earlier runs. A model of which all are there is not loaded.
        finished: called with the index of an image and its caption after the image's last stage;
            from several threads if `settings.parallel` is above 1.

    Raises:
        Cancelled: the watcher cancelled the run; nothing keeps running on the server.
        LLMError: the first error, with `job.stop_on_error`.
    """
    report = finished or (lambda index, caption: None)
    requests = vision_requests(images, job)
    per_request = len(images) if job.one_question else 1
    longest = _longest_value(job)
    prompt = _longest(job.custom_prompts) + _filled(job.custom_prompts, longest)
    # A custom prompt is sent as system message and as request.
    seeing = _Step(backend, job.vision, "vision", 2 * prompt, per_request)
    steps = [seeing]
    if job.text is not None:
        steps.append(_rewriting(text_backend or backend, job, job.text))
    work = _Run(job, steps, memory, watcher or Watcher(), kept)
    with work.models():
        if job.text is None:
            descriptions = work.stage(
                "describe",
                work.steps[0],
                requests,
                lambda index, result: report(index, Caption(description=result)),
            )
            return [Caption(description=result) for result in descriptions]
        seeing, writing = work.steps
        descriptions = work.stage("describe", seeing, requests)
        if not seeing.uses(writing.backend.server, writing.stage.model):
            work.release()
        return work.rewrite(writing, descriptions, job, report)


def rewrite(
    backend: Backend,
    descriptions: Sequence[Result],
    job: Job,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
    kept: KeptAnswers | None = None,
    finished: Callable[[int, Caption], None] | None = None,
) -> list[Caption]:
    """Return what `run` would, with descriptions that another run has made.

    Args:
        backend: server of the text model.
        job: with a `text` stage.

    Raises:
        Cancelled, LLMError: as `run`.
    """
    assert job.text is not None
    longest = max((len(result.text) for result in descriptions), default=0)
    step = _rewriting(backend, job, job.text, longest)
    work = _Run(job, [step], memory, watcher or Watcher(), kept)
    with work.models():
        return work.rewrite(
            work.steps[0], descriptions, job, finished or (lambda index, caption: None)
        )


def _rewriting(backend: Backend, job: Job, stage: Stage, longest: int = 0) -> _Step:
    described = int(job.vision.options.get("num_predict", 0)) * _CHARS_PER_TOKEN
    described = max(described, longest)
    filled = _filled(job.instructions, _longest_value(job))
    return _Step(backend, stage, "completion", 2 * _longest(job.instructions) + filled + described)


def _longest_value(job: Job) -> int:
    return max((len(text) for about in job.about for text in about.values()), default=0)


def process(
    backend: Backend,
    job: TextJob,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
    kept: KeptAnswers | None = None,
) -> list[Result]:
    """Return one result per text: the model's answer to the text and its instructions.

    Errors are handled as in `run`. A pair of blank text and blank instructions is an error.

    Raises:
        Cancelled, LLMError: as `run`.
    """
    chars = max(len(text) + len(instructions) for text, instructions in text_pairs(job))
    step = _Step(backend, job.stage, "completion", chars)
    work = _Run(job, [step], memory, watcher or Watcher(), kept)
    with work.models():
        return work.stage("process", work.steps[0], text_requests(job))


def find_model(
    backend: Backend,
    stage: Stage,
    capability: str,
    *,
    memory: Memory | None = None,
    watcher: Watcher | None = None,
) -> Model:
    """Return the model that a run would use for a stage; for "auto", the one it would choose.

    Args:
        capability: "vision" or "completion".

    Raises:
        Cancelled, LLMError: as `run`.
    """
    step = _Step(backend, stage, capability, 0)
    return _Run(Rules(), [], memory, watcher or Watcher(), None).find(step)


class _Step(NamedTuple):
    """A stage on its server, and the size of its largest request, to choose num_ctx."""

    backend: Backend
    stage: Stage
    capability: str
    chars: int
    images: int = 0

    @property
    def most_chars(self) -> int:
        """The longest request's text, in characters, with an answer that goes back once."""
        rules = self.stage.settings.must or self.stage.settings.must_not
        answer = int(self.stage.options.get("num_predict", 0)) * _CHARS_PER_TOKEN
        return _PROMPT_CHARS + self.chars + (answer if rules else 0)

    def uses(self, server: Server, model: str) -> bool:
        """Whether it uses this model of this server."""
        # By the address: a server may have several names.
        same_server = self.backend.server.url == server.url
        return same_server and self.backend.same_model(self.stage.model, model)


class _Run:
    """The state of one run: the servers' models, and which of them this run has loaded."""

    def __init__(
        self,
        rules: Rules,
        steps: Sequence[_Step],
        memory: Memory | None,
        watcher: Watcher,
        kept: KeptAnswers | None,
    ) -> None:
        self.rules = rules
        self.memory = memory
        self.watcher = watcher
        self.kept = kept
        self.keep_alive_s = rules.keep_loaded_s or RUN_KEEP_ALIVE_S
        self.installed: dict[Server, Sequence[Model]] = {}
        self.loaded: list[tuple[Backend, Model]] = []
        self.has_made_room = False
        self.noted: set[str] = set()
        # Both models are chosen before any load: if they are the same, they share num_ctx.
        self.steps = [self._with_model(step) for step in steps]

    @contextmanager
    def models(self) -> Generator[None]:
        """Unload at the end the models that were loaded inside the block."""
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
            backend, model = self.loaded.pop()
            if self.memory is not None and (cancelled or not self.rules.keep_loaded_s):
                check = cancelled or self.watcher.cancelled
                self.memory.after(backend, model, cancelled=check)

    def stage(
        self,
        title: str,
        step: _Step,
        requests: Sequence[Request],
        report: Callable[[int, Result], None] = lambda index, result: None,
    ) -> list[Result]:
        """Send each request whose answer is not kept; return one result for each.

        Calls `report` with the index of each request and its result.
        """
        if not requests:
            return []
        fatal: LLMError | None = None
        loading = Lock()

        def load() -> None:
            nonlocal fatal
            with loading:
                if fatal:
                    raise fatal
                try:
                    self._load(step, model)
                except LLMError as error:
                    fatal = error
                    raise

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
                answer = self._answer(step, model, number, request, images, load)
            except LLMError as error:
                if self.rules.stop_on_error or isinstance(error, FATAL_ERRORS):
                    fatal = fatal or error
                return finish(number, Result(error=error))
            return finish(number, Result(answer=answer))

        stage = step.stage
        self.watcher.stage(title, stage.model, len(requests))
        numbers = range(len(requests))
        with EncodedAhead([request.images for request in requests], stage.settings) as images:
            try:
                model = self._usable(step, requests)
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
        if kept := sum(result.answer is not None and result.answer.kept for result in results):
            self.watcher.kept(title, kept, len(requests))
        return results

    def rewrite(
        self,
        step: _Step,
        descriptions: Sequence[Result],
        job: Job,
        report: Callable[[int, Caption], None],
    ) -> list[Caption]:
        """Rewrite the descriptions that are answers; return one caption for each."""
        captions = [
            Caption(description=result, refined=result if result.error else None)
            for result in descriptions
        ]
        requests = rewrite_requests(descriptions, job)
        for index in {*range(len(captions))} - {request.index for request in requests}:
            report(index, captions[index])

        def rewritten(index: int, result: Result) -> None:
            captions[index] = replace(captions[index], refined=result)
            report(index, captions[index])

        self.stage("rewrite", step, requests, rewritten)
        return captions

    def _usable(self, step: _Step, requests: Sequence[Request]) -> Model:
        """Return the step's model, if it can do what the step asks for."""
        if all(request.error for request in requests) and (error := requests[0].error):
            raise error
        backend, settings = step.backend, step.stage.settings
        model = self.find(step)
        if any(request.images for request in requests) and model.lacks("vision"):
            raise NoVision(model.name, backend.server)
        think_value(model, settings.think_value, backend.server)
        if model.note:
            self._note(model.note)
        # "off" is the default.
        think = {} if settings.think == "off" else {"think": settings.think}
        if ignored := backend.ignored({**settings.model_options, **think}):
            self._note(
                f"{capital(backend.server.title)} does not take {', '.join(ignored)}: left out."
            )
        return model

    def _load(self, step: _Step, model: Model) -> None:
        """Load a model, unless this run has loaded it, or it is a cloud model."""
        backend, settings = step.backend, step.stage.settings
        if model.remote_host or any(step.uses(b.server, other.name) for b, other in self.loaded):
            return
        if self.memory is not None:
            self.memory.before(backend, model, settings, cancelled=self.watcher.cancelled)
        self.loaded.append((backend, model))
        self.watcher.loading(model.name)
        self._request(
            step,
            lambda: backend.load(
                model.name,
                options=self._options(step, model),
                keep_alive=self.keep_alive_s,
                timeout_s=settings.timeout_s,
                parallel=settings.parallel,
                cancelled=self.watcher.cancelled,
            ),
            model,
        )

    def _with_model(self, step: _Step) -> _Step:
        """Return the step; if its model is "auto" and the server answers, with a chosen model."""
        if step.stage.model != AUTO:
            return step
        try:
            name = self._choose(step).name
        except LLMError:
            return step  # the stage will get the same error and report it
        return step._replace(stage=replace(step.stage, model=name))

    def find(self, step: _Step) -> Model:
        """Return the step's model, installed or chosen."""
        backend, name = step.backend, step.stage.model
        if name == AUTO:
            return self._choose(step)
        models = self._list(step)
        try:
            return self._request(
                step, lambda: backend.find(name, self.watcher.cancelled, models=models)
            )
        except ModelNotFound as error:
            error.instead = instead_of(self._show_all(step), step.capability)
            raise

    def _choose(self, step: _Step) -> Model:
        backend = step.backend
        url = backend.server.url
        models = self._show_all(step)
        loaded: list[str] = []
        with suppress(LLMError):  # the choice works without the list of loaded models
            loaded = [model.name for model in backend.ps(self.watcher.cancelled)]
        chosen = choose(
            models,
            step.capability,
            loaded=[m.name for m in models if any(backend.same_model(m.name, n) for n in loaded)],
            last=last_used(url, step.capability),
            room_bytes=None if self.memory is None else self.memory.room_bytes(backend),
        )
        if chosen is None:
            raise NoModel(_CALLED[step.capability], backend.server)
        self._note(f'"{AUTO}" chose {chosen.name} for {_CALLED[step.capability]}.')
        return chosen

    def _note(self, text: str) -> None:
        """Pass a note to the watcher, unless the run has passed it before."""
        if text not in self.noted:
            self.noted.add(text)
            self.watcher.note(text)

    def _list(self, step: _Step) -> Sequence[Model]:
        server = step.backend.server
        if server not in self.installed:
            listed = self._request(step, lambda: step.backend.list(self.watcher.cancelled))
            self.installed[server] = listed
        return self.installed[server]

    def _show_all(self, step: _Step) -> Sequence[Model]:
        show = step.backend.show
        models = self._list(step)
        return [self._request(step, lambda m=m: show(m, self.watcher.cancelled)) for m in models]

    def _answer(
        self,
        step: _Step,
        model: Model,
        number: int,
        request: Request,
        images: EncodedAhead,
        load: Callable[[], None],
    ) -> Answer:
        """Return the kept answer to a request; without one, load the model and ask it."""
        settings = step.stage.settings
        encoded = images.take(number)
        if self.watcher.cancelled():  # a kept answer takes no request that would notice
            raise Cancelled
        answer = key = None
        if self.kept is not None:
            key = answer_key(
                model,
                step.backend.server,
                _with_images(request.messages, encoded),
                options=_seeded(_chosen_options(step.stage), request),
                think=think_value(model, settings.think_value, step.backend.server),
                format=settings.format,
                rules=[settings.must, settings.must_not],
            )
            answer = self.kept.get(key)
        if answer is None:
            load()
            answer = self._chat(step, model, number, request, encoded)
            answer = self._repaired(step, model, number, request, encoded, answer)
            if self.kept is not None and key is not None and not _broken(step, request, answer):
                self.kept.put(key, answer)
        remember(step.backend.server.url, step.capability, model.name)
        if answer.remark:
            log.warning("%s, answer %d: %s", model.name, number + 1, answer.remark)
        if problem := _broken(step, request, answer):
            self._note(f"Text {number + 1} {problem}. The model did not correct it.")
        return replace(answer, text=_output_text(step, request, answer), model=model.name)

    def _chat(
        self, step: _Step, model: Model, number: int, request: Request, images: list[str]
    ) -> Answer:
        """Return the model's answer to a request; retry a too long one with smaller images."""
        settings = step.stage.settings
        try:
            return self._send(step, model, number, request, images)
        except ContextTooLong:
            if not request.images or settings.max_image_side <= RETRY_SIDE_PX:
                raise
        smaller = encode_all(request.images, replace(settings, max_image_side=RETRY_SIDE_PX))
        return self._send(step, model, number, request, smaller)

    def _repaired(
        self,
        step: _Step,
        model: Model,
        number: int,
        request: Request,
        images: list[str],
        answer: Answer,
    ) -> Answer:
        """Return an answer, after one more request if it breaks the rules for its words."""
        problem = _broken(step, request, answer)
        if not problem:
            return answer
        repair = (
            Message(role="assistant", content=answer.text),
            Message(role="user", content=wording.repair_request(problem)),
        )
        try:
            return self._send(step, model, number, request, images, repair)
        except LLMError:
            return answer  # an answer that breaks a rule is better than none

    def _send(
        self,
        step: _Step,
        model: Model,
        number: int,
        request: Request,
        images: list[str],
        more: Sequence[Message] = (),
    ) -> Answer:
        """Return the answer to a request, followed by `more` messages."""
        backend, settings = step.backend, step.stage.settings
        messages = [*_with_images(request.messages, images), *more]
        options = _seeded(self._options(step, model), request)
        think = think_value(model, settings.think_value, backend.server)
        left_out = backend.ignored({**options, "think": think})
        sent = Sent(
            server=f"{backend.server.name} ({backend.server.product})",
            model=model.name,
            messages=messages,
            options={name: value for name, value in options.items() if name not in left_out},
            think=None if "think" in left_out else think,
            format=settings.format,
        )
        self.watcher.sent(number, sent)
        return self._request(
            step,
            lambda: collect(
                backend.chat(
                    model.name,
                    messages,
                    options=options,
                    think=think,
                    format=settings.format,
                    keep_alive=None if model.remote_host else self.keep_alive_s,
                    timeout_s=settings.timeout_s,
                    cancelled=self.watcher.cancelled,
                ),
                lambda piece: self.watcher.token(number, piece),
            ),
            model,
        )

    def _request(self, step: _Step, request: Callable[[], T], model: Model | None = None) -> T:
        """Return what `request` returns; retry after a temporary failure.

        If the server runs out of memory for `model`, free memory and retry, once per run.
        """
        backend = step.backend

        def make_room() -> bool:
            if model is None or self.memory is None or self.has_made_room:
                return False
            self.has_made_room = True
            log.info("Making room for %s", model.name)
            return self.memory.out_of_memory(backend, model, step.stage.settings) > 0

        return with_retries(
            request,
            backend.retries,
            answered=backend.server in self.installed,
            cancelled=self.watcher.cancelled,
            on_retry=lambda error, pause_s: self.watcher.waiting(_briefly(error), pause_s),
            make_room=make_room,
        )

    def _options(self, step: _Step, model: Model) -> dict[str, Any]:
        """Return the stage's options, with the same num_ctx for a model in the whole run.

        A server reloads the model if num_ctx changes.
        """
        options = _chosen_options(step.stage)
        if options.get("num_ctx") is not None:
            return options
        sizes = [
            context_size(
                characters=other.most_chars,
                images=other.images,
                num_predict=int(other.stage.options.get("num_predict", 0)),
                longest=model.context_length,
            )
            for other in self.steps
            if other is step or other.uses(step.backend.server, model.name)
        ]
        return options | {"num_ctx": max(sizes)}


def _chosen_options(stage: Stage) -> dict[str, Any]:
    """Return the options that are sent, but for a num_ctx that the run computes."""
    return {"num_predict": DEFAULT_NUM_PREDICT} | dict(stage.options)


def _output_text(step: _Step, request: Request, answer: Answer) -> str:
    cleans = request.clean and step.stage.settings.format is None
    return prompts.clean(answer.text) if cleans else answer.text


def _broken(step: _Step, request: Request, answer: Answer) -> str:
    """Return what is wrong with the words of an answer as it will be output, or ""."""
    settings = step.stage.settings
    return wording.broken(_output_text(step, request, answer), settings.must, settings.must_not)


def _seeded(options: dict[str, Any], request: Request) -> dict[str, Any]:
    return options if request.seed is None else options | {"seed": request.seed}


def _with_images(messages: Sequence[Message], images: list[str]) -> list[Message]:
    if not images:
        return list(messages)
    return [*messages[:-1], {**messages[-1], "images": images}]


def _briefly(error: LLMError) -> str:
    if isinstance(error, ServerUnreachable):
        return "the server does not answer yet"
    return "the server is busy" if isinstance(error, ServerBusy) else "the connection broke"


def _filled(prompts: Sequence[str], longest_value: int) -> int:
    """Return how many characters placeholders may add to a prompt."""
    return longest_value * len(used_in(prompts))


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts))
