"""What other programs read of a job, made from its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import UnreadableImage
from ..files.captions import caption_file, one_line
from ..files.folders import IMAGE_SUFFIXES
from ..files.whole import draft_of, written_whole
from ..texts.characters import whole_characters
from .directory import JobError, add_own_places, own_places
from .items import Item, is_inside
from .rows import DONE, Row, Rows
from .shards import Sample, holds_others, write_shards
from .tables import import_pyarrow, write_parquet

KINDS = ("txt", "jsonl", "parquet", "wds")

_COLUMNS = (
    "file_name", "text", "description", "vision_model", "text_model", "flags", "status", "error",
)  # fmt: skip


_CLOCKS_S = 2.0
"""How much earlier than its row a caption may seem to be written: FAT counts in steps of 2 s."""
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a job's captions go.

    Attributes:
        kinds: of `KINDS`: "txt" is a file for each image, "jsonl" one `metadata.jsonl`, "parquet"
            one `captions.parquet`, "wds" a folder `wds` of WebDataset shards.
        job: the job's directory, for what is in no `folder`.
        folder: where the files go, by their ids; None: each .txt is beside its image.
        prefix, suffix: put before and after each caption.
    """

    job: Path
    kinds: frozenset[str] = frozenset()
    folder: Path | None = None
    prefix: str = ""
    suffix: str = ""

    def txt(self, item: Item) -> Path:
        """Return the caption file of an image."""
        return caption_file(item.path if self.folder is None else self.folder / item.id)

    @property
    def places(self) -> dict[str, Path]:
        """What holds all captions, by its kind."""
        folder = self.folder or self.job
        names = {"jsonl": "metadata.jsonl", "parquet": "captions.parquet", "wds": "wds"}
        return {kind: folder / name for kind, name in names.items() if kind in self.kinds}

    def write_txt(self, item: Item, row: Row) -> None:
        """Write an image's caption file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with written_whole(self.txt(item)) as file:
            file.write(self._caption(row))

    def restore_txt(
        self, rows: Rows, items: Mapping[str, Item], *, overwrite: bool = False
    ) -> None:
        """Write the caption files that are missing: a run was killed between a row and its file.

        Args:
            overwrite: also those that are older than their rows. A newer one was edited since.

        Raises:
            OSError: one cannot be written.
        """
        for row in rows:
            item = items.get(row["id"])
            if item and row["status"] == DONE and self._is_missing(item, row, overwrite):
                self.write_txt(item, row)

    def _is_missing(self, item: Item, row: Row, overwrite: bool) -> bool:
        try:
            written = self.txt(item).stat().st_mtime
        except OSError:
            return True
        # After another seed, a file that is older is the job's own.
        return (overwrite or "attempt" in row) and written < row["at"] - _CLOCKS_S

    def check(self, items: Sequence[Item]) -> None:
        """Raise JobError if an output would replace a foreign file, or cannot be written."""
        ours = own_places(self.job)
        for kind, place in self.places.items():
            is_ours = str(place.absolute()) in ours
            if place.exists() and (not is_ours or (kind == "wds" and holds_others(place))):
                raise JobError(
                    f"{place} is there already, and not from this job. Name another folder after "
                    "--output."
                )
        if "parquet" in self.kinds:
            import_pyarrow(JobError, "Parquet files")
        folders = {str(place.parent) for place in self.places.values()}
        if "txt" in self.kinds:
            folders |= self._check_txt(items)
        for folder in sorted(folders):
            there = folder
            while not os.path.exists(there):
                there = os.path.dirname(there) or "."
            if not os.access(there, os.W_OK):
                raise JobError(
                    f"{folder} cannot be written. Name another folder after --output, or allow it."
                )

    def _check_txt(self, items: Sequence[Item]) -> set[str]:
        """Check the caption files; return their folders."""
        files: dict[str, Item] = {}
        folders: set[str] = set()
        for item in items:
            if self.folder is None and item.source is not None:
                raise JobError(
                    f"{item.name} is no file on a disk, so no caption can be written beside it. "
                    "Name a folder after --output, or write --out jsonl."
                )
            if self.folder is not None and not is_inside(item.id):
                raise JobError(
                    f"{item.id} would not be below --output. Name its folder as the input, or "
                    "write --out jsonl."
                )
            # As text: a million Path objects take ten seconds.
            path = os.path.join(self.folder or item.root, item.id)
            file = os.path.normpath(os.path.splitext(path)[0])
            other = files.setdefault(file.casefold(), item)
            if other is not item:
                raise JobError(
                    f"{other.name} and {item.name} would have the same caption file "
                    f"{self.txt(item)}. Rename one of the two, or write --out jsonl."
                )
            folders.add(os.path.dirname(file))
        return folders

    def write(self, rows: Rows, items: Mapping[str, Item], *, shards: bool = True) -> None:
        """Write all but the caption files, each whole or not at all, in no fixed order.

        Args:
            shards: also those of "wds", which copy all images.

        Raises:
            JobError: an image cannot be read.
            OSError: a file cannot be written.
        """
        places = self.places
        add_own_places(self.job, places.values())
        if "jsonl" in places:
            with written_whole(places["jsonl"]) as lines:
                for row in rows:
                    if row["status"] == DONE and row["id"] in items:
                        lines.write(_json({"file_name": row["id"], "text": self._caption(row)}))
        if "parquet" in places:
            entries = (self._entry(row) for row in rows if row["id"] in items)
            with draft_of(places["parquet"]) as draft:
                write_parquet(draft, entries, _COLUMNS)
        if "wds" in places and shards:
            done = (row for row in rows if row["status"] == DONE and row["id"] in items)
            write_shards(places["wds"], (self._sample(row, items[row["id"]]) for row in done))

    def _entry(self, row: Row) -> dict[str, Any]:
        """Return a row of captions.parquet."""
        entry = {name: row.get(name) for name in _COLUMNS}
        if row["status"] == DONE:
            entry["text"] = self._caption(row)
        else:
            entry["error"] = f"{row['error']['message']} ({row['error']['code']})"
        entry["file_name"] = row["id"]
        # Arrow takes no half of a character, which a name on Linux or a model may have.
        return {
            name: whole_characters(value) if isinstance(value, str) else value
            for name, value in entry.items()
        }

    def _sample(self, row: Row, item: Item) -> Sample:
        """Return the files of an image in a shard, by their endings."""
        suffix = PurePosixPath(item.id).suffix.lower()
        try:
            image = item.read()
        except UnreadableImage as error:
            raise JobError(f"{error} The shards need it: run the same command again.") from error
        # JSON can hold a name that Arrow cannot.
        entry = {**self._entry(row), "file_name": row["id"]}
        return {
            suffix[1:] if suffix in IMAGE_SUFFIXES else "img": image,
            "txt": self._caption(row).encode(),
            "json": json.dumps({name: value for name, value in entry.items() if value}).encode(),
        }

    def _caption(self, row: Row) -> str:
        return whole_characters(one_line(f"{self.prefix}{row['text'].strip()}{self.suffix}"))


def _json(entry: Mapping[str, Any]) -> str:
    """Return a line of JSON in characters that UTF-8 has: a name on Linux may hold others."""
    line = _encode(entry)
    return (line if whole_characters(line) == line else json.dumps(entry)) + "\n"
