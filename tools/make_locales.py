"""Write the texts of the nodes' schemas where people read them: python tools/make_locales.py

These are locales/en/nodeDefs.json, and the lists of inputs, outputs and error codes in
web/docs/*.md. The other
languages are separate files, written by hand or by machine; tests/test_help.py lists
missing entries. Needs no ComfyUI: tests/comfy_stub is enough to read the schemas.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"
PAGES = ROOT / "web" / "docs"
CODES = ROOT / "docs" / "errors.md"
MAX_DEFAULT_CHARS = 40


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


def help_page(page: str, schema: Any) -> str:
    """Return a help page with today's lists of inputs and outputs."""
    basic = [one for one in schema.inputs if not one.as_dict().get("advanced")]
    hidden = [one for one in schema.inputs if one not in basic]
    lines = ["## Inputs", "", *(map(_input_line, basic) if basic else ["None."]), ""]
    if hidden:
        lines += ["### Advanced inputs", "", *map(_input_line, hidden), ""]
    outputs = [f"- **{one.display_name}**: {_markdown(one.tooltip)}" for one in schema.outputs]
    lines += ["## Outputs", "", *outputs, "", ""]
    found = re.search(r"^## Inputs\n.*?^## Outputs\n.*?(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{schema.node_id}.md needs ## Inputs, ## Outputs and a heading more"
    page = page[: found.start()] + "\n".join(lines) + page[found.end() :]
    before, heading, _ = page.partition("## Error codes\n")
    return f"{before}{heading}\n{error_codes()}" if heading else page


def error_codes() -> str:
    """Return the sections of docs/errors.md as a list, for a page that is read inside ComfyUI."""
    sections = re.split(r"^### ", CODES.read_text("utf-8"), flags=re.MULTILINE)[1:]
    lines: list[str] = []
    for section in sections:
        code, _, body = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", section).partition("\n")
        meaning = re.findall(r"^\*\*(.+?)\*\*", body, flags=re.MULTILINE)
        remedies = re.findall(r"^\d\. (.+)$", body, flags=re.MULTILINE)
        lines.append(f"- **{code}**: {' '.join([*meaning, *remedies])}")
    return "\n".join(lines) + "\n"


def _input_line(one: Any) -> str:
    default = _default(one.as_dict())
    return f"- **{one.display_name or one.id}**{default}: {_markdown(one.tooltip)}"


def _default(settings: dict[str, Any]) -> str:
    value = settings.get("default")
    if value is None:
        return ""
    named = {True: "on", False: "off"} if isinstance(value, bool) else {"": "empty"}
    text = named.get(value, str(value))
    return f" ({text})" if len(text) <= MAX_DEFAULT_CHARS else ""


def _markdown(text: str) -> str:
    """
    >>> _markdown("__name__ is a line; cat*.png, * and num_ctx")
    '`__name__` is a line; cat\\\\*.png, \\\\* and num_ctx'
    """
    return re.sub(r"(__\w+?__)", r"`\1`", text.replace("*", r"\*"))


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
    """Write the files."""
    os.environ["OLLAMA_BASE_URL"] = "http://127.0.0.1:9"  # a closed port: no models are listed
    stub = _module("comfy_stub_path", ROOT / "tests" / "comfy_stub" / "stub_path.py")
    _module("image_refinery", ROOT / "__init__.py", ROOT)
    with stub.installed():
        found = schemas(importlib.import_module("image_refinery.nodes"))
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(node_definitions(found), indent=2, ensure_ascii=False)
    ENGLISH.write_text(text + "\n", "utf-8", newline="\n")
    for schema in found:
        file = PAGES / f"{schema.node_id}.md"
        file.write_text(help_page(file.read_text("utf-8"), schema), "utf-8", newline="\n")
    print(f"{ENGLISH} and {len(found)} pages in {PAGES}")


if __name__ == "__main__":
    main()
