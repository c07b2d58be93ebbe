"""Describe images with a vision model, and rewrite the descriptions with a text model."""

from .events import Watcher
from .job import Caption, ImageSource, Job, Request, Result, Stage, TextJob
from .options import TEXT_SAMPLING, VISION_SAMPLING, StageOptions, text_options, vision_options
from .run import Memory, process, run

__all__ = [
    "TEXT_SAMPLING",
    "VISION_SAMPLING",
    "Caption",
    "ImageSource",
    "Job",
    "Memory",
    "Request",
    "Result",
    "Stage",
    "StageOptions",
    "TextJob",
    "Watcher",
    "process",
    "run",
    "text_options",
    "vision_options",
]
