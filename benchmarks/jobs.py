"""Jobs of `image-refinery batch`: how servers share images, swaps, memory, and a million rows.

    python dev.py bench jobs [--images N] [--rows N] [--only PART ...]

The command line runs in separate processes against simulated servers (`_simulated_ollama.py`),
which sleep for as long as a model would work. Parts:

    throughput  1, 2 and 4 equal servers, and 3 with a fourth that is three times slower
    swaps       a caption job of two models: the time that loads take, with learned chunks
    memory      many images on one server: the resident size of the process as they go by
    rows        rows of a null task: plan, continue and end a job without any image or server

Prints tables; writes bench-output/jobs.json. Fails where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _measure import OUTPUT, ROOT, Simulated, describe_machine, simulated, table, write
from PIL import Image

SPEEDUPS = {2: 1.95, 4: 3.8}
SLOWER = 3.0
MAX_SWAP_SHARE = 0.02
MAX_GROWTH_BYTES = 30_000_000
"""Of the process from a fifth of the images to the end: places of rows, and the answers' cache."""

ANSWER_S = 0.4
PARTS = ("throughput", "swaps", "memory", "rows")


def server(answer_s: float, load_s: float = 0.0) -> dict[str, Any]:
    """Return settings of a server whose answers take so long."""
    tokens = 10
    pace = {"prompt_s": answer_s / 2, "token_s": answer_s / 2 / tokens}
    model = {"size": 1_000, "load_s": load_s, "unload_s": 0.0, "tokens": tokens, **pace}
    models = [
        {"name": "seeing", "vision": True, **model},
        {"name": "writing", "vision": False, **model},
    ]
    return {"vram_bytes": 10_000, "parallel": 1, "models": models}


@contextmanager
def servers(settings: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Simulated]]:
    """Run servers, named s0, s1 ... in an image-refinery.toml below `folder`."""
    with ExitStack() as stack:
        found = {
            f"s{number}": stack.enter_context(simulated(dict(one)))
            for number, one in enumerate(settings)
        }
        file = folder / "config" / "image-refinery" / "image-refinery.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        entries = (f'[servers.{name}]\nurl = "{one.url}"\n' for name, one in found.items())
        file.write_text("".join(entries), "utf-8")
        yield found


def make_images(folder: Path, count: int) -> Path:
    """Write so many small images, all different."""
    folder.mkdir(parents=True)
    for number in range(count):
        color = (number & 255, number >> 8 & 255, number >> 16)
        Image.new("RGB", (32, 32), color).save(folder / f"{number:07}.png", compress_level=1)
    return folder


