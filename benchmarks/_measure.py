"""Helpers that the benchmarks share: a simulated Ollama, the machine's name, the results."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "bench-output"


def describe_machine() -> str:
    """Return the system, the number of cores, and Python's version."""
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return f"{system}, Python {platform.python_version()}"


def stub_comfyui() -> None:
    """Make the package's nodes importable without ComfyUI in this process."""
    stub = str(ROOT / "tests" / "comfy_stub")
    if stub not in sys.path:
        sys.path.insert(0, stub)


def write(file: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, with the date and the machine's load average of five minutes."""
    load = os.getloadavg()[1] if hasattr(os, "getloadavg") else None
    result = {"date": datetime.date.today().isoformat(), "load_average": load, **result}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def describe_rounds(rounds: int) -> str:
    """Return what a figure of so many rounds is: "one run" or "medians of 3"."""
    return "one run" if rounds == 1 else f"medians of {rounds}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peak_ram_bytes() -> int:
    """Return the peak memory of this process so far, including pages of mapped files."""
    if sys.platform == "linux":
        # Not getrusage: it starts with the high-water mark of the process that started this one.
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


class Simulated:
    """A simulated Ollama in a separate process, so that its work does not count as ours."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it; after `kill`, on the same port."""
        command = [sys.executable, str(Path(__file__).with_name("_simulated_ollama.py"))]
        if self.url:
            self._settings["port"] = int(self.url.rpartition(":")[2])
        self._process = subprocess.Popen(
            [*command, json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._line()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how often each model was loaded and unloaded, and the most parallel requests."""
        assert self._process.stdin is not None
        self._process.stdin.write("counts\n")
        self._process.stdin.flush()
        return json.loads(self._line())


@contextmanager
def simulated(settings: dict[str, Any]) -> Iterator[Simulated]:
    """Run `_simulated_ollama.py` with these settings (see its docstring) until the block ends."""
    server = Simulated(dict(settings))
    try:
        yield server
    finally:
        server.kill()


def from_tests(path: str) -> Any:
    """Import a test helper, such as comfyui/host.py, which starts a real ComfyUI."""
    name = Path(path).stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
