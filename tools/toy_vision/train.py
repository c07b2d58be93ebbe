"""Train the toy vision model on pictures that pictures.py has drawn.

    python tools/toy_vision/train.py PICTURES CHECKPOINT --minutes 60

saves CHECKPOINT about every minute and carries on from it when it is there. Needs torch. The
README says how the committed weights were trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import vocabulary
from model import Shape, ToyVision
from numpy.typing import NDArray
from pictures import PATCH_WORDS
from torch import Tensor, nn

BATCH = 64
# How strongly the patches' words count beside the sentence.
PATCH_WEIGHT = 0.4
NO_PICTURE_WEIGHT = 0.02
AVERAGING = 0.998
WARM_UP_STEPS = 200
SAVE_EVERY_S = 60.0

Batch = tuple[Tensor, Tensor, Tensor]


class Pictures:
    """All shards of a folder; `refresh` takes in those that were drawn since."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.read: set[str] = set()
        self.shards: list[dict[str, NDArray[np.generic]]] = []

    def refresh(self) -> int:
        """Read new shards and return how many scenes there are now."""
        for path in sorted(self.folder.glob("????????.npz")):
            if path.name not in self.read:
                with np.load(path) as shard:
                    self.shards.append({name: shard[name] for name in shard.files})
                self.read.add(path.name)
        return sum(len(shard["ids"]) for shard in self.shards)

    def epoch(self) -> Iterator[Batch]:
        """Yield every scene once, in batches, in random order."""
        count = self.refresh()
        size = len(self.shards[0]["ids"])
        order = self.random.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            picked = [divmod(int(i), size) for i in order[start : start + BATCH]]
            # Half of every batch is seen in a mirror.
            as_is, mirrored = picked[: BATCH // 2], picked[BATCH // 2 :]
            pixels = [self._gather(as_is, "pixels"), self._gather(mirrored, "pixels").flip(2)]
            ids = [self._gather(as_is, "ids"), self._gather(mirrored, "mirrored_ids")]
            words = [self._gather(as_is, "patches"), self._gather(mirrored, "mirrored_patches")]
            yield torch.cat(pixels), torch.cat(ids).long(), torch.cat(words).long()

    def _gather(self, picked: list[tuple[int, int]], name: str) -> Tensor:
        return torch.from_numpy(np.stack([self.shards[s][name][i] for s, i in picked]))


class Trainee(nn.Module):
    """The model and, for training only, linear heads that name what covers each patch."""

    def __init__(self, model: ToyVision) -> None:
        super().__init__()
        self.model = model
        self.patch_heads = nn.Linear(model.shape.width, sum(PATCH_WORDS))
        none = torch.tensor([[vocabulary.SCENE_ID, vocabulary.word_id(vocabulary.NO_PICTURE)]])
        self.register_buffer("no_picture", none, persistent=False)

    def forward(self, pixels: Tensor, ids: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on the sentences and the loss on the patches' words."""
        image = self.model.see(pixels)
        told = torch.cat([torch.full_like(ids[:, :1], vocabulary.SCENE_ID), ids[:, :-1]], dim=1)
        sentence = _loss(self.model.tell(image, told), ids, vocabulary.PAD_ID)
        none = self.model.tell(None, self.no_picture)
        answer = F.pad(self.no_picture[:, 1:], (0, 1), value=vocabulary.EOS_ID)
        sentence = sentence + NO_PICTURE_WEIGHT * _loss(none, answer)
        heads = self.patch_heads(image).split(PATCH_WORDS, dim=-1)
        seen = [_loss(head, patches[..., i]) for i, head in enumerate(heads)]
        return sentence, torch.stack(seen).sum()


def _loss(logits: Tensor, wanted: Tensor, ignored: int = -100) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=ignored)


def optimizers(trainee: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for all the rest."""
    blocks = [*trainee.model.vision.parameters(), *trainee.model.text.parameters()]
    matrices = [p for p in blocks if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in trainee.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate_at(step: int, elapsed: float) -> float:
    """Return the share of the full learning rate: warm-up, then a cosine over elapsed 0 to 1."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, elapsed))))


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    trainee = Trainee(ToyVision())
    averaged = torch.optim.swa_utils.AveragedModel(
        trainee.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGING)
    )
    steppers = optimizers(trainee, arguments.rate)
    step, spent = 0, 0.0
    if arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True)
        step, spent = state["step"], state["spent_s"]
        trainee.load_state_dict(state["trainee"])
        averaged.module.load_state_dict(state["averaged"])
        for stepper, kept in zip(steppers, state["steppers"], strict=True):
            stepper.load_state_dict(kept)
    pictures = Pictures(arguments.pictures, seed=step)
    run = torch.compile(trainee) if arguments.compile else trainee
    started, budget, saved = time.monotonic() - spent, 60 * arguments.minutes, time.monotonic()
    sums = torch.zeros(2)
    while True:
        print(f"{pictures.refresh():,} scenes", flush=True)
        for batch in pictures.epoch():
            spent = time.monotonic() - started
            for stepper, group in ((s, g) for s in steppers for g in s.param_groups):
                group["lr"] = arguments.rate * rate_at(step, spent / budget)
            with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
                sentence, seen = run(*batch)
            (sentence + PATCH_WEIGHT * seen).backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            averaged.update_parameters(trainee.model)
            sums += torch.stack([sentence.detach(), seen.detach()])
            step += 1
            if step % 100 == 0:
                told, patches = (sums / 100).tolist()
                sums.zero_()
                line = f"{spent:6.0f} s step {step} sentence {told:.4f} patches {patches:.4f}"
                print(line, flush=True)
            if spent >= budget or time.monotonic() - saved > SAVE_EVERY_S:
                saved = time.monotonic()
                _save(arguments.checkpoint, trainee, averaged.module, steppers, step, spent)
            if spent >= budget:
                return


def _save(
    path: Path,
    trainee: Trainee,
    averaged: nn.Module,
    steppers: list[torch.optim.Optimizer],
    step: int,
    spent: float,
) -> None:
    state = {
        "shape": dataclasses.asdict(trainee.model.shape),
        "step": step,
        "spent_s": spent,
        "trainee": trainee.state_dict(),
        "averaged": averaged.state_dict(),
        "steppers": [stepper.state_dict() for stepper in steppers],
    }
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="the whole training, in minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
