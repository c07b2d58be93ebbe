"""ComfyUI starts and describes the node as fast with Ollama hanging or absent as with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_ollama import FaultyOllama
from host import PACK_FOLDER, ComfyHost, FoundHost, clean_environment, copy_pack, free_port

NODE = "RefineryLLMImageRefine"
MEASURE = Path(__file__).resolve().parent / "measure_import.py"

# design.md: the list of models waits at most 0.25 s for a server, and not after a recent failure.
LONGEST_WAIT_S = 0.25
# Two servers cannot be compared closer than a busy machine's own noise.
NOISE_S = 0.5


@dataclass(frozen=True)
class Start:
    """What one start cost, in seconds."""

    ready: float
    object_info: float
    object_info_again: float
    import_line: str
    import_seconds: float


def _measured(host: ComfyHost, url: str) -> Start:
    host.restart(OLLAMA_BASE_URL=url)
    began = time.monotonic()
    host.object_info(NODE)
    first = time.monotonic() - began
    began = time.monotonic()
    host.object_info(NODE)
    again = time.monotonic() - began
    return Start(host.startup_s, first, again, host.import_line(), host.import_seconds())


@pytest.fixture(scope="module")
def starts(found_comfyui: FoundHost, tmp_path_factory) -> dict[str, Start]:
    """One start with Ollama absent, one with a socket that never answers, one with a good one."""
    host = ComfyHost(found_comfyui, tmp_path_factory.mktemp("starting"))
    host.prepare()
    try:
        _measured(host, f"http://127.0.0.1:{free_port()}")  # compiles the pack; not compared
        absent = _measured(host, f"http://127.0.0.1:{free_port()}")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            hanging = _measured(host, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with FaultyOllama() as ollama:
            present = _measured(host, ollama.url)
    finally:
        host.stop()
    return {"absent": absent, "hanging": hanging, "present": present}


@pytest.mark.parametrize("server", ["absent", "hanging", "present"])
def test_comfyui_s_own_table_shows_no_import_time(starts: dict[str, Start], server: str):
    """The table has one decimal: 0.0 is what at most 0.05 s looks like there.

    A busy machine stretches everything in that table; CPU time is held in the test below.
    """
    limit = 0.05 if os.getloadavg()[0] < 1 else LONGEST_WAIT_S - 0.05
    assert starts[server].import_seconds <= limit, starts[server].import_line


@pytest.mark.parametrize("server", ["hanging", "absent"])
def test_the_page_waits_for_no_server(starts: dict[str, Start], server: str):
    assert starts[server].object_info <= LONGEST_WAIT_S + NOISE_S, starts
    assert starts[server].object_info_again <= NOISE_S, starts


def test_the_start_itself_takes_as_long(starts: dict[str, Start]):
    """A start takes several seconds, and a busy machine makes that vary by half."""
    usual = min(start.ready for start in starts.values())
    assert max(start.ready for start in starts.values()) <= 2 * usual, starts


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def _import_cost(found: FoundHost, pack: Path, url: str) -> dict[str, float]:
    said = subprocess.run(
        [str(found.python), str(MEASURE), str(found.home), str(pack), "--cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment() | {"OLLAMA_BASE_URL": url},
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, said.stderr
    return json.loads(lines[-1].removeprefix("RESULT"))


def test_the_import_costs_little_cpu_time_and_waits_for_nothing(
    found_comfyui: FoundHost, silent_url: str, tmp_path: Path
):
    """What ComfyUI does to load the pack, measured without the other programs of the machine."""
    copy_pack(tmp_path / PACK_FOLDER)
    _import_cost(found_comfyui, tmp_path / PACK_FOLDER, silent_url)  # compiles
    cost = _import_cost(found_comfyui, tmp_path / PACK_FOLDER, silent_url)
    assert cost["cpu_s"] <= 0.05, cost
    assert cost["wall_s"] - cost["first_s"] < LONGEST_WAIT_S, cost
    assert cost["heavy"] == [], cost
