"""What became of a job, counted from its rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .rows import DONE, Rows
from .whole import written_whole

FILE = "report.json"


def count_rows(rows: Rows, ids: Collection[str]) -> dict[str, Any]:
    """Return the counts of a job.

    Args:
        ids: of its images; rows of others, which have left the input, do not count.
    """
    status: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    for row in rows:
        if row["id"] not in ids:
            continue
        status[row["status"]] += 1
        workers[row["by"]] += 1
        flags.update(row.get("flags", ()))
        if row["status"] != DONE:
            errors[f"{row['error']['code']} {row['error']['kind']}"] += 1
    left = len(ids) - sum(status.values())
    return {
        "images": len(ids),
        **{name: status[name] for name in ("done", "failed")},
        "left": left,
        "flags": dict(flags),
        "errors": dict(errors),
        "by": dict(workers),
    }


def write_report(folder: Path, counts: dict[str, Any]) -> Path:
    """Write `report.json` into a job's directory.

    Raises:
        OSError: it cannot be written.
    """
    file = folder / FILE
    with written_whole(file) as text:
        json.dump(counts, text, indent=2)
    return file
