"""What other programs read of a job, made from its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.captions import caption_file, one_line
from ..texts.characters import whole_characters
from .directory import JobError
from .items import Item, is_inside
from .rows import DONE, Row, Rows
from .whole import written_whole

KINDS = ("txt", "jsonl")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a job's captions go.

    Attributes:
        kinds: of `KINDS`: "txt" is a file for each image, "jsonl" one `metadata.jsonl`.
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
    def jsonl(self) -> Path:
        """The one file with all captions."""
        return (self.folder or self.job) / "metadata.jsonl"

    def write_txt(self, item: Item, row: Row) -> None:
        """Write an image's caption file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with written_whole(self.txt(item)) as file:
            file.write(self._caption(row))

    def restore_txt(self, rows: Rows, items: Mapping[str, Item]) -> None:
        """Write the caption files that are missing: a run was killed between a row and its file.

        Raises:
            OSError: one cannot be written.
        """
        for row in rows:
            item = items.get(row["id"])
            if item and row["status"] == DONE and not self.txt(item).exists():
                self.write_txt(item, row)

    def check(self, items: Sequence[Item], *, is_new: bool) -> None:
        """Raise JobError if an output would replace a foreign file, or leave its folder.

        Args:
            is_new: whether the job has only begun, so that none of the files is from it.
        """
        if "jsonl" in self.kinds and is_new and self.jsonl.exists():
            raise JobError(
                f"{self.jsonl} is there already, and not from this job. Name another folder after "
                "--output."
            )
        if "txt" not in self.kinds:
            return
        files: dict[str, Item] = {}
        for item in items:
            if self.folder is not None and not is_inside(item.id):
                raise JobError(
                    f"{item.id} would not be below --output. Name its folder as the input, or "
                    "write each caption beside its image."
                )
            file = self.txt(item)
            other = files.setdefault(str(file).casefold(), item)
            if other is not item:
                raise JobError(
                    f"{other.name} and {item.name} would have the same caption file {file}. Rename "
                    "one of the two, or write --out jsonl."
                )

    def write_jsonl(self, rows: Rows, items: Mapping[str, Item]) -> None:
        """Write `metadata.jsonl` of all that is done: `file_name` and `text`, in no fixed order.

        Raises:
            OSError: it cannot be written.
        """
        with written_whole(self.jsonl) as lines:
            for row in rows:
                if row["status"] == DONE and row["id"] in items:
                    entry = {"file_name": row["id"], "text": self._caption(row)}
                    lines.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def _caption(self, row: Row) -> str:
        return whole_characters(one_line(f"{self.prefix}{row['text'].strip()}{self.suffix}"))