def start(images: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command over a folder of images; its job is in `folder`/job."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
    command = [sys.executable, str(ROOT), "batch", str(images), "--job", str(folder / "job")]
    with (folder / "log").open("w") as log:  # a pipe that nobody reads would fill up
        return subprocess.Popen(
            [*command, "--vision-model", "seeing", *words],
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            env=environment,
        )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return all rows of the job in `folder`/job, by their time."""
    files = (folder / "job" / "rows").glob("*.jsonl")
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["at"])


def finished(process: subprocess.Popen[str], folder: Path, count: int) -> list[dict[str, Any]]:
    """Wait for a job to end; return its rows.

    Raises:
        RuntimeError: it failed, or has not one row for each image.
    """
    process.wait()
    said = (folder / "log").read_text("utf-8")
    rows = rows_of(folder)
    if process.returncode or len({row["id"] for row in rows}) != count or len(rows) != count:
        raise RuntimeError(f"{len(rows)} rows, exit code {process.returncode}: {said[-2000:]}")
    return rows


def seconds_of(rows: Sequence[Mapping[str, Any]], answer_s: float) -> float:
    """Return the time from the first request to the last answer."""
    return rows[-1]["at"] - rows[0]["at"] + answer_s


def throughput(images_for_one: int) -> list[dict[str, Any]]:
    """Measure equal servers, and equal ones beside a slower one."""
    found: list[dict[str, Any]] = []
    ways = {
        "1 server": [ANSWER_S],
        "2 servers": [ANSWER_S] * 2,
        "4 servers": [ANSWER_S] * 4,
        "3 servers, and one 3 times slower": [ANSWER_S] * 3 + [ANSWER_S * SLOWER],
    }
    for name, answers in ways.items():
        count = images_for_one * len(answers)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            images = make_images(folder / "images", count)
            with servers([server(one) for one in answers], folder) as named:
                words = [word for server in named for word in ("--server", server)]
                rows = finished(start(images, folder, *words), folder, count)
        rate = count / seconds_of(rows, ANSWER_S)
        by = {server: sum(row["by"] == server for row in rows) for server in named}
        found.append({"way": name, "images": count, "rate": rate, "by": by})
        found[-1]["speedup"] = rate / found[0]["rate"]
        found[-1]["ideal"] = sum(ANSWER_S / one for one in answers)
    return found


def swaps(count: int) -> dict[str, Any]:
    """Measure a job of two models: how long loads take, and how often."""
    load_s, answer_s = 0.5, 0.02
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / "images", count)
        with servers([server(answer_s, load_s)], folder) as named:
            words = ("--server", "s0", "--task", "caption", "--text-model", "writing")
            process = start(images, folder, *words, "--instructions", "Shorten it.")
            rows = finished(process, folder, count)
            loads = sum(named["s0"].counts()["loads"].values())
    learning = 4  # two models, two chunks by whose times the size is found
    taken = seconds_of(rows, answer_s)
    return {
        "images": count,
        "load_s": load_s,
        "answer_s": answer_s,
        "loads": loads,
        "seconds": taken,
        "share": load_s * loads / taken,
        "share_after_learning": load_s * max(0, loads - learning) / taken,
    }


def memory(count: int) -> dict[str, Any]:
    """Follow the resident size of a job over many images."""
    samples: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / "images", count)
        with servers([server(0.0)], folder):
            began = time.monotonic()
            process = start(images, folder, "--server", "s0", "--out", "txt,jsonl")
            while process.poll() is None:
                time.sleep(0.5)
                samples.append((rows_so_far(folder), resident_bytes(process.pid)))
            finished(process, folder, count)
            seconds = time.monotonic() - began
        captions = len(list(images.glob("*.txt")))
        listed = len((folder / "job" / "metadata.jsonl").read_text("utf-8").splitlines())
    samples = [(done, size) for done, size in samples if size]
    early = next(size for done, size in samples if done >= count // 5)
    return {
        "images": count,
        "seconds": seconds,
        "rate": count / seconds,
        "lost": 2 * count - captions - listed,
        "samples": samples[:: max(1, len(samples) // 200)],
        "early_bytes": early,
        "most_bytes": max(size for _, size in samples),
        "growth_bytes": max(size for _, size in samples) - early,
    }


def rows_so_far(folder: Path) -> int:
    """Return the number of rows that a running job has written."""
    files = (folder / "job" / "rows").glob("*.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process, 0 if it has ended; Linux only."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


NULL_TASK = """
import importlib.util, json, os, resource, sys, time
from pathlib import Path
root, job, count, until = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
spec = importlib.util.spec_from_file_location(
    "image_refinery", root / "__init__.py", submodule_search_locations=[str(root)])
package = sys.modules["image_refinery"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from image_refinery import jobs
from image_refinery.jobs.report import write_report
began = time.monotonic()
def took(step):
    global began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = time.monotonic()
    print(json.dumps({"step": step, "seconds": now - began, "peak_bytes": peak}), flush=True)
    began = now
items = [jobs.Item(f"{n % 1000:03}/{n:07}.png", "/data") for n in range(count)]
by_id = {item.id: item for item in items}
outputs = jobs.Outputs(job=job, kinds=frozenset({"jsonl"}))
took("the list of images")
with jobs.locked(job):
    rows = jobs.Rows(job)
    took("the rows that are there")
    todo, _ = jobs.to_do(items, rows)
    took("what is to do")
    log = jobs.RowLog(job, "null")
    for item in todo:
        log.write({"id": item.id, "status": "done", "at": 0.0, "by": "null", "version": "0",
                   "text": "A calm lake at sunrise, number " + item.id, "flags": []})
        if len(todo) == count and item is todo[until - 1]:
            took("rows written, then killed")
            os.kill(os.getpid(), 9)
    log.close()
    took("the rest of the rows")
    rows = jobs.Rows(job)
    outputs.write(rows, by_id)
    took("metadata.jsonl")
    write_report(job, rows, by_id)
    took("the reports")
lines = sum(1 for _ in open(job / "metadata.jsonl"))
assert lines == count, lines
"""


def null_rows(count: int) -> list[dict[str, Any]]:
    """Plan a job of so many images, kill it at 90 %, and finish it."""
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", NULL_TASK, str(ROOT), f"{folder}/job", str(count)]
        for run in ("first run", "second run"):
            done = subprocess.run(
                [*command, str(count * 9 // 10)], capture_output=True, text=True, check=False
            )
            if done.returncode not in (0, -9):
                raise RuntimeError(done.stderr[-2000:])
            steps += [{"run": run, **json.loads(line)} for line in done.stdout.splitlines()]
    if steps[-1]["step"] != "the reports":
        raise RuntimeError("the second run did not end")
    return steps


def missed(result: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each missed target."""
    sentences: list[str] = []
    for row in result.get("throughput", ()):
        count = len(row["by"])
        wanted = SPEEDUPS.get(count, 0.0) if row["ideal"] == count else 0.95 * row["ideal"]
        if row["speedup"] < wanted:
            sentences.append(f"{row['way']}: {row['speedup']:.2f} times one, not {wanted:.2f}")
    if "swaps" in result and result["swaps"]["share_after_learning"] > MAX_SWAP_SHARE:
        share = result["swaps"]["share_after_learning"]
        sentences.append(f"swaps take {share:.1%} of the time, not {MAX_SWAP_SHARE:.0%}")
    if "memory" in result:
        grown, lost = result["memory"]["growth_bytes"], result["memory"]["lost"]
        if grown > MAX_GROWTH_BYTES:
            sentences.append(f"the process grew by {grown / 1e6:.0f} MB")
        if lost:
            sentences.append(f"{lost} outputs are missing")
    return sentences


def to_markdown(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    parts = [result["machine"]]
    if "throughput" in result:
        rows = [
            [
                row["way"],
                str(row["images"]),
                f"{row['rate']:.2f}",
                f"{row['speedup']:.2f}",
                f"{row['ideal']:.2f}",
                ", ".join(map(str, row["by"].values())),
            ]
            for row in result["throughput"]
        ]
        head = ["servers", "images", "images/s", "times one", "ideal", "images of each"]
        parts.append(table(head, rows))
    if "swaps" in result:
        one = result["swaps"]
        parts.append(
            f"Two models, {one['images']} images, a load of {one['load_s']} s and answers of "
            f"{one['answer_s']} s: {one['loads']} loads, {one['share']:.1%} of {one['seconds']:.0f}"
            f" s, {one['share_after_learning']:.1%} without the two learning chunks."
        )
    if "memory" in result:
        one = result["memory"]
        parts.append(
            f"{one['images']} images on one server: {one['rate']:.0f} images/s, {one['lost']} "
            f"outputs lost, {one['early_bytes'] / 1e6:.0f} MB after a fifth, at most "
            f"{one['most_bytes'] / 1e6:.0f} MB."
        )
    if "rows" in result:
        rows = [
            [one["run"], one["step"], f"{one['seconds']:.1f}", f"{one['peak_bytes'] / 1e6:.0f}"]
            for one in result["rows"]
        ]
        parts.append(table(["run", "step", "s", "peak MB"], rows))
    return "\n\n".join(parts)


def main() -> int:
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Jobs over many images and several servers.")
    parser.add_argument("--images", type=int, default=2000, help="images of the part memory")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the part rows")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=OUTPUT / "jobs.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine()}
    if "throughput" in args.only:
        result["throughput"] = throughput(100)
    if "swaps" in args.only:
        result["swaps"] = swaps(4000)
    if "memory" in args.only:
        result["memory"] = memory(args.images)
    if "rows" in args.only:
        result["rows"] = null_rows(args.rows)
    write(args.output, result)
    print(to_markdown(result))
    sentences = missed(result)
    for sentence in sentences:
        print(f"MISSED: {sentence}")
    if not sentences:
        print("every target of jobs: met")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
