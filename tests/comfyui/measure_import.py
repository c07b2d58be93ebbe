"""Load the pack as ComfyUI's load_custom_node does, and print what it cost as JSON.

    python measure_import.py COMFYUI PACK --cpu

Run by ComfyUI's interpreter. cpu_s is this thread's CPU time, wall_s the time that passed; heavy
names libraries that the pack imported though nothing was run.
"""

import asyncio
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

HEAVY = ("diffusers", "accelerate", "xllamacpp", "huggingface_hub", "gguf")


def load(pack):
    """Import a pack and ask it for its nodes and their schemas."""
    spec = importlib.util.spec_from_file_location(
        "measured_x_dot_y", pack / "__init__.py", submodule_search_locations=[str(pack)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["measured_x_dot_y"] = module
    spec.loader.exec_module(module)

    async def nodes():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    return [one.GET_SCHEMA().node_id for one in asyncio.run(nodes())]


if __name__ == "__main__":
    home, pack_folder = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
    sys.path[0] = str(home)  # instead of this script's folder
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
    for already_there in ("server", "nodes", "comfy_api.latest"):
        importlib.import_module(already_there)
    before = set(sys.modules)
    wall, cpu = time.perf_counter(), time.thread_time()
    names = load(pack_folder)
    result = {"cpu_s": time.thread_time() - cpu, "wall_s": time.perf_counter() - wall}
    result["heavy"] = sorted(set(HEAVY) & (set(sys.modules) - before))
    result["nodes"] = names
    sys.stdout.write(f"RESULT{json.dumps(result)}\n")
