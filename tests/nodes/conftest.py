"""Node tests run over tests/comfy_stub where no ComfyUI can be imported.

Import a node inside the test (or a fixture), never at the top of a test file: the stub is on
`sys.path` only while the tests of one file run.
"""

import pytest


@pytest.fixture(scope="module", autouse=True)
def comfy_for_all(comfy: None) -> None:
    """Every test here finds ComfyUI, or the stub."""
