"""Jobs: any number of images through the stages, resumable, from the same rows to every output."""

from .caption_job import Begun, begin, end
from .captions import Progress, Worker, run_captions, to_do
from .comfyui import ComfyUI, ComfyUIError, WorkflowError
from .directory import JobError, locked
from .items import BadInputList, Item, find_items
from .outputs import KINDS, Outputs
from .page import FILE as REPORT
from .plan import fingerprint
from .report import write_report
from .rows import DONE, FAILED, RowLog, Rows
from .workflows import (
    Downloads,
    RunFailed,
    Workflow,
    begin_workflow,
    read_workflow,
    run_workflow,
)

__all__ = [
    "DONE",
    "FAILED",
    "KINDS",
    "REPORT",
    "BadInputList",
    "Begun",
    "ComfyUI",
    "ComfyUIError",
    "Downloads",
    "Item",
    "JobError",
    "Outputs",
    "Progress",
    "RowLog",
    "Rows",
    "RunFailed",
    "Worker",
    "Workflow",
    "WorkflowError",
    "begin",
    "begin_workflow",
    "end",
    "find_items",
    "fingerprint",
    "locked",
    "read_workflow",
    "run_captions",
    "run_workflow",
    "to_do",
    "write_report",
]
