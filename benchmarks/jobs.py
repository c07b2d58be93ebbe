"""Jobs of `image-refinery batch`: how servers share images, swaps, memory, and a million rows.

    python dev.py bench jobs [--images N] [--rows N] [--files N] [--kills N] [--only PART ...]

The command line runs in separate processes against simulated servers (`_simulated_ollama.py`),
which sleep for as long as a model would work. Parts:

    throughput  1, 2 and 4 equal servers, and 3 with a fourth that is three times slower
    swaps       a caption job of two models: the time that loads take, with learned chunks
    memory      many images on one server: the resident size of the process as they go by
    rows        rows of a null task: plan, continue and end a job without any image or server
    files       empty files in folders of 1,000: finding them as a job does, beside Path.rglob
    ray         the same servers without Ray and with it (needs ray; not part of a plain run)
    kills       SIGKILL to the command or to a server at random moments, until all images are done:
                what was lost, and what was asked twice

Prints tables; writes bench-output/jobs.json. Fails where a target is missed. Not in two minutes:

    python dev.py bench jobs --only memory rows files kills ray --images 10000 --rows 1000000
        --files 1000000 --kills 100

`python tools/performance_page.py --long jobs` puts that run beside the usual one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any

from _measure import OUTPUT, ROOT, Simulated, describe_machine, simulated, table, write
from PIL import Image

SPEEDUPS = {2: 1.95, 4: 3.8}
SLOWER = 3.0
MAX_SWAP_SHARE = 0.02
SWAP_LOAD_S, SWAP_ANSWER_S, SWAP_IMAGES = 0.15, 0.03, 400
LEARNING_CHUNKS = 2
"""By their times the size of the others is found."""
SWAP_PAUSE_S = 0.5
"""Less than the descriptions of the smallest chunk after the first take."""
MAX_GROWTH_BYTES = 30_000_000
"""Of the process from a fifth of the images to the end: places of rows, and the answers' cache."""

ANSWER_S, IMAGES_FOR_ONE = 0.2, 50
PARTS = ("throughput", "swaps", "memory", "rows", "files", "kills")
FOLDER_FILES, OURS = 1000, "find_items"
MAX_TIMES_PER_FILE = 2.0
"""How much longer a file may take among all than among a quarter of them."""
RAY = "ray"
MAX_RAY_OVERHEAD = 0.05
RAY_IMAGES, RAY_ANSWER_S, RAY_PARALLEL = 2000, 0.5, 8
"""Of two servers: about a minute each way."""
MAX_KILLS_OF_JOB = 8


def server(answer_s: float, load_s: float = 0.0) -> dict[str, Any]:
    """Return settings of a server whose answers take so long."""
    tokens = 10
    token_s = answer_s / 2 / tokens
    pace = {"prompt_s": answer_s / 2, "token_s": token_s, "batched_token_s": token_s}
    model = {"size": 1_000, "load_s": load_s, "unload_s": 0.0, "tokens": tokens, **pace}
    models = [
        {"name": "seeing", "vision": True, **model},
        {"name": "writing", "vision": False, **model},
    ]
    return {"vram_bytes": 10_000, "parallel": 1, "models": models}


@contextmanager
def running(settings: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Simulated]]:
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


def end(process: subprocess.Popen[str]) -> None:
    """End a process that is still there, as after an error of this benchmark."""
    process.kill()
    process.wait()


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
            with running([server(one) for one in answers], folder) as named:
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
    load_s, answer_s = SWAP_LOAD_S, SWAP_ANSWER_S
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / "images", count)
        with running([server(answer_s, load_s)], folder) as named:
            words = ("--server", "s0", "--task", "caption", "--text-model", "writing")
            process = start(images, folder, *words, "--instructions", "Shorten it.")
            rows = finished(process, folder, count)
            loads = sum(named["s0"].counts()["loads"].values())
    chunks = chunks_of([row["at"] for row in rows])
    learned = chunks[LEARNING_CHUNKS:-1] or chunks[LEARNING_CHUNKS:]
    seconds = sum(seconds for _, seconds in learned)
    taken = seconds_of(rows, answer_s)
    return {
        "images": count,
        "load_s": load_s,
        "answer_s": answer_s,
        "loads": loads,
        "seconds": taken,
        "chunks": [size for size, _ in chunks],
        "share": load_s * loads / taken,
        "share_after_learning": 2 * load_s * len(learned) / seconds if seconds else 1.0,
    }


