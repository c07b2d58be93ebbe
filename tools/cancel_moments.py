"""Cancel runs of a real ComfyUI at random moments, and check that nothing is left of them.

    python tools/cancel_moments.py [--count 200] [--seed 1]

Starts ComfyUI (COMFYUI_PATH, or where the tests look) with a scripted Ollama and the tiny refiner.
The graph is Load Image, LLM Image Refine, SDXL Refiner, Save Image; each run has new seeds, so
that nothing comes from the cache. A moment is drawn evenly from a whole run's time. After each
cancel: no request runs on the server, no model that the run loaded is there, the interrupt came
within a second, and threads, files and sockets of ComfyUI are as after the first run. Every tenth
run is left alone, and must give the same texts and pixels as the very first. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from comfyui_host import load_host
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faulty_ollama import FaultyOllama, Reply, text_model, vision_model  # noqa: E402

TINY = "tiny_refiner.safetensors"
MOST_S = 1.0
"""What a cancel may take."""
SETTLE_S = 10.0
"""What unloads in the background and closing connections may take."""
WHOLE_EVERY = 10
TOLERATED = {"threads": 0, "files": 0, "sockets": 1}
"""Above the first run's: one connection that is kept open for the next request may come and go."""


def graph(module: Any, name: str, seed: int) -> dict[str, Any]:
    """Return the graph in the API's form."""
    node = module.node
    return {
        "1": node("LoadImage", image=name),
        "2": node(
            "RefineryLLMImageRefine",
            image=["1", 0],
            user_instructions="Rewrite this as a prompt.",
            vision_model="llava:latest",
            text_model="llama3.2:latest",
            custom_vision_prompt="",
            temperature=0.7,
            top_p=0.9,
            seed=seed,
        ),
        "3": node(
            "RefinerySDXLRefiner",
            image=["2", 0],
            checkpoint=TINY,
            prompt=["2", 2],
            negative_prompt="",
            strength=0.5,
            num_inference_steps=12,
            guidance_scale=5.0,
            seed=seed,
            working_size="keep size",
        ),
        "4": node("SaveImage", images=["3", 0], filename_prefix="moment"),
    }


def resources(pid: int) -> dict[str, int]:
    """Return what a process holds."""
    process = psutil.Process(pid)
    with process.oneshot():
        return {
            "threads": process.num_threads(),
            "files": len(process.open_files()),
            "sockets": len(process.net_connections()),
        }


def settled(host: Any, before: dict[str, int]) -> dict[str, int]:
    """Return the resources as soon as they are no more than before, or after SETTLE_S."""
    until = time.monotonic() + SETTLE_S
    while True:
        now = resources(host.pid)
        grown = {key: now[key] for key in now if now[key] > before[key] + TOLERATED[key]}
        if not grown or time.monotonic() > until:
            return grown
        time.sleep(0.05)


def whole(host: Any, module: Any, name: str, seed: int) -> tuple[list[str], np.ndarray, float]:
    """Run to the end; return the texts of the last request, the pixels and the seconds."""
    began = time.monotonic()
    run = host.run(graph(module, name, seed), timeout_s=120)
    assert run.ok, run.error
    (file,) = host.saved(run, "4")
    return run.texts("2"), np.asarray(Image.open(file)), time.monotonic() - began


def phase(run: Any) -> str:
    """Return what the last text on a node was about."""
    texts = [event.data["text"] for event in run.of("progress_text")]
    before = [text for text in texts if "cancelled" not in text]
    return " ".join(before[-1].split()[:2]) if before else "before any"


def one_cancel(host: Any, server: Any, prompt: dict[str, Any], moment: float) -> tuple[Any, float]:
    """Queue, wait, interrupt; return the run and how long the interrupt took."""
    events = host.listen()
    try:
        prompt_id = host.queue(prompt, events)
        time.sleep(moment)
        began = time.monotonic()
        host.interrupt()
        run = host.finish(prompt_id, events)
    finally:
        events.close()
    ends = [event.at for kind in ("execution_interrupted", "execution_success")
            for event in run.of(kind)]  # fmt: skip
    return run, max([0.0, *(end - began for end in ends)])


def main() -> int:
    """Cancel, check and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    module = load_host()
    found = module.find_host()
    if isinstance(found, str):
        sys.exit(found)
    drawn = random.Random(options.seed)
    port = module.free_port()
    env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{port}", "OMP_NUM_THREADS": "1"}
    models = [vision_model(load_s=0.2), text_model(load_s=0.2)]
    problems: list[str] = []
    phases: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, FaultyOllama(models, port=port) as server:
        server.always("chat", Reply(token_s=0.05, prompt_s=0.2))
        with module.ComfyHost(found, Path(folder), env=env, packs={}) as host:
            module.put_tiny(host)
            name = host.save_input(Image.open(ROOT / "examples" / "scene.png").resize((256, 256)))
            whole(host, module, name, 0)  # loads libraries
            texts, pixels, seconds = whole(host, module, name, 1)
            first = resources(host.pid)
            print(f"ComfyUI {'.'.join(map(str, found.version))}: a whole run takes {seconds:.2f} s")
            for number in range(options.count):
                moment = drawn.uniform(0, seconds * 1.05)
                run, took = one_cancel(host, server, graph(module, name, 100 + number), moment)
                slowest = max(slowest, took)
                ended["interrupted" if run.interrupted else "had ended" if run.ok else "error"] += 1
                where = f"cancel {number + 1} at {moment:.2f} s ({phase(run)})"
                phases[phase(run)] += 1
                if not run.interrupted and not run.ok:
                    problems.append(f"{where}: {run.error['exception_message']}")
                if took > MOST_S:
                    problems.append(f"{where}: took {took:.2f} s")
                if not server.wait_until(lambda: not running(server), SETTLE_S):
                    problems.append(f"{where}: {running(server)} still running")
                if not server.wait_until(lambda: not server.loaded, SETTLE_S):
                    problems.append(f"{where}: {server.loaded} still loaded")
                if grown := settled(host, first):
                    problems.append(f"{where}: {grown}, at first {first}")
                if number % WHOLE_EVERY == WHOLE_EVERY - 1:
                    again, same, _ = whole(host, module, name, 1_000_000 + number)
                    if again != texts:
                        problems.append(f"after {where}: the texts are {again}, not {texts}")
                    if same.shape != pixels.shape:
                        problems.append(f"after {where}: the image has the shape {same.shape}")
                    check, repeated, _ = whole(host, module, name, 1)
                    if check != texts or not np.array_equal(repeated, pixels):
                        problems.append(f"after {where}: the same seed gives another result")
            drafts = [path for path in Path(folder).rglob("*.new") if path.is_file()]
            if drafts:
                problems.append(f"files are left: {drafts}")
    print(f"{options.count} cancels: {dict(ended)}, the slowest took {slowest:.2f} s")
    print("during:", ", ".join(f"{key} {count}" for key, count in phases.most_common()))
    print(*(problems or ["nothing is left of any"]), sep="\n")
    return 1 if problems else 0


def running(server: Any) -> list[str]:
    """Return the kinds of the requests that have not ended."""
    return [one.kind for one in server.requests if one.ended is None and one.closed_at is None]


if __name__ == "__main__":
    sys.exit(main())
