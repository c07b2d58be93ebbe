"""Time that this pack adds to ComfyUI's start, compared with an empty pack and the installed packs.

    python dev.py bench imports [--rounds N]

Each round is a new process of ComfyUI's interpreter. It imports ComfyUI, then the empty pack (V3,
one node without inputs) and this one, either of them first in turns, then everything in ComfyUI's
`custom_nodes`. tests/comfyui/measure_import.py loads them as ComfyUI does. No Ollama is running.
Byte code is kept, as in a user's ComfyUI. The first process, which compiles it, does not count.
Without a ComfyUI (COMFYUI_PATH, else ~/comfy/ComfyUI), the benchmark uses the tests' stub of it.

Prints the least of the rounds (what a busy machine adds is no cost of a pack; each takes ten
seconds), the imported modules, and the slowest ones; writes bench-output/imports.json.
Fails if the pack takes more than 50 ms of the loading thread's CPU above the empty one, or imports
a heavy library.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _measure import OUTPUT, ROOT, describe_machine, from_tests, table, write

MEASURE = ROOT / "tests" / "comfyui" / "measure_import.py"
STUB = ROOT / "tests" / "comfy_stub"
EMPTY, OURS = "empty-pack", "this-pack"
EMPTY_PACK = """from comfy_api.latest import ComfyExtension, io


class Nothing(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="EmptyPackNothing", inputs=[], outputs=[])

    @classmethod
    def execute(cls):
        return io.NodeOutput()


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Nothing]


async def comfy_entrypoint():
    return Extension()
"""
ALLOWED_S = 0.050
CLOCKS = ("first_s", "process_s", "wall_s")
SLOWEST = 10
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")

Result = dict[str, Any]


def other_packs(custom_nodes: Path) -> list[Path]:
    """Return what ComfyUI would load from this folder, by its own rules for names."""
    if not custom_nodes.is_dir():
        return []
    return [
        path
        for path in sorted(custom_nodes.iterdir())
        if path.name != "__pycache__"
        and not path.name.endswith(".disabled")
        and (path.suffix == ".py" or (path / "__init__.py").is_file())
    ]


def load(
    python: Path, home: Path, packs: Sequence[Path], env: dict[str, str], *options: str
) -> tuple[dict[str, Result], str]:
    """Load packs in a new process; return the figures of each by its name, and stderr.

    Args:
        options: Options of the interpreter.

    Raises:
        RuntimeError: The process reported no figures of a pack.
    """
    command = [*map(str, (python, *options, MEASURE, home, *packs)), "--once", "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    results = [json.loads(line.removeprefix("RESULT")) for line in lines]
    if len(results) != len(packs):
        raise RuntimeError(f"{MEASURE.name} ended with {done.returncode}: {done.stderr[-2000:]}")
    return {result["pack"]: result for result in results}, done.stderr


def least(rounds: Sequence[dict[str, Result]]) -> dict[str, Result]:
    """Return each pack's least time by each clock, in seconds, and its last round's modules."""
    return {
        name: {
            **{clock: min(one[name][clock] for one in rounds) for clock in CLOCKS},
            **{key: last.get(key) for key in ("modules", "heavy", "had_heavy", "error")},
        }
        for name, last in rounds[-1].items()
    }


def logs_of(rounds: int) -> int:
    """Return how many logs of -X importtime to take: half as many as rounds."""
    return max(1, rounds // 2)


def self_times(logs: Iterable[str]) -> dict[str, int]:
    """Return the least self time, in microseconds, of each module in logs of -X importtime."""
    times: defaultdict[str, list[int]] = defaultdict(list)
    for log in logs:
        for microseconds, module in _IMPORT_LINE.findall(log):
            times[module].append(int(microseconds))
    return {module: min(taken) for module, taken in times.items()}


def own(modules: Iterable[str]) -> list[str]:
    """Return the pack's own modules, by their names inside it."""
    return [name.partition(".")[2] or "__init__" for name in modules if is_own(name)]


def is_own(module: str) -> bool:
    """Whether measure_import.py named the module: "measured_" and the number of the pack."""
    return module.startswith("measured_")


