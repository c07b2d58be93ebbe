"""Write WebDataset shards: tar files with image, caption and JSON of each key side by side."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path

MAX_SAMPLES = 10_000
MAX_BYTES = 1_000_000_000
"""Of a shard; one that has a single image may be larger."""

_SHARD = re.compile(r"[0-9]{6}\.tar")

Sample = Mapping[str, bytes]
"""The files of one key, by their endings."""


def holds_others(folder: Path) -> bool:
    """Return whether a folder has anything but shards in it."""
    if not folder.is_dir():
        return folder.exists()
    return not all(map(_SHARD.fullmatch, os.listdir(folder)))


def write_shards(folder: Path, samples: Iterable[Sample]) -> None:
    """Write a folder of shards, all or none: 000000.tar, 000001.tar and so on.

    The keys are numbers: names of files may have dots, which end a key, or differ in folders only.

    Raises:
        OSError: one cannot be written.
    """
    draft, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    _remove(draft)
    draft.mkdir(parents=True)
    try:
        _write(draft, samples)
        _remove(old)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    finally:
        _remove(draft)
    _remove(old)


def _write(folder: Path, samples: Iterable[Sample]) -> None:
    for shard, group in groupby(_numbered(samples), key=itemgetter(0)):
        file = folder / f"{shard:06}.tar"
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for _, number, sample in group:
                for ending, data in sample.items():
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                tar.members.clear()  # it keeps all  # pyright: ignore[reportAttributeAccessIssue]


def _numbered(samples: Iterable[Sample]) -> Iterator[tuple[int, int, Sample]]:
    """Yield each sample with the number of its shard and its own."""
    shard = count = size = 0
    for number, sample in enumerate(samples):
        more = sum(map(len, sample.values()))
        if count and (count == MAX_SAMPLES or size + more > MAX_BYTES):
            shard, count, size = shard + 1, 0, 0
        count, size = count + 1, size + more
        yield shard, number, sample


def _remove(folder: Path) -> None:
    """Remove a folder with the shards in it."""
    if folder.exists():
        for name in filter(_SHARD.fullmatch, os.listdir(folder)):
            (folder / name).unlink()
        folder.rmdir()
