"""Write README's VRAM table: computed sizes, and those that machines have measured.

    python tools/machines_table.py            writes the table
    python tools/machines_table.py --check    exit code 1 if README has another table

Reads docs/quality/machines/*.json, which `image-refinery prove` wrote elsewhere and somebody handed
in. So each file is checked before anything of it is used. What a stand-in did, and what ran without
a GPU, does not count. The table replaces the lines between `<!-- vram -->` and `<!-- /vram -->`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MACHINES = ROOT / "docs" / "quality" / "machines"

SCHEMA = 1
GIB = 2**30
MAX_BYTES = 2_000_000
MAX_ENTRIES = 1_000
MAX_NUMBER = 2**53
NAME = re.compile(r"[\w .:/@+(),-]{1,120}", re.ASCII)
"""What a table can hold: nothing of Markdown or HTML."""
_BLOCK = re.compile(r"(<!-- vram -->\n).*?(<!-- /vram -->)", re.DOTALL)

MODES = {"gpu": 7.2, "offload": 4.6, "low_vram": 2.0}
"""The memory modes of the refiner and their computed peaks in GiB, as in docs/memory.md."""
REFINER_BYTES = 6_000_000_000
"""The least size of the SDXL refiner's weights, which have 16 bits or more."""
HEAD = ("VRAM", "Vision model", "Text model", "SDXL Refiner (`auto` chooses the mode)")
ROWS = (
    (
        "8 GB",
        "llava (6.3 GB needed), qwen2.5vl:7b (7.6 GB)",
        "llama3.2 (2.5 GB), mistral (5.5 GB)",
        "offload",
    ),
    ("12 GB", "llava:13b (10.7 GB), gemma3:12b (10.0 GB)", "the same", "gpu"),
    ("16 GB", "the same, also in 8 bits", "the same, also in 8 bits", "gpu"),
    ("no GPU", "smolvlm:256m, smolvlm2:2.2b", "qwen2.5:1.5b", "works, in minutes per image"),
)
"""docs/how-to/choose-models.md has the sizes and how they were computed."""
COMPUTED = "All of these sizes are computed, not measured on a GPU yet."
MEASURED = (
    'Sizes without "measured" are computed. These machines were measured by `image-refinery '
    "prove` ([how, and how to add yours](docs/quality/machines/README.md)):"
)
MEASURED_HEAD = ("GPU", "Vision model", "Text model", "SDXL Refiner", "Longest unload")


class BadProof(ValueError):
    """A file is no proof that can be used; the message says why, in one sentence."""


@dataclass
class Machine:
    """What counts of a proof.

    Attributes:
        gpu: its name.
        memory_bytes: of the GPU.
        models: for "vision" and "text" the model and the most memory it took, where it was real.
        peaks: bytes by memory mode, of a real checkpoint.
        unload_s: the longest unload of a real model; None: there was none.
    """

    gpu: str
    memory_bytes: float
    models: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    peaks: dict[str, float] = field(default_factory=dict[str, float])
    unload_s: float | None = None


def read_machine(file: Path) -> Machine | None:
    """Return what counts of a proof; None if nothing does.

    Raises:
        BadProof: the file cannot be used.
    """
    proof = _load(file)
    if proof.get("schema") != SCHEMA:
        raise BadProof(f"its schema is not {SCHEMA}: update the pack and run the command again.")
    # All is checked, whether it counts or not.
    models = _entries(proof, "models", Mapping)
    stand_ins = {part: _flag(_mapping(models[part], part), "stand_in") for part in models}
    periods = [_period(entry) for entry in _entries(proof, "timeline", Sequence)]
    peaks = [_peak(entry) for entry in _entries(proof, "peaks", Sequence)]
    if proof.get("gpu") is None:
        return None
    gpu = _mapping(proof["gpu"], "gpu")
    if gpu.get("memory_bytes") is None:  # no driver that reports it
        return None
    machine = Machine(_name(gpu, "name"), _number(gpu, "memory_bytes"))
    for part in ("vision", "text"):
        about = models.get(part)
        if about is None or stand_ins[part] or about.get("shares_gpu") is not True:
            continue
        who = _name(about, "name")
        own = [one for one in periods if one["who"] == who and not one["stand_in"]]
        if own:
            most = max(one["peak_bytes"] for one in own) - own[0]["start_bytes"]
            machine.models[part] = (who, most)
    if stand_ins.get("refiner") is False and _is_sdxl_refiner(models["refiner"]):
        machine.peaks = dict(peak for peak in peaks if peak)
    unloads = [
        one["end_s"] - one["start_s"]
        for one in periods
        if one["what"] == "unload" and not one["stand_in"]
    ]
    machine.unload_s = max(unloads, default=None)
    return machine if machine.models or machine.peaks else None


def _is_sdxl_refiner(about: Mapping[str, Any]) -> bool:
    """Return whether it is the checkpoint whose peaks the table has, and no other of the family."""
    return (
        "refiner" in _name(about, "name").lower() and _number(about, "size_bytes") >= REFINER_BYTES
    )


