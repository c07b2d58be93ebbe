"""Load packs as ComfyUI's load_custom_node does, and print what each cost, a line of JSON each.

    python measure_import.py COMFYUI PACK [PACK ...] [--once] --cpu

Run by ComfyUI's interpreter. In place of ComfyUI's folder, tests/comfy_stub does where there is no
ComfyUI; then what ComfyUI would have imported before is imported first.

The packs are loaded in turn, each as a new package. first_s is the CPU time of the loading thread,
which also imports what of the standard library nobody had yet; process_s that of all threads, those
that were started waited for; wall_s the time that passed; modules what was not imported before;
nodes their ids; error why a pack could not be loaded. heavy names libraries that the pack imported
though nothing was run, had_heavy those that were there before it. Without --once each is loaded
REPEATS times in all, and cpu_s is the least of all: what a busy machine adds is not in it.
"""

import asyncio
import importlib
import importlib.util
import json
import re
import sys
import threading
import time
from pathlib import Path

HEAVY = (
    *("diffusers", "transformers", "accelerate", "xllamacpp", "huggingface_hub", "gguf"),
    *("requests", "urllib3", "charset_normalizer", "chardet"),
)
BEFORE = ("server", "nodes", "comfy_api.latest", "comfy.utils", "folder_paths")
WITHOUT_COMFYUI = ("torch", "numpy", "PIL.Image", "requests")
REPEATS = 5
THREADS_LIMIT_S, POLL_S = 3.0, 0.002


def load(pack, name):
    """Import a pack (a folder or one file) under a name; return the ids of its nodes."""
    folder = pack.is_dir()
    spec = importlib.util.spec_from_file_location(
        name,
        pack / "__init__.py" if folder else pack,
        submodule_search_locations=[str(pack)] if folder else None,
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    old_style = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if old_style is not None:
        return list(old_style)

    async def nodes():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return [one.GET_SCHEMA().node_id for one in asyncio.run(nodes())]


def measured(pack, name):
    """Load a pack; return what that cost."""
    re.purge()  # patterns that an earlier load compiled are no gift to this one
    before, threads = set(sys.modules), set(threading.enumerate())
    result = {"pack": pack.name, "nodes": [], "had_heavy": sorted(set(HEAVY) & before)}
    wall, cpu, process = time.perf_counter(), time.thread_time(), time.process_time()
    try:
        result["nodes"] = load(pack, name)
    except Exception as error:  # noqa: BLE001 (another pack's; ComfyUI goes on as well)
        result["error"] = f"{type(error).__name__}: {error}"
    result["first_s"] = result["cpu_s"] = time.thread_time() - cpu
    result["wall_s"] = time.perf_counter() - wall
    until = time.monotonic() + THREADS_LIMIT_S
    while set(threading.enumerate()) - threads and time.monotonic() < until:
        time.sleep(POLL_S)
    result["process_s"] = time.process_time() - process
    result["modules"] = sorted(set(sys.modules) - before)
    result["heavy"] = sorted(set(HEAVY) & set(result["modules"]))
    return result


def prepare(home):
    """Import what ComfyUI imports before it loads packs."""
    sys.path[0] = str(home)  # instead of this script's folder
    if (home / "main.py").is_file():
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
    else:
        for name in WITHOUT_COMFYUI:
            importlib.import_module(name)
    for name in BEFORE:
        importlib.import_module(name)
    asyncio.run(asyncio.sleep(0))  # ComfyUI's loop runs already


def main():
    """Measure what the command line names."""
    once = "--once" in sys.argv
    if once:
        sys.argv.remove("--once")
    named = []
    while len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        named.append(Path(sys.argv.pop(1)))
    home, *packs = named
    prepare(home)
    for number, pack in enumerate(packs):
        result = measured(pack, f"measured_{number}_x_dot_y")
        for repeat in range(0 if once else REPEATS - 1):
            again = measured(pack, f"measured_{number}_{repeat}_x_dot_y")
            result["cpu_s"] = min(result["cpu_s"], again["cpu_s"])
        sys.stdout.write(f"RESULT{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
