"""What became of a job, counted from its rows: `report.json`, and a page to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.whole import written_whole
from .flags import MAX_TOKENS, all_flags, repeated_texts
from .items import Item
from .page import Selection, write_page
from .rows import DONE, FAILED, Rows

FILE = "report.json"


def write_report(
    folder: Path, rows: Rows, items: Mapping[str, Item], *, max_tokens: int = MAX_TOKENS
) -> dict[str, Any]:
    """Write `report.json` and `report.html` into a job's directory; return what is in the first.

    Args:
        items: the job's images by their ids; rows of others, which have left the input, do not
            count.
        max_tokens: a text of more is flagged as long.

    Raises:
        OSError: a file cannot be written.
    """
    status: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    sentences: dict[str, str] = {}
    selection = Selection()
    repeated = repeated_texts(row for row in rows if row["id"] in items)
    for row in rows:
        if row["id"] not in items:
            continue
        status[row["status"]] += 1
        workers[row["by"]] += 1
        found = all_flags(row, max_tokens, repeated)
        flags.update(found)
        selection.add(row, found)
        if row["status"] != DONE:
            error = row["error"]
            name = f"{error['code']} {error['kind']}"
            errors[name] += 1
            sentences.setdefault(name, error["message"])
    counts = {
        "images": len(items),
        **{name: status[name] for name in (DONE, FAILED)},
        "left": len(items) - sum(status.values()),
        "flags": dict(flags),
        "errors": dict(errors),
        "by": dict(workers),
        "max_tokens": max_tokens,
    }
    with written_whole(folder / FILE) as text:
        json.dump(counts, text, indent=2)
    write_page(folder, counts, sentences, selection, rows, items)
    return counts