def _load(file: Path) -> Mapping[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no JSON")

    if file.stat().st_size > MAX_BYTES:
        raise BadProof(f"it is larger than {MAX_BYTES // 10**6} MB, as no proof is.")
    try:
        proof = json.loads(file.read_text("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__ if isinstance(error, RecursionError) else str(error)
        raise BadProof(f"it is not JSON ({reason[:100]}).") from error
    return _mapping(proof, "the file")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadProof(f"{what} is not an object.")
    return value


def _entries(proof: Mapping[str, Any], name: str, kind: type) -> Any:
    value = proof.get(name)
    if not isinstance(value, kind) or isinstance(value, str):
        raise BadProof(f'"{name}" is missing, or of another type.')
    if len(value) > MAX_ENTRIES:
        raise BadProof(f'"{name}" has more than {MAX_ENTRIES} entries.')
    return value


def _period(entry: object) -> dict[str, Any]:
    about = _mapping(entry, "a period of the timeline")
    period: dict[str, Any] = {name: _name(about, name) for name in ("who", "what")}
    names = ("start_s", "end_s", "start_bytes", "end_bytes", "peak_bytes")
    period |= {name: _number(about, name) for name in names}
    period["stand_in"] = _flag(about, "stand_in")
    if period["end_s"] < period["start_s"] or period["peak_bytes"] < period["start_bytes"]:
        raise BadProof("a period of the timeline ends before it begins, or its peak is too low.")
    return period


def _peak(entry: object) -> tuple[str, float] | None:
    about = _mapping(entry, "a peak")
    mode = about.get("mode")
    if not isinstance(mode, str) or mode not in MODES:
        raise BadProof(f'"mode" is not one of {", ".join(MODES)}.')
    return None if "error" in about else (mode, _number(about, "peak_bytes"))


def _name(about: Mapping[str, Any], key: str) -> str:
    value = about.get(key)
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise BadProof(f'"{key}" is not a name of at most 120 plain characters.')
    return value


def _number(about: Mapping[str, Any], key: str) -> float:
    value = about.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadProof(f'"{key}" is not a number.')
    if not (math.isfinite(value) and 0 <= value <= MAX_NUMBER):
        raise BadProof(f'"{key}" is not a number that can be measured.')
    return value


def _flag(about: Mapping[str, Any], key: str) -> bool:
    value = about.get(key)
    if not isinstance(value, bool):
        raise BadProof(f'"{key}" is neither true nor false.')
    return value


def table_of(machines: Sequence[Machine]) -> str:
    """Return the Markdown between the marks."""
    peaks = {
        mode: max(found)
        for mode in MODES
        if (found := [one.peaks[mode] for one in machines if mode in one.peaks])
    }
    rows = [(*row[:3], _refiner(row[3], peaks)) for row in ROWS]
    if not machines:
        return f"{_table(HEAD, rows)}\n{COMPUTED}\n"
    measured = [_machine_cells(one) for one in machines]
    return f"{_table(HEAD, rows)}\n{MEASURED}\n\n{_table(MEASURED_HEAD, measured)}"


def _refiner(mode: str, peaks: Mapping[str, float]) -> str:
    if mode not in MODES:
        return mode
    if mode in peaks:
        return f"{mode}: {peaks[mode] / GIB:.1f} GiB measured"
    return f"{mode}: {MODES[mode]} GiB"


def _machine_cells(machine: Machine) -> list[str]:
    def model(part: str) -> str:
        if part not in machine.models:
            return ""
        name, size = machine.models[part]
        return f"{name}: {size / 1e9:.1f} GB"

    peaks = (f"{mode}: {size / GIB:.1f} GiB" for mode, size in machine.peaks.items())
    unload = "" if machine.unload_s is None else f"{machine.unload_s:.1f} s"
    gpu = f"{machine.gpu}, {machine.memory_bytes / GIB:.1f} GiB"
    return [gpu, model("vision"), model("text"), ", ".join(peaks), unload]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table; return 1 if a file is bad, or the table is another one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--readme", type=Path, default=README, help=argparse.SUPPRESS)
    parser.add_argument("--machines", type=Path, default=MACHINES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    machines: list[Machine] = []
    bad = 0
    for file in sorted(options.machines.glob("*.json")):
        try:
            machine = read_machine(file)
        except (BadProof, OSError) as error:
            print(f"{file.name} cannot be used: {error}", file=sys.stderr)
            bad += 1
        else:
            machines += [machine] if machine else []
    if bad:
        return 1
    text = options.readme.read_text("utf-8")
    new, count = _BLOCK.subn(lambda found: found[1] + table_of(machines) + found[2], text)
    if count != 1:
        print(f"{options.readme.name} has no <!-- vram --> and <!-- /vram -->.", file=sys.stderr)
        return 1
    if options.check and new != text:
        print("README's VRAM table is old: run python tools/machines_table.py.", file=sys.stderr)
        return 1
    if not options.check:
        options.readme.write_text(new, "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