def missed(packs: dict[str, Result]) -> list[str]:
    """Return one sentence for each missed target."""
    above = packs[OURS]["first_s"] - packs[EMPTY]["first_s"]
    sentences: list[str] = []
    for name in (EMPTY, OURS):
        if packs[name]["error"]:
            sentences.append(f"{name} does not load: {packs[name]['error']}")
    if above > ALLOWED_S:
        sentences.append(f"{above * 1000:.1f} ms above the empty pack")
    if packs[OURS]["heavy"]:
        sentences.append(f"it imports {', '.join(packs[OURS]['heavy'])}")
    return sentences


def run(rounds: int) -> Result:
    """Measure; return the results for the JSON file."""
    host = from_tests("comfyui/host.py")
    found = host.find_host()
    if isinstance(found, str):
        python, home, comfyui = Path(sys.executable), STUB, f"the tests' stub of it ({found})"
    else:
        python, home, comfyui = found.python, found.home, ".".join(map(str, found.version))
    env = {**host.clean_environment(), "OLLAMA_BASE_URL": f"http://127.0.0.1:{host.free_port()}"}
    with tempfile.TemporaryDirectory() as folder:
        empty, ours = Path(folder, EMPTY), Path(folder, OURS)
        empty.mkdir()
        (empty / "__init__.py").write_text(EMPTY_PACK, "utf-8")
        host.copy_pack(ours)
        others = other_packs(home / "custom_nodes")
        load(python, home, [empty, ours, *others], env)  # compiles
        measured = [
            load(python, home, [*((ours, empty) if one % 2 else (empty, ours)), *others], env)[0]
            for one in range(rounds)
        ]
        logs = [
            load(python, home, [ours], env, "-X", "importtime")[1] for _ in range(logs_of(rounds))
        ]
    packs = least(measured)
    modules = packs[OURS]["modules"]
    slowest = sorted(self_times(logs).items(), key=lambda item: -item[1])
    return {
        "machine": describe_machine(),
        "comfyui": comfyui,
        "rounds": rounds,
        "packs": packs,
        "own_modules": len(own(modules)),
        "other_modules": [name for name in modules if not is_own(name)],
        "slowest_us": {
            own([name])[0] if is_own(name) else name: microseconds
            for name, microseconds in slowest
            if is_own(name) or name in modules
        },
        "allowed_s": ALLOWED_S,
        "missed": missed(packs),
    }


def to_markdown(result: Result) -> str:
    """Return the result as Markdown."""
    packs = result["packs"]
    rows: list[list[str]] = []
    for name, pack in packs.items():
        times = [f"{(pack[clock] - packs[EMPTY][clock]) * 1000:.1f}" for clock in CLOCKS]
        if name == EMPTY:
            times = [f"({pack[clock] * 1000:.1f})" for clock in CLOCKS]
        rows.append([name, *times, pack["error"] or str(len(pack["modules"]))])
    head = ["pack", "CPU of the loading thread, ms", "of all threads, ms", "wall, ms", "modules"]
    before = ", ".join(packs[OURS]["had_heavy"]) or "none"
    lines = [
        f"{result['machine']}, ComfyUI {result['comfyui']}, least of {result['rounds']}; "
        "above the empty pack:",
        table(head, rows),
        f"modules: {result['own_modules']} of the pack itself, and "
        f"{', '.join(result['other_modules']) or 'no others'}; "
        f"heavy ones that ComfyUI had already imported: {before}",
        f"slowest (self, least of {logs_of(result['rounds'])}):",
        table(
            ["module", "ms"],
            [
                [name, f"{microseconds / 1000:.2f}"]
                for name, microseconds in list(result["slowest_us"].items())[:SLOWEST]
            ],
        ),
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT / "imports.json")
    args = parser.parse_args()
    result = run(args.rounds)
    write(args.output, result)
    print(to_markdown(result))
    print(f"at most {ALLOWED_S * 1000:.0f} ms of CPU above the empty pack, no heavy library: "
          f"{'MISSED, ' + '; '.join(result['missed']) if result['missed'] else 'met'}")  # fmt: skip
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
