"""For the scripts in this folder that start a real ComfyUI, as the tests do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_FILE = Path(__file__).resolve().parent.parent / "tests" / "comfyui" / "host.py"


def load_host() -> ModuleType:
    """Import tests/comfyui/host.py, which finds and starts ComfyUI."""
    spec = importlib.util.spec_from_file_location("host", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["host"] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