def chunks_of(times: Sequence[float]) -> list[tuple[int, float]]:
    """Return the images of each chunk, and its seconds, by when the rows were written.

    The rows of a chunk come one after another, when its descriptions have been rewritten. Before
    that there are none for some seconds. The seconds of the first chunk are not known: 0.

    >>> chunks_of([10.0, 10.1, 13.0, 13.1, 13.2])
    [(2, 0.0), (3, 3.1)]
    """
    ends = [at for at in range(1, len(times)) if times[at] - times[at - 1] > SWAP_PAUSE_S]
    places = [0, *ends, len(times)]
    return [
        (end - begin, round(times[end - 1] - times[begin - 1], 3) if begin else 0.0)
        for begin, end in pairwise(places)
    ]


def over_ray(count: int) -> dict[str, Any]:
    """Measure a job without Ray and with it, from the first request on: Ray starts before."""
    found: dict[str, Any] = {"images": count, "answer_s": RAY_ANSWER_S, "parallel": RAY_PARALLEL}
    for way, more in (("local", ()), ("ray", ("--ray",))):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            images = make_images(folder / "images", count)
            settings: dict[str, Any] = {**server(RAY_ANSWER_S), "parallel": RAY_PARALLEL}
            for model in settings["models"]:  # a prompt would be read by one request at a time
                model |= {"prompt_s": 0.0, "token_s": RAY_ANSWER_S / model["tokens"]}
                model["batched_token_s"] = model["token_s"]
            with running([settings, settings], folder) as named:
                words = [word for name in named for word in ("--server", name)]
                words += ["--parallel", str(RAY_PARALLEL), *more]
                rows = finished(start(images, folder, *words), folder, count)
        found[f"{way}_s"] = seconds_of(rows, RAY_ANSWER_S)
    return {**found, "overhead": found["ray_s"] / found["local_s"] - 1}


def memory(count: int) -> dict[str, Any]:
    """Follow the resident size of a job over many images."""
    samples: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / "images", count)
        with running([server(0.0)], folder):
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
began = time.monotonic(), time.process_time()
def took(step):
    global began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = time.monotonic(), time.process_time()
    seconds, cpu = now[0] - began[0], now[1] - began[1]
    found = {"step": step, "seconds": seconds, "cpu_s": cpu, "peak_bytes": peak}
    print(json.dumps(found), flush=True)
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
    jobs.Outputs(job=job, kinds=frozenset({"txt", "jsonl"})).check(items)
    took("the names of all outputs")
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
            lines = done.stdout.splitlines()
            steps += [{"run": run, "rows": count, **json.loads(line)} for line in lines]
    if steps[-1]["step"] != "the reports":
        raise RuntimeError("the second run did not end")
    return steps


FIND = """
import importlib.util, json, sys, time
from pathlib import Path
root, folder, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
spec = importlib.util.spec_from_file_location(
    "image_refinery", root / "__init__.py", submodule_search_locations=[str(root)])
package = sys.modules["image_refinery"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from image_refinery.jobs import find_items
sys.path.append(str(root / "benchmarks"))
from _measure import peak_ram_bytes
before, began = peak_ram_bytes(), time.monotonic()
if way == "find_items":
    found = find_items([folder], recursive=True)
else:
    found = sorted(path for path in folder.rglob("*.png") if path.is_file())
seconds, more = time.monotonic() - began, peak_ram_bytes() - before
print(json.dumps({"files": len(found), "seconds": seconds, "more_bytes": more}))
"""


def listing(most: int) -> list[dict[str, Any]]:
    """Find the files of growing folders, by the pack and by pathlib, each in a process."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (most // 16, most // 4, most):
            folder = Path(temporary, str(count))
            for begin in range(0, count, FOLDER_FILES):
                inner = folder / f"{begin:07}"
                inner.mkdir(parents=True)
                for number in range(begin, min(begin + FOLDER_FILES, count)):
                    os.close(os.open(f"{inner}/{number:07}.png", os.O_CREAT | os.O_WRONLY))
            for way in (OURS, "Path.rglob"):
                command = [sys.executable, "-c", FIND, str(ROOT), str(folder), way]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row = {"way": way, **json.loads(done.stdout)}
                if row["files"] != count:
                    raise RuntimeError(f"{way} found {row['files']} of {count} files")
                found.append(row)
    return found


def kills(of_commands: int, of_servers: int, seed: int) -> list[dict[str, Any]]:
    """Run jobs that are killed again and again, in every way, until there were so many kills.

    Raises:
        RuntimeError: something is lost, double or left behind.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for victim, wanted in (("command", of_commands), ("server", of_servers)):
        ways = cycle(product(("describe", "caption"), (1, 2), (1, 4)))
        done = 0
        while done < wanted:
            task, count, parallel = next(ways)
            seed += 1
            way: dict[str, Any] = {
                "victim": victim,
                "task": task,
                "servers": count,
                "parallel": parallel,
            }
            row = found.setdefault((*way.values(),), {**way, "kills": 0, "images": 0, "twice": []})
            most = min(MAX_KILLS_OF_JOB if victim == "command" else 3, wanted - done)
            one = killed_job(random.Random(seed), **way, most=most)
            print(f"seed {seed}: {way}, {one}", flush=True)
            for name, value in one.items():
                row[name] += value
            done += one["kills"]
    return [*found.values()]


