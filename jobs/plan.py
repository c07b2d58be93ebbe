"""What a job's answers depend on, found before its first image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..captioning.events import Watcher
from ..captioning.job import Job, Stage
from ..captioning.run import find_model
from ..llm.choice import AUTO
from ..llm.servers import split_model
from .captions import Worker
from .directory import JobError

PROMPT_FORMAT = 1
"""Changes when the pack words its requests in another way."""


def with_models(
    job: Job,
    workers: Sequence[Worker],
    before: Mapping[str, Any],
    watcher: Watcher,
    *,
    allow_mixed: bool = False,
) -> tuple[Job, list[Worker]]:
    """Return the job with the names of its models, and the workers with theirs.

    Args:
        before: fingerprint of the job so far: "auto" chooses the same models again.
        allow_mixed: whether servers may have different models under one name.

    Raises:
        JobError: two servers have different models under the name.
        Cancelled, LLMError: as `find_model`.
    """
    found: list[Worker] = list(workers)
    for name, capability in (("vision", "vision"), ("text", "completion")):
        stage: Stage | None = getattr(job, name)
        if stage is None:
            continue
        stage = replace(stage, model=split_model(stage.model)[0])
        if stage.model == AUTO and before.get(f"{name}_model"):
            stage = replace(stage, model=str(before[f"{name}_model"]))
        digests: dict[str, str] = {}
        for index, worker in enumerate(found):
            backend = getattr(worker, name)
            if backend is None:
                continue
            model = find_model(backend, stage, capability, memory=worker.memory, watcher=watcher)
            stage = replace(stage, model=model.name)
            found[index] = replace(worker, models={**worker.models, name: model})
            first = next(iter(digests.items()), None)
            if first and first[1] != model.digest and not allow_mixed:
                raise JobError(
                    f'The servers "{first[0]}" and "{worker.name}" have different models under '
                    f"the name {model.name}. Install the same one on both, use one of the two, or "
                    "add --allow-mixed."
                )
            digests[worker.name] = model.digest
        job = replace(job, **{name: stage})
    return job, found


def fingerprint(job: Job, workers: Sequence[Worker], **settings: Any) -> dict[str, Any]:
    """Return what the job's answers depend on, as JSON values by their names.

    Args:
        job: with the names of its models.
        settings: what else changes an answer, such as the seed.
    """
    found: dict[str, Any] = {
        **settings,
        "instructions": job.instructions[0] if job.text else "",
        "vision_prompt": job.custom_prompts[0],
        "prompt_format": PROMPT_FORMAT,
    }
    for name in ("vision", "text"):
        stage: Stage | None = getattr(job, name)
        digests = {worker.models[name].digest for worker in workers if name in worker.models}
        if stage is None or (workers and not digests):  # rewrites need no vision model
            continue
        found[f"{name}_model"] = stage.model
        found[f"{name}_digest"] = digests.pop() if len(digests) == 1 else "mixed"
        # What chooses a server or when to load changes no answer.
        changes = ("format", "think", "max_image_side", "lossless", "must", "must_not")
        settings_of_stage = {one: getattr(stage.settings, one) for one in changes}
        found[f"{name}_options"] = {**stage.options, **settings_of_stage}
    return found
