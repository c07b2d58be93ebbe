"""What the nodes that ask a server do around a run: cancel, errors, and what the node shows.

Imported when a node runs: ComfyUI's start does not need what a run needs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from .. import memory
from .._advice import remark, with_advice
from ..captioning.job import Result
from ..captioning.placeholders import used_in
from ..files import OutsideFolder, UnreadableImage, about_file, inside
from ..llm.backend import Answer
from ..llm.errors import BadRequest, Cancelled, LLMError
from . import host
from .llm_inputs import ON_ERROR, ErrorText

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_SHOWN_LINES = 6


class NodeRun:
    """One run of a node.

    Attributes:
        watcher: shows the run on its node, and knows of the user's cancel.
        error: what ended the whole run, or None.
    """

    def __init__(self, node: type[io.ComfyNode], stages: int) -> None:
        self.watcher = host.NodeWatcher(host.node_id(node), stages)
        self.error: LLMError | None = None
        self._node = node
        self._started = time.monotonic()

    def finish(
        self, verb: str, noun: str, results: Sequence[Result], *earlier: Sequence[Result]
    ) -> dict[str, list[str]]:
        """Show what the run did, and keep a run with an error out of ComfyUI's cache.

        Args:
            verb, noun: what the node did to each, such as "described" and "image".
            results: one for each text of the run.
            earlier: results of the stages before, which may have been cut as well.

        Returns:
            What the page marks the node for: part of the node's `ui`.
        """
        failed = [result.error for result in results if result.error]
        errors = [_message(error) for error in failed]
        everything = [result for stage in (*earlier, results) for result in stage]
        remarks = [remark(r.answer, host.PAGE) for r in everything if r.answer and r.answer.remark]
        if errors:
            host.count_failed_run(self._node)
        for error in {error.code: error for error in failed}.values():
            host.note_error(self._node, error)
        for error in dict.fromkeys(errors):
            log.warning("%s: %s", self._node.__name__, error)
        summary = _summary(verb, noun, results, time.monotonic() - self._started)
        # What many results share is shown once.
        tokens = host.token_line([result.text for result in results if result.answer])
        lines = [summary, *dict.fromkeys([*errors, *remarks, *self.watcher.notes, tokens])]
        host.show(host.node_id(self._node), *filter(None, lines[:_SHOWN_LINES]))
        return {"failed": lines[:2]} if errors else {}


@contextmanager
def running(node: type[io.ComfyNode], on_error: str, stages: int = 1) -> Iterator[NodeRun]:
    """Give the run of a node. A cancel ends the node, and so does an error if `on_error` says so.

    Any other error is the run's `error`.
    """
    run = NodeRun(node, stages)
    try:
        memory.finish_pending_unloads(host.interrupted)
        yield run
    except Cancelled:
        run.watcher.show_cancelled()
        host.stop()
    except (LLMError, host.BadInput) as error:
        if isinstance(error, LLMError):
            run.error = error
        else:
            run.error = BadRequest(str(error))
            run.error.code = error.code
        if on_error == ON_ERROR[1]:
            # Where the page hides errors behind a button, "describe with ..." would stay.
            host.show(host.node_id(node), _message(run.error))
            host.note_error(node, run.error)
            error.args = (with_advice(run.error, host.PAGE),)
            raise
    finally:
        run.watcher.show_sent()


def to_texts(results: Sequence[Result]) -> list[str]:
    """Return the texts of results, errors as their messages."""
    return [_message(result.error) if result.error else result.text for result in results]


def models_of(*stages: Sequence[Result]) -> list[str]:
    """Return the names of the models that answered, for the history of the run."""
    names = [result.answer.model for stage in stages for result in stage if result.answer]
    return list(dict.fromkeys(names))


def about_images(
    images: Sequence[torch.Tensor], names: Sequence[str], prompts: Sequence[str], run: NodeRun
) -> list[dict[str, str]]:
    """Return the values of the placeholders in prompts, for each image.

    Args:
        images: each (1, H, W, C).
        names: of their files inside ComfyUI's input folder; blank: not known.

    Raises:
        BadInput: a file cannot be read, or the names are not as many as the images.
    """
    used = used_in(prompts)
    if not used:
        return []
    sizes = [{"width": str(one.shape[2]), "height": str(one.shape[1])} for one in images]
    if not any(name.strip() for name in names):
        for name in sorted(used - {"width", "height"}):
            run.watcher.note(f"{{{name}}} was left as it is: connect names to fill it in.")
        return sizes
    if len(names) != len(images):
        raise host.BadInput(
            f"names has {len(names)} entries for {len(images)} images. Connect both outputs of the "
            "same Load Images From Folder."
        )
    folder = Path(folder_paths.get_input_directory())
    try:
        return [
            about_file(inside(folder, name)) | size for name, size in zip(names, sizes, strict=True)
        ]
    except (UnreadableImage, OutsideFolder) as error:
        raise host.BadInput(f"names: {error}") from error


def recorded(
    node: type[io.ComfyNode], run: NodeRun, count: int, outputs: Mapping[str, str]
) -> list[list[Result]]:
    """Return the results that a workflow brought for a node.

    Args:
        count: how many texts each output needs.
        outputs: the names of outputs, and of the entries that have their models' names.

    Raises:
        BadInput: there are none, or of another number.
    """
    words = host.recorded_words(node)
    stages: list[list[Result]] = []
    for output, model in outputs.items():
        texts = words.get(output)
        if not texts:
            raise host.BadInput(
                "There are no recorded words for this node. Open an image or a workflow that has "
                "them, or turn use recorded words off."
            )
        there = [text for text in texts if text is not None]
        if len(there) != count:
            raise host.BadInput(
                f"The recorded words are {len(there)} texts, but {count} are needed. Turn use "
                "recorded words off to ask the model."
            )
        name = (words.get(model) or [""])[0] or ""
        stages.append([Result(answer=Answer(text=t, model=name, kept=True)) for t in there])
    run.watcher.note("These words were recorded in this workflow. No server was asked.")
    return stages


def record(
    node: type[io.ComfyNode], stages: Mapping[str, Sequence[Result]], outputs: Mapping[str, str]
) -> dict[str, list[host.Words]]:
    """Put the words of a run into what is saved of it, unless none has come.

    Args:
        stages: results by the names of outputs.
        outputs: as `recorded`.

    Returns:
        The words for the page: part of the node's `ui`.
    """
    if not any(result.answer for results in stages.values() for result in results):
        return {}
    words: host.Words = {}
    for output, results in stages.items():
        words[output] = [result.text if result.answer else None for result in results]
        words[outputs[output]] = [*models_of(results)]
    return {"words": [host.record_words(node, words)]}


def _message(error: LLMError) -> ErrorText:
    return ErrorText(f"Error: {with_advice(error, host.PAGE)}")


def _summary(verb: str, noun: str, results: Sequence[Result], seconds: float) -> str:
    count = len(results)
    good = sum(result.error is None for result in results)
    if count and not good:
        return f"{count} of {count} failed after {seconds:.1f} s."
    what = f"{count} {noun}" if count == 1 else f"{count} {noun}s"
    if good < count:
        what = f"{good} of {what}"
    return f"{verb} {what} in {seconds:.1f} s."
