"""Write locales/en/nodeDefs.json from the nodes' schemas: python tools/make_locales.py

The other languages are separate files, written by hand or by machine; tests/test_help.py lists
missing entries. Needs no ComfyUI: tests/comfy_stub is enough to read the schemas.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def node_definitions(schemas: list[Any]) -> dict[str, Any]:
    """Return names, descriptions and tooltips in the form of ComfyUI's locales."""
    return {
        schema.node_id: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {
                one.id: {"name": one.display_name or one.id, "tooltip": one.tooltip}
                for one in schema.inputs
            },
            "outputs": {
                str(index): {"name": one.display_name, "tooltip": one.tooltip}
                for index, one in enumerate(schema.outputs)
            },
        }
        for schema in schemas
    }


def schemas(nodes: Any) -> list[Any]:
    """Return the schema of every node that the pack registers."""
    listed = asyncio.run(nodes.ImageRefineryExtension().get_node_list())
    return [node.define_schema() for node in listed]


def _module(name: str, file: Path, folder: Path | None = None) -> Any:
    places = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Write the file."""
    os.environ["OLLAMA_BASE_URL"] = "http://127.0.0.1:9"  # a closed port: no models are listed
    stub = _module("comfy_stub_path", ROOT / "tests" / "comfy_stub" / "stub_path.py")
    _module("image_refinery", ROOT / "__init__.py", ROOT)
    with stub.installed():
        definitions = node_definitions(schemas(importlib.import_module("image_refinery.nodes")))
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(definitions, indent=2, ensure_ascii=False)
    ENGLISH.write_text(text + "\n", "utf-8", newline="\n")
    print(f"{ENGLISH}: {len(definitions)} nodes")


if __name__ == "__main__":
    main()
