"""Load the pack as ComfyUI's load_custom_node does, and print what it cost as JSON.

    python measure_import.py COMFYUI PACK --cpu

Run by ComfyUI's interpreter. The pack is loaded REPEATS times, each time as a new package; first_s
is the CPU time of the first load, which also imports what of the standard library nobody had yet,
and cpu_s the least of all: what a busy machine adds is not in it. wall_s is the time that passed in
the first load. heavy names libraries that the pack imported though nothing was run.
"""

import asyncio
import importlib
import importlib.util
import json
import re
import sys
import time
from pathlib import Path

HEAVY = ("diffusers", "accelerate", "xllamacpp", "huggingface_hub", "gguf")


REPEATS = 5


def load(pack, name):
    """Import a pack under a name and ask it for its nodes and their schemas."""
    spec = importlib.util.spec_from_file_location(
        name, pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    async def nodes():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return [one.GET_SCHEMA().node_id for one in asyncio.run(nodes())]


def main():
    """Measure what the command line names."""
    home, pack = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
    sys.path[0] = str(home)  # instead of this script's folder
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
    for already_there in ("server", "nodes", "comfy_api.latest"):
        importlib.import_module(already_there)
    before = set(sys.modules)
    costs = []
    for repeat in range(REPEATS):
        re.purge()  # patterns that an earlier load compiled are no gift to this one
        wall, cpu = time.perf_counter(), time.thread_time()
        names = load(pack, f"measured_{repeat}_x_dot_y")
        costs.append((time.thread_time() - cpu, time.perf_counter() - wall))
    result = {"cpu_s": min(costs)[0], "first_s": costs[0][0], "wall_s": costs[0][1]}
    result["heavy"] = sorted(set(HEAVY) & (set(sys.modules) - before))
    result["nodes"] = names
    sys.stdout.write(f"RESULT{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