def killed_job(
    chance: random.Random, *, victim: str, task: str, servers: int, parallel: int, most: int
) -> dict[str, Any]:
    """Run one job to its end, in spite of at most so many kills.

    Returns: its images, the kills, and the answers that were begun twice around each kill.
    """
    count, answer_s = chance.randrange(60, 201), chance.uniform(0.005, 0.02)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        images = make_images(folder / "images", count)
        logs = [folder / f"s{number}.log" for number in range(servers)]
        settings = [{**server(answer_s), "log": str(log), "parallel": parallel} for log in logs]
        named = stack.enter_context(running(settings, folder))
        words = [word for name in named for word in ("--server", name)]
        words += ["--parallel", str(parallel), "--task", task, "--out", "txt,jsonl"]
        if task == "caption":
            words += ["--text-model", "writing", "--instructions", "Shorten it."]
        asked: list[Counter[str]] = []  # until each kill, and in all
        process = start(images, folder, *words)
        stack.callback(lambda: end(process))
        until = time.monotonic() + 300
        while True:
            if time.monotonic() > until:
                raise RuntimeError(f"the job did not end: {(folder / 'log').read_text()[-2000:]}")
            if len(asked) < most:
                wait_for_a_moment(chance, process, logs)
            else:
                process.wait(300)
            if process.poll() is not None:
                said = (folder / "log").read_text("utf-8")
                if not process.returncode:
                    break
                # A server that is gone is one sentence, an answer that broke off is a failure
                # of its image, and the next run continues.
                if victim == "command" or "Traceback" in said or " failed, " not in said:
                    raise RuntimeError(f"exit code {process.returncode}: {said[-2000:]}")
                process = start(images, folder, *words, "--retry-failed")
            elif victim == "command":
                end(process)
                time.sleep(0.1)  # until the server has begun what was sent
                asked.append(begun(logs))
                process = start(images, folder, *words)
            else:
                one = named[chance.choice(sorted(named))]
                one.kill()
                asked.append(begun(logs))
                time.sleep(chance.choice((0.0, 0.5, 4.0)))  # within the retries, and longer
                one.start()
        asked.append(begun(logs))
        check_outputs(
            images, folder, count, requests=asked[-1], stages=2 if task == "caption" else 1
        )
    parts = [now - before for before, now in zip([Counter[str](), *asked], asked, strict=False)]
    twice: list[int] = []
    for at, one in enumerate(parts):
        again = {key for later in parts[at + 1 :] for key in later} & one.keys()
        twice.append(one.total() - len(one) + len(again))
    if (rest := twice.pop()) or sum(twice) != asked[-1].total() - len(asked[-1]):
        raise RuntimeError(f"{rest} answers were begun twice without a kill, {twice} around kills")
    return {"images": count, "kills": len(asked) - 1, "twice": twice}


def wait_for_a_moment(
    chance: random.Random, process: subprocess.Popen[str], logs: Sequence[Path]
) -> None:
    """Wait for some more answers to be begun and a little longer, or any time from the start."""
    if chance.random() < 0.3:
        time.sleep(chance.uniform(0.0, 3.0))
        return
    wanted = begun(logs).total() + chance.randrange(1, 40)
    until = time.monotonic() + 20
    while process.poll() is None and begun(logs).total() < wanted and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.1))


def begun(logs: Sequence[Path]) -> Counter[str]:
    """Return how often each answer was begun by any server."""
    return Counter(line for log in logs if log.exists() for line in log.read_text().splitlines())


