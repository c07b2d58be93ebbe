"""The job of tools/soak.py: `image-refinery batch` over images that arrive in each run.

Import this only after the pack.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from image_refinery.captioning.kept import FILE_NAME
from image_refinery.cli.main import main
from image_refinery.cli.terminal import CANCELLED, FAILED
from image_refinery.files.captions import one_line
from image_refinery.jobs.directory import MANIFEST
from image_refinery.jobs.rows import DONE, FOLDER
from PIL import Image

IMAGES_PER_RUN = 5
IMAGES_PER_JOB = 100
LAST_CALLS = 3
OUTCOMES = {0: "answer", FAILED: "error message", CANCELLED: "cancel"}
TASKS = {
    "describe": ["--task", "describe"],
    "caption": ["--task", "caption", "--instructions", "Shorten it.", "--text-model", "llama3.2"],
}

Options = dict[str, list[str]]
"""Options of the command without their dashes, and their values."""


class BatchJob:
    """Jobs of the command `batch`, one after another, and what can go wrong with them.

    Each run adds images and calls the command. What a call left undone, the next call does. When a
    job has all its images, calls without a fault retry what failed. Then the job is checked, and
    the next one begins.

    Args:
        top: an empty folder, for the images and the job's directory.
        before_last: called before the last calls of a job.
    """

    def __init__(self, top: Path, before_last: Callable[[], object]) -> None:
        self._images, self._job = top / "images", top / "job"
        self._before_last = before_last
        self._repairs: list[Callable[[], object]] = []
        self._random_pixels = np.random.default_rng(0)
        self._begin()

    def options(self, chance: random.Random) -> Options:
        """Add images, and return the options of a call."""
        if not self._names:
            self._task = chance.choice(list(TASKS))
        for _ in range(IMAGES_PER_RUN):
            name = f"{len(self._names):03}.{chance.choice(['png', 'jpg', 'webp'])}"
            pixels = self._random_pixels.integers(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(self._images / name)
            self._names.append(name)
        given: Options = {"parallel": [chance.choice("114")]}
        if chance.random() < 0.5:
            given["retry-failed"] = []
        if chance.random() < 0.5:
            given["chunk"] = ["2"]
        return given

    def call(self, options: Options) -> str:
        """Call the command, and return its outcome."""
        arguments = ["batch", str(self._images), "--job", str(self._job), *TASKS[self._task]]
        arguments += ["--vision-model", "llava", "--out", "txt,jsonl"]
        for name, values in options.items():
            arguments += [f"--{name}", *values]
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as self._messages:
            return OUTCOMES[main(arguments)]

    def faults(self) -> dict[str, Callable[[random.Random], Options]]:
        """Return the faults of a job."""
        return {
            "a damaged file of kept answers": self._damage_answers,
            "a damaged image": self._damage_image,
            "a damaged manifest of the job": self._damage_manifest,
            "half a row, as after a power cut": self._add_half_row,
            "a job that another process works on": self._hold,
            "other settings than before": self._change_seed,
            "a caption that was deleted": self._delete_caption,
            "a folder in place of a caption": self._put_folder,
            "a missing model": lambda chance: {"vision-model": ["gone"]},
        }

    def after(self) -> None:
        """Repair what a fault left; check a whole job, and begin the next."""
        while self._repairs:
            self._repairs.pop()()
        if len(self._names) == IMAGES_PER_JOB:
            self._before_last()
            # More than one call: on a busy machine a time-out may be missed without a fault.
            outcomes = (self.call({"retry-failed": []}) for _ in range(LAST_CALLS))
            assert "answer" in outcomes, self._messages.getvalue()
            self._check()
            self._begin()

    def _begin(self) -> None:
        for folder in (self._images, self._job):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._names: list[str] = []

    def _check(self) -> None:
        """Raise AssertionError unless each image has one result, and nothing else is there."""
        rows = [row for file in (self._job / FOLDER).iterdir() for row in _whole_lines(file)]
        texts = {row["id"]: one_line(row["text"]) for row in rows if row["status"] == DONE}
        done = Counter(row["id"] for row in rows if row["status"] == DONE)
        assert done == Counter(self._names), "images without a result, or with two"
        lines = {line["file_name"]: line["text"] for line in _whole_lines(self._metadata)}
        assert lines == texts, "metadata.jsonl differs from the rows"
        assert len(_whole_lines(self._metadata)) == len(texts), "an image has two lines"
        captions = {f"{Path(name).stem}.txt": text for name, text in texts.items()}
        found = {file.name: file for file in self._images.iterdir()}
        assert found.keys() == {*self._names, *captions}, "a foreign file, or a missing caption"
        for name, text in captions.items():
            assert found[name].read_text("utf-8") == text, f"{name} differs from its row"

    @property
    def _metadata(self) -> Path:
        return self._job / "metadata.jsonl"

    def _damage_answers(self, _: random.Random) -> Options:
        (self._job / FILE_NAME).write_bytes(b"not a database " * 99)
        return {}

    def _damage_image(self, _: random.Random) -> Options:
        image = self._images / self._names[-1]
        data = image.read_bytes()
        image.write_bytes(data[: len(data) // 2])
        self._repairs.append(lambda: image.write_bytes(data))
        return {}

    def _damage_manifest(self, _: random.Random) -> Options:
        manifest = self._job / MANIFEST
        data = manifest.read_bytes() if manifest.exists() else None
        manifest.write_bytes(b"{")
        self._repairs.append(lambda: manifest.write_bytes(data) if data else manifest.unlink())
        return {}

    def _change_seed(self, _: random.Random) -> Options:
        return {"seed": ["2"]} if (self._job / MANIFEST).exists() else {}

    def _add_half_row(self, _: random.Random) -> Options:
        for file in (self._job / FOLDER).glob("*.jsonl"):
            with file.open("ab") as rows:
                rows.write(b'{"id": "00')
        return {}

    def _hold(self, _: random.Random) -> Options:
        lock = FileLock(self._job / "lock")
        lock.acquire()
        self._repairs.append(lock.release)
        return {}

    def _delete_caption(self, chance: random.Random) -> Options:
        (self._images / chance.choice(self._names)).with_suffix(".txt").unlink(missing_ok=True)
        return {}

    def _put_folder(self, _: random.Random) -> Options:
        folder = (self._images / self._names[-1]).with_suffix(".txt")
        folder.mkdir()
        self._repairs.append(folder.rmdir)
        return {"existing": ["overwrite"]}


def _whole_lines(file: Path) -> list[Any]:
    """Return the values of the lines that are JSON."""
    found: list[Any] = []
    for line in file.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
