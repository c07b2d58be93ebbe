"""What other programs read of a job, made from its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.captions import caption_file, one_line
from ..texts.characters import whole_characters
from .items import Item
from .rows import DONE, Row, Rows

KINDS = ("txt", "jsonl")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where a job's captions go.

    Attributes:
        kinds: of `KINDS`: "txt" is a file for each image, "jsonl" one `metadata.jsonl`.
        folder: where the files go, by their ids; None: each .txt is beside its image.
        prefix, suffix: put before and after each caption.
    """

    kinds: frozenset[str] = frozenset()
    folder: Path | None = None
    prefix: str = ""
    suffix: str = ""

    def txt(self, item: Item) -> Path:
        """Return the caption file of an image."""
        return caption_file(item.path if self.folder is None else self.folder / item.id)

    def write_txt(self, item: Item, row: Row) -> None:
        """Write an image's caption file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        file = self.txt(item)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.new")
        draft.write_text(self._caption(row), "utf-8", newline="\n")
        os.replace(draft, file)

    def write_jsonl(self, rows: Rows, items: Mapping[str, Item], folder: Path) -> Path:
        """Write `metadata.jsonl` of all that is done: `file_name` and `text`, in no fixed order.

        Raises:
            OSError: it cannot be written.
        """
        file = (self.folder or folder) / "metadata.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.new")
        with draft.open("w", encoding="utf-8", newline="\n") as lines:
            for row in rows:
                if row["status"] == DONE and row["id"] in items:
                    entry = {"file_name": row["id"], "text": self._caption(row)}
                    lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
        os.replace(draft, file)
        return file

    def _caption(self, row: Row) -> str:
        return whole_characters(one_line(f"{self.prefix}{row['text'].strip()}{self.suffix}"))
