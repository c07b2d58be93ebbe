"""Print what a release promises about its nodes: their part of ComfyUI's /object_info, as JSON.

    python tools/released_nodes.py > tests/released/VERSION.json

Starts the newest ComfyUI that the tests find, without a language-model server, so that the lists of
models are empty. Texts for people are left out: they may change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from comfyui_host import load_host

KEPT = ("input", "input_order", "output", "output_name", "output_is_list")
KEPT_IF_THERE = ("is_input_list", "output_node")
FOR_PEOPLE = ("tooltip", "display_name", "placeholder", "advanced", "texts")
OF_COMFYUI = ("sampler_name", "scheduler")
"""ComfyUI's own lists, of which only the default is promised."""
NOBODY = "http://127.0.0.1:9"


def promised(info: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a node's /object_info that workflows rely on."""
    kept = {key: info[key] for key in KEPT} | {
        key: info[key] for key in KEPT_IF_THERE if key in info
    }
    kept["input"] = {
        group: {id: _promised_input(id, spec) for id, spec in inputs.items()}
        for group, inputs in info["input"].items()
    }
    return kept


def _promised_input(id: str, spec: list[Any]) -> list[Any]:
    kind, *rest = spec
    settings = [{key: one[key] for key in one if key not in FOR_PEOPLE} for one in rest]
    if id in OF_COMFYUI:
        settings[0]["options"] = [settings[0]["default"]]
    return [kind, *settings]


def main() -> int:
    """Start ComfyUI and print the nodes of this pack."""
    module = load_host()
    found = module.find_host()
    if isinstance(found, str):
        print(found, file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        module.ComfyHost(found, Path(folder), env={"OLLAMA_BASE_URL": NOBODY}, packs={}) as host,
    ):
        nodes = host.object_info()
    ours = {name: promised(info) for name, info in sorted(nodes.items()) if "Refinery" in name}
    print(json.dumps(ours, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
