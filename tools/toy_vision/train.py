"""Train the toy vision model on images that training_images.py has drawn.

    python tools/toy_vision/train.py IMAGES CHECKPOINT --minutes 60

saves CHECKPOINT (safetensors) about every minute and resumes from it when it exists. Needs
torch and safetensors. The README says how the committed weights were trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import vocabulary
from model import ToyVision
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, autocast, nn
from torch.nn import Linear
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_images import PATCH_WORDS

BATCH = 64
# How strongly the patches' words count beside the sentence.
PATCH_WEIGHT = 0.4
NO_IMAGE_WEIGHT = 0.02
AVERAGING = 0.998
WARM_UP_STEPS = 200
SAVE_EVERY_S = 60.0
REPORT_STEPS = 100

Batch = tuple[Tensor, Tensor, Tensor]


class TrainingImages:
    """All shards of a folder; `refresh` reads those that were drawn since."""

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
            # Half of every batch is mirrored.
            as_is, mirrored = picked[: BATCH // 2], picked[BATCH // 2 :]
            pixels = [self._gather(as_is, "pixels"), self._gather(mirrored, "pixels").flip(2)]
            ids = [self._gather(as_is, "ids"), self._gather(mirrored, "mirrored_ids")]
            words = [self._gather(as_is, "patches"), self._gather(mirrored, "mirrored_patches")]
            yield torch.cat(pixels), torch.cat(ids).long(), torch.cat(words).long()

    def _gather(self, picked: list[tuple[int, int]], name: str) -> Tensor:
        return torch.from_numpy(np.stack([self.shards[s][name][i] for s, i in picked]))


class Trainee(nn.Module):
    """The model and, for training only, linear heads that name what covers each patch."""

    no_image: Tensor

    def __init__(self, model: ToyVision) -> None:
        super().__init__()
        self.model = model
        self.patch_heads = Linear(model.shape.width, sum(PATCH_WORDS))
        none = torch.tensor([[vocabulary.SCENE_ID, vocabulary.word_id(vocabulary.NO_IMAGE)]])
        self.register_buffer("no_image", none, persistent=False)

    def forward(self, pixels: Tensor, ids: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss on the sentences and the loss on the patches' words."""
        image = self.model.encode_image(pixels)
        shifted = torch.cat([torch.full_like(ids[:, :1], vocabulary.SCENE_ID), ids[:, :-1]], dim=1)
        sentence = _loss(self.model.logits(image, shifted), ids, vocabulary.PAD_ID)
        none = self.model.logits(None, self.no_image)
        answer = F.pad(self.no_image[:, 1:], (0, 1), value=vocabulary.EOS_ID)
        sentence = sentence + NO_IMAGE_WEIGHT * _loss(none, answer)
        heads = self.patch_heads(image).split(PATCH_WORDS, dim=-1)
        patch_losses = [_loss(head, patches[..., i]) for i, head in enumerate(heads)]
        return sentence, torch.stack(patch_losses).sum()


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


class Training:
    """Everything that one training run holds and that a checkpoint keeps."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.rate: float = arguments.rate
        self.bf16: bool = arguments.bf16
        self.checkpoint: Path = arguments.checkpoint
        self.trainee = Trainee(ToyVision())
        self.averaged = AveragedModel(
            self.trainee.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING)
        )
        self.steppers = optimizers(self.trainee, self.rate)
        self.parts = {"trainee": self.trainee, "averaged": self.averaged.module}
        self.step, self.spent_s = 0, 0.0
        if self.checkpoint.exists():
            self.step, self.spent_s = restore(self.checkpoint, self.parts, self.steppers)
        self.run = torch.compile(self.trainee) if arguments.compile else self.trainee

    def learn(self, batch: Batch, elapsed: float) -> Tensor:
        """Take one step; return the losses on the sentences and on the patches (2,)."""
        for group in (group for stepper in self.steppers for group in stepper.param_groups):
            group["lr"] = self.rate * rate_at(self.step, elapsed)
        with autocast("cpu", torch.bfloat16, enabled=self.bf16):
            sentence, patches = self.run(*batch)
        (sentence + PATCH_WEIGHT * patches).backward()
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        for stepper in self.steppers:
            stepper.step()
            stepper.zero_grad()
        self.averaged.update_parameters(self.trainee.model)
        self.step += 1
        return torch.stack([sentence.detach(), patches.detach()])

    def save(self) -> None:
        notes = {
            "step": str(self.step),
            "spent_s": str(self.spent_s),
            "shape": json.dumps(dataclasses.asdict(self.trainee.model.shape)),
        }
        save(self.checkpoint, self.parts, self.steppers, notes)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    training = Training(arguments)
    images = TrainingImages(arguments.images, seed=training.step)
    started, budget_s = time.monotonic() - training.spent_s, 60 * arguments.minutes
    saved, losses = time.monotonic(), []
    while training.spent_s < budget_s:
        print(f"{images.refresh():,} scenes", flush=True)
        for batch in images.epoch():
            losses.append(training.learn(batch, training.spent_s / budget_s))
            training.spent_s = time.monotonic() - started
            if training.step % REPORT_STEPS == 0:
                sentence, patches = torch.stack(losses).mean(0).tolist()
                losses = []
                place = f"{training.spent_s:6.0f} s step {training.step}"
                print(f"{place} sentence {sentence:.4f} patches {patches:.4f}", flush=True)
            if training.spent_s >= budget_s or time.monotonic() - saved > SAVE_EVERY_S:
                saved = time.monotonic()
                training.save()
            if training.spent_s >= budget_s:
                break


def save(
    path: Path,
    parts: dict[str, nn.Module],
    steppers: list[torch.optim.Optimizer],
    notes: dict[str, str],
) -> None:
    """Write weights and optimizer states as one safetensors file, all or nothing."""
    tensors = {f"{n}.{k}": v for n, part in parts.items() for k, v in part.state_dict().items()}
    for index, stepper in enumerate(steppers):
        for number, kept in stepper.state_dict()["state"].items():
            tensors |= {f"stepper.{index}.{number}.{key}": value for key, value in kept.items()}
    unfinished = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, notes)
    unfinished.replace(path)


def restore(
    path: Path, parts: dict[str, nn.Module], steppers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Read what `save` wrote into the same parts; return the step and the seconds spent."""
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    tensors = load_file(path)
    for name, part in parts.items():
        part.load_state_dict(_below(tensors, f"{name}."))
    for index, stepper in enumerate(steppers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, f"stepper.{index}.").items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        stepper.load_state_dict({**stepper.state_dict(), "state": state})
    return int(notes["step"]), float(notes["spent_s"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the toy vision model.")
    parser.add_argument("images", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="the whole training, in minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
