"""The jobs of a run and their results, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..llm.backend import Answer, Message
from ..llm.errors import LLMError, NoPrompt, UnusableImage
from . import placeholders, prompts
from .options import StageOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

ImageSource = Callable[[], "Image.Image | NDArray[np.uint8]"]
"""Returns an image when it is needed, so that a folder of thousands never has to fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A model, the options sent to it, and how it is used.

    Attributes:
        model: name, as the server lists it, or "auto" (`llm.choice`).
        options: by Ollama's own names. If num_ctx is missing, the run chooses it. If num_predict is
            missing, it is 1024, so that every answer ends.
        settings: the rest of Ollama Options.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: StageOptions = field(default_factory=StageOptions)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Settings of a whole run.

    Attributes:
        keep_loaded_s: seconds that models stay loaded after their stage; 0: unload each.
        clean: clean up the generated text (`prompts.clean`).
        stop_on_error: raise the first error; else an error is the result of its image.
    """

    keep_loaded_s: float = 0.0
    clean: bool = True
    stop_on_error: bool = False


@dataclass(frozen=True, kw_only=True)
class Job(Rules):
    """Images to describe, and optionally descriptions to rewrite.

    Attributes:
        vision: stage one.
        text: stage two; None: descriptions only.
        instructions: for stage two, one for each description (a shorter list repeats its last
            entry); a blank one skips stage two for its image.
        custom_prompts: for stage one, paired in the same way; blank: the default request.
        one_question: all images in one request, one description.
        seeds: for each image, in place of the seed in the stages' options; an empty list: none.
        about: for each image, the values of the placeholders in instructions and custom prompts
            (`placeholders.NAMES`); an empty list: there are none.
    """

    vision: Stage
    text: Stage | None = None
    instructions: Sequence[str] = ("",)
    custom_prompts: Sequence[str] = ("",)
    one_question: bool = False
    seeds: Sequence[int] = ()
    about: Sequence[Mapping[str, str]] = ()

    def seed(self, index: int) -> int | None:
        """Return the seed of image `index`; None: that of the stage."""
        return self.seeds[index] if index < len(self.seeds) else None

    def filled(self, text: str, index: int) -> str:
        """Return a prompt of image `index`, with its placeholders filled."""
        return placeholders.fill(text, self.about[index]) if index < len(self.about) else text


@dataclass(frozen=True, kw_only=True)
class TextJob(Rules):
    """Texts to process.

    Attributes:
        stage: the one stage.
        texts: the material, one for each request.
        instructions: one for each request. If the lists differ in length, the shorter one repeats
            its last entry. If either the text or the instructions are blank, the other is the whole
            prompt.
    """

    stage: Stage
    texts: Sequence[str]
    instructions: Sequence[str] = ("",)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One chat to send.

    Attributes:
        index: of the image or text in the job.
        messages: without images.
        images: sent with the last message.
        seed: in place of the stage's; None: that.
        clean: clean up the answer (`prompts.clean`).
        error: why the request cannot be sent.
    """

    index: int
    messages: Sequence[Message] = ()
    images: Sequence[ImageSource] = ()
    seed: int | None = None
    clean: bool = False
    error: LLMError | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one request: an answer, or an error."""

    answer: Answer | None = None
    error: LLMError | None = None

    @property
    def text(self) -> str:
        """The text of the answer; "" for an error."""
        return self.answer.text if self.answer else ""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The result of one image: `refined` is None if there was no second stage for it.

    If the description failed, both results have its error.
    """

    description: Result
    refined: Result | None = None

    @property
    def final(self) -> Result:
        """The last result of the two."""
        return self.refined or self.description


def vision_requests(images: Sequence[ImageSource], job: Job) -> list[Request]:
    """Return one request per image, or one for all of them with `one_question`."""
    groups = [list(images)] if job.one_question else [[image] for image in images]
    custom = spread(job.custom_prompts, len(groups))
    return [
        Request(
            index=index,
            messages=prompts.vision_messages(job.filled(custom[index], index)),
            images=group,
            seed=job.seed(index),
        )
        if group
        else Request(
            index=index,
            error=UnusableImage("There is no image to describe: the batch is empty."),
        )
        for index, group in enumerate(groups)
    ]


def rewrite_requests(descriptions: Sequence[Result], job: Job) -> list[Request]:
    """Return one request for each successful description that has instructions."""
    instructions = [
        job.filled(text, index)
        for index, text in enumerate(spread(job.instructions, len(descriptions)))
    ]
    return [
        Request(
            index=index,
            messages=prompts.rewrite_messages(result.text, instructions[index]),
            seed=job.seed(index),
            clean=job.clean,
        )
        for index, result in enumerate(descriptions)
        if result.answer and instructions[index].strip()
    ]


def text_pairs(job: TextJob) -> list[tuple[str, str]]:
    """Return the pairs of text and instructions, as many as the longer list has entries."""
    count = max(len(job.texts), len(job.instructions))
    return list(zip(spread(job.texts, count), spread(job.instructions, count), strict=True))


def text_requests(job: TextJob) -> list[Request]:
    """Return one request for each pair of text and instructions."""
    return [_text_request(index, *pair, job.clean) for index, pair in enumerate(text_pairs(job))]


def _text_request(index: int, text: str, instructions: str, clean: bool) -> Request:
    try:
        messages = prompts.process_messages(text, instructions)
        return Request(index=index, messages=messages, clean=clean)
    except NoPrompt as error:
        return Request(index=index, error=error)


def spread(values: Sequence[str], count: int) -> list[str]:
    """Return `count` values, repeating the last one, like ComfyUI with a shorter list."""
    return [values[min(index, len(values) - 1)] for index in range(count)]
