"""Check what is here from inside ComfyUI, and the page's way to ask for it.

`_setup` has the checks that the command line shares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import folder_paths
from server import PromptServer

from .checkpoints import DOWNLOAD, checkpoints_to_choose
from .errors import recent_errors
from .folders import config_file, gguf_places, own_folder
from .progress import PAGE

if TYPE_CHECKING:
    from ..._setup import Section

REPORT_PATH = "/image_refinery/report"
_MAX_CHECKPOINTS = 20


def check(cancelled: Callable[[], bool] | None = None) -> list[Section]:
    """Return what is here, which servers answer, and the last errors. It asks every server."""
    from ... import _setup
    from ...captioning.kept import FILE_NAME

    places = gguf_places()
    return [
        _comfyui(),
        _setup.packages(),
        *_setup.servers(PAGE, config_file(), places, cancelled),
        _setup.engine(places),
        _setup.answers(own_folder(FILE_NAME), config_file()),
        _checkpoints(),
        _last_errors(),
    ]


def add_report_route() -> None:
    """Let the page ask for the report without a run: also while one hangs, or has failed.

    The request has no parameters, and the report holds nothing private (docs/security.md).
    """
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return  # some other program reads the schemas
    one_at_a_time = asyncio.Lock()

    async def report(_: Any) -> Any:
        from aiohttp import web

        from ... import _setup

        async with one_at_a_time:
            text = await asyncio.to_thread(lambda: _setup.report(check()))
        return web.Response(text=text)

    server.routes.get(REPORT_PATH)(report)


def _comfyui() -> Section:
    from comfyui_version import __version__

    from ..._setup import Section, scrub
    from ...memory.report import readable

    section = Section()
    section.say(f"ComfyUI {__version__}")
    device = management.get_torch_device()
    free, total = management.get_free_memory(device), management.get_total_memory(device)
    name, state = scrub(management.get_torch_device_name(device)), management.vram_state.name
    memory = f"{readable(int(free))} of {readable(int(total))} free"
    section.say(f"Device: {name}, {memory}, VRAM state {state}")
    return section


def _checkpoints() -> Section:
    from ..._setup import Section, checkpoints_that_refine, scrub

    paths = [
        folder_paths.get_full_path("checkpoints", name)
        for name in checkpoints_to_choose()
        if name != DOWNLOAD
    ]
    able = checkpoints_that_refine(Path(path) for path in paths if path)
    section = Section()
    section.say(f"Checkpoints: {len(paths)}, of which {len(able)} can refine")
    for file in able[:_MAX_CHECKPOINTS]:
        section.say(f"  {scrub(file.name)}")
    return section


def _last_errors() -> Section:
    from ..._setup import Section

    section = Section()
    section.say("Last errors:")
    for one in recent_errors:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.at))
        section.say(f"  {at} {one.code} {one.name} ({one.node})")
    if not recent_errors:
        section.say("  none")
    return section
