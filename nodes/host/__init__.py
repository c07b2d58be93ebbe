"""All that touches ComfyUI: its schemas, folders, progress, interruption and model management."""

from .errors import note_error, recent_errors, shows_errors
from .folders import PACK_FOLDER, config_file, kept_answers, own_folder
from .inputs import (
    BadInput,
    advanced,
    check_choices,
    choice,
    number,
    read,
    read_rows,
    same,
    switch,
    widget,
    widgets,
)
from .progress import PAGE, NodeWatcher, RefineProgress, show
from .running import count_failed_run, failed_runs, interrupted, node_id, stop
from .schemas import schema
from .servers import models_to_choose, open_backend, open_backends, servers_to_choose
from .tokens import token_line
from .words import Words, record_words, recorded_words

__all__ = [
    "PACK_FOLDER",
    "PAGE",
    "BadInput",
    "NodeWatcher",
    "RefineProgress",
    "Words",
    "advanced",
    "check_choices",
    "choice",
    "config_file",
    "count_failed_run",
    "failed_runs",
    "interrupted",
    "kept_answers",
    "models_to_choose",
    "node_id",
    "note_error",
    "number",
    "open_backend",
    "open_backends",
    "own_folder",
    "read",
    "read_rows",
    "recent_errors",
    "record_words",
    "recorded_words",
    "same",
    "schema",
    "servers_to_choose",
    "show",
    "shows_errors",
    "stop",
    "switch",
    "token_line",
    "widget",
    "widgets",
]
