"""Jobs: any number of images through the stages, resumable, from the same rows to every output."""

from .captions import CHUNK, Progress, Worker, run_captions, to_do
from .directory import JobError, check_manifest, locked, read_fingerprint
from .items import BadInputList, Item, find_items
from .outputs import KINDS, Outputs
from .rows import DONE, FAILED, RowLog, Rows

__all__ = [
    "CHUNK",
    "DONE",
    "FAILED",
    "KINDS",
    "BadInputList",
    "Item",
    "JobError",
    "Outputs",
    "Progress",
    "RowLog",
    "Rows",
    "Worker",
    "check_manifest",
    "find_items",
    "locked",
    "read_fingerprint",
    "run_captions",
    "to_do",
]