def check_outputs(
    images: Path, folder: Path, count: int, *, requests: Mapping[str, int], stages: int
) -> None:
    """Raise RuntimeError if an image has not one result in every output, or something is left."""
    done = [row for row in rows_of(folder) if row["status"] == "done"]
    texts = {f"{row['id']}: {row['text'].strip()}" for row in done}
    lines = (folder / "job" / "metadata.jsonl").read_text("utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    captions = [f"{file.stem}.png: {file.read_text('utf-8')}" for file in images.glob("*.txt")]
    if not (
        len(done) == len(texts) == len(listed) == len(captions) == count
        and texts == {f"{one['file_name']}: {one['text']}" for one in listed} == {*captions}
    ):
        raise RuntimeError(
            f"{count} images: {len(done)} rows, {len(texts)} texts, {len(listed)} lines of "
            f"metadata.jsonl, {len(captions)} caption files"
        )
    if len(requests) != stages * count:
        raise RuntimeError(f"{len(requests)} different requests for {count} images")
    if drafts := [*folder.rglob("*.new")]:
        raise RuntimeError(f"left behind: {drafts}")
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"batch" in words and os.fsencode(images) in words:
            raise RuntimeError(f"a process is left: {words}")


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
    if "files" in result:
        each = [row["seconds"] / row["files"] for row in result["files"] if row["way"] == OURS]
        times, last = each[-1] / each[-2], result["files"][-1]
        if times > MAX_TIMES_PER_FILE:
            sentences.append(f"a file takes {times:.1f} times as long among {last['files']:,}")
    if "memory" in result:
        grown, lost = result["memory"]["growth_bytes"], result["memory"]["lost"]
        if grown > MAX_GROWTH_BYTES:
            sentences.append(f"the process grew by {grown / 1e6:.0f} MB")
        if lost:
            sentences.append(f"{lost} outputs are missing")
    if "ray" in result and result["ray"]["overhead"] > MAX_RAY_OVERHEAD:
        sentences.append(f"Ray takes {result['ray']['overhead']:.1%} more time")
    for row in result.get("kills", ()):
        most = row["parallel"] * row["servers"]
        if max(row["twice"], default=0) > most:
            sentences.append(f"{row}: more was asked twice than the {most} requests in flight")
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
            f"{one['answer_s']} s: chunks of {', '.join(map(str, one['chunks']))}. Loads take "
            f"{one['share']:.1%} of {one['seconds']:.0f} s, and {one['share_after_learning']:.1%} "
            "of the whole chunks after the first two, by which the size is learned."
        )
    if "ray" in result:
        one = result["ray"]
        parts.append(
            f"{one['images']} images, answers of {one['answer_s']} s, two servers with "
            f"{one['parallel']} requests at a time: {one['local_s']:.1f} s without Ray, "
            f"{one['ray_s']:.1f} s with it ({one['overhead']:+.1%}), from the first request on."
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
            [
                one["run"],
                one["step"],
                f"{one['seconds']:.1f}",
                f"{one['cpu_s']:.1f}",
                f"{one['peak_bytes'] / 1e6:.0f}",
            ]
            for one in result["rows"]
        ]
        parts.append(f"{result['rows'][0]['rows']:,} rows without images, killed at 90 %:")
        parts.append(table(["run", "step", "s", "processor, s", "peak MB"], rows))
    if "files" in result:
        rows = [
            [
                f"{row['files']:,}",
                row["way"],
                f"{row['seconds']:.2f}",
                f"{row['seconds'] / row['files'] * 1e6:.1f}",
                f"{row['more_bytes'] / 1e6:.0f}",
            ]
            for row in result["files"]
        ]
        parts.append(table(["files", "listed by", "s", "us per file", "MB more"], rows))
    if "kills" in result:
        rows = [
            [
                row["victim"],
                row["task"],
                str(row["servers"]),
                str(row["parallel"]),
                str(row["images"]),
                str(row["kills"]),
                ", ".join(f"{n} x {twice}" for twice, n in sorted(Counter(row["twice"]).items())),
            ]
            for row in result["kills"]
        ]
        head = ["SIGKILL to", "task", "servers", "parallel", "images", "kills"]
        parts.append(table([*head, "kills x requests asked twice"], rows))
    return "\n\n".join(parts)


def main() -> int:
    """Measure, print and write; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Jobs over many images and several servers.")
    parser.add_argument("--images", type=int, default=1000, help="images of the part memory")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the part rows")
    parser.add_argument("--files", type=int, default=64_000, help="files of the part files")
    parser.add_argument(
        "--swap-images", type=int, default=SWAP_IMAGES, help="images of the part swaps"
    )
    parser.add_argument(
        "--kills", type=int, default=3, help="of the command; a fifth as many of a server"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, RAY), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=OUTPUT / "jobs.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine()}
    if "throughput" in args.only:
        result["throughput"] = throughput(IMAGES_FOR_ONE)
    if "swaps" in args.only:
        result["swaps"] = swaps(args.swap_images)
    if RAY in args.only:
        result[RAY] = over_ray(RAY_IMAGES)
    if "memory" in args.only:
        result["memory"] = memory(args.images)
    if "rows" in args.only:
        result["rows"] = null_rows(args.rows)
    if "files" in args.only:
        result["files"] = listing(args.files)
    if "kills" in args.only:
        result["kills"] = kills(args.kills, max(1, args.kills // 5), args.seed)
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
