"""Parquet files: paths of images to read, and captions to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from .._program import install
from .directory import JobError
from .source import BadInputList

COLUMNS = ("file_name", "path", "image_path")
"""Looked for in this order."""

_BATCH_ROWS = 10_000
"""What is in memory at a time: with long texts, some 20 MB."""


def paths_in_parquet(file: Path, column: str = "") -> Iterator[tuple[int, str]]:
    """Yield the number of each row and the path in it.

    Args:
        column: has the paths; "": the first of `COLUMNS` that is there.

    Raises:
        BadInputList: the file cannot be read, or a row has no path.
    """
    parquet = import_pyarrow(BadInputList, "Parquet files").parquet
    number = 0
    try:
        with file.open("rb") as opened, parquet.ParquetFile(opened) as table:
            names: list[str] = table.schema_arrow.names
            wanted = (column,) if column else COLUMNS
            found = next((name for name in wanted if name in names), "")
            if not found:
                raise BadInputList(
                    f"{file} has no column {' or '.join(wanted)}, but {', '.join(names) or 'none'}."
                    " Name the one with the paths after --column."
                )
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[found]):
                for path in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(path, str) or not path.strip():
                        raise BadInputList(f"Row {number} of {file} has no path in {found}.")
                    yield number, path
    except (ValueError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
        raise BadInputList(f"{file} is no parquet file, or is damaged ({error}).") from error


def write_parquet(file: Path, entries: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a parquet file, in groups of rows.

    Args:
        columns: names of the columns; all hold texts, but "flags" lists of them.

    Raises:
        OSError: it cannot be written.
    """
    arrow = import_pyarrow(JobError, "Parquet files")
    text = arrow.string()
    kinds = [(name, arrow.list_(text) if name == "flags" else text) for name in columns]
    schema = arrow.schema(kinds)
    waiting = iter(entries)
    with file.open("wb") as opened, arrow.parquet.ParquetWriter(opened, schema) as table:
        while batch := list(islice(waiting, _BATCH_ROWS)):
            table.write_table(arrow.Table.from_pylist(batch, schema))


def import_pyarrow(error: type[Exception], what: str) -> Any:
    """Return pyarrow with its `parquet`.

    Args:
        error: raised with the command that installs it, if it is missing.
        what: needs it.
    """
    try:
        import_module("pyarrow.parquet")
    except ImportError:
        raise error(f"{what} need the package pyarrow: {install('pyarrow')}") from None
    return import_module("pyarrow")
