"""Models of our own, with which llama.cpp runs as it does with real ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

if "tiny_gguf" not in sys.modules:  # tests/ is not on sys.path, and must not be
    spec = importlib.util.spec_from_file_location("tiny_gguf", HERE / "llamacpp" / "tiny_gguf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_gguf"] = module
    spec.loader.exec_module(module)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models, of which `cut` and `noise` are damaged."""
    import tiny_gguf

    folder = tmp_path_factory.mktemp("models")
    tiny_gguf.write_text_model(folder / "tiny.gguf", seed=3)
    tiny_gguf.write_text_model(folder / "other.gguf", seed=4)
    tiny_gguf.write_text_model(folder / "tiny-vision.gguf", seed=1)
    tiny_gguf.write_projector(folder / "mmproj-tiny-vision.gguf")
    tiny_gguf.write_text_model(folder / "thinker.gguf", template=tiny_gguf.THINKING_TEMPLATE)
    tiny_gguf.write_text_model(folder / "slow.gguf", width=384, layers=8, heads=6, context=16384)
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:300_000])
    (folder / "noise.gguf").write_bytes(b"this is no model")
    return folder
