"""Node tests run over tests/comfy_stub where no ComfyUI can be imported.

Import a node inside the test (or a fixture), never at the top of a test file: the stub is on
`sys.path` only while the tests of one file run.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STUB_PATH = Path(__file__).parent.parent / "comfy_stub" / "stub_path.py"


def _stub_path():
    spec = importlib.util.spec_from_file_location("comfy_stub_path", STUB_PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("comfy_stub_path", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def comfy() -> Iterator[None]:
    """`comfy`, `comfy_api`, `server` and `folder_paths` can be imported: the real ones, or ours."""
    with _stub_path().installed():
        yield
