"""Load the checkout as the package `image_refinery`, whatever its folder is called.

The root must never be on sys.path: its `nodes` package would hide ComfyUI's `nodes.py`.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "image_refinery" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "image_refinery", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["image_refinery"] = package
    spec.loader.exec_module(package)
