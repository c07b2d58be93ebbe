"""Jobs: any number of images through the stages, resumable, from the same rows to every output."""

from .caption_job import Begun, begin, end
from .captions import Progress, Worker, run_captions, to_do
from .directory import JobError, locked
from .items import BadInputList, Item, find_items
from .outputs import KINDS, Outputs
from .page import FILE as REPORT
from .rows import DONE, FAILED, RowLog, Rows

__all__ = [
    "DONE",
    "FAILED",
    "KINDS",
    "REPORT",
    "BadInputList",
    "Begun",
    "Item",
    "JobError",
    "Outputs",
    "Progress",
    "RowLog",
    "Rows",
    "Worker",
    "begin",
    "end",
    "find_items",
    "locked",
    "run_captions",
    "to_do",
]
