"""What other programs read of a job, made from its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.captions import caption_file, one_line
from ..texts.characters import whole_characters
from .items import Item
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
