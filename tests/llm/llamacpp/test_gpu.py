"""The remark about a GPU that the installed build of llama.cpp does not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from image_refinery.llm.llamacpp import gpu

NOT_LISTED = "the installed xllamacpp is built for the CPU only"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine with xllamacpp on Linux, without torch and without a GPU's tools."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "torch", None)
    # The names of this module alone: the library's own serve every other thread too.
    monkeypatch.setattr(gpu, "shutil", SimpleNamespace(which=lambda name: None))
    monkeypatch.setattr(gpu, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    gpu.gpu_remark.cache_clear()
    yield
    gpu.gpu_remark.cache_clear()


def xllamacpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *kinds: str, code: str = "") -> None:
    """Put a package of that name before the real one in the processes that are started."""
    lines = [
        "from types import SimpleNamespace",
        "def get_device_info():",
        f"    return [{{'type': SimpleNamespace(name=kind)}} for kind in {kinds!r}]",
        code,
    ]
    (tmp_path / "xllamacpp.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def has(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, hip: str | None = None) -> None:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: cuda), version=SimpleNamespace(hip=hip)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)


CPU, GPU = "GGML_BACKEND_DEVICE_TYPE_CPU", "GGML_BACKEND_DEVICE_TYPE_GPU"


@pytest.mark.parametrize(("tool", "brand"), [("nvidia-smi", "NVIDIA"), ("rocm-smi", "AMD")])
def test_a_cpu_build_beside_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, brand: str
) -> None:
    xllamacpp(tmp_path, monkeypatch, CPU)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name if name == tool else None)
    remark = gpu.gpu_remark()
    assert remark.startswith(f"The embedded engine does not use this machine's {brand} GPU: ")
    assert NOT_LISTED in remark and "\n" not in remark
    assert "-m pip install xllamacpp --force-reinstall --index-url ADDRESS" in remark


def test_torch_tells_the_brand_where_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xllamacpp(tmp_path, monkeypatch, CPU)
    has(monkeypatch, cuda=True, hip="7.0")
    assert "AMD GPU" in gpu.gpu_remark()


def test_a_gpu_build_needs_no_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xllamacpp(tmp_path, monkeypatch, CPU, GPU)
    has(monkeypatch, cuda=True)
    assert gpu.gpu_remark() == ""


def test_a_build_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xllamacpp(tmp_path, monkeypatch, code="raise ImportError('libcudart.so.12 is missing')")
    has(monkeypatch, cuda=True)
    assert "can't be loaded (ImportError: libcudart.so.12 is missing)" in gpu.gpu_remark()


def test_no_process_is_started_without_a_gpu_or_xllamacpp_or_on_a_mac(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_process = SimpleNamespace(run=lambda *_, **__: pytest.fail("a process"))
    monkeypatch.setattr(gpu, "subprocess", no_process)
    has(monkeypatch, cuda=False)
    assert gpu.gpu_remark() == ""
    gpu.gpu_remark.cache_clear()
    has(monkeypatch, cuda=True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert gpu.gpu_remark() == ""
    gpu.gpu_remark.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert gpu.gpu_remark() == ""


@pytest.mark.embedded
def test_the_installed_build_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    has(monkeypatch, cuda=True)
    remark = gpu.gpu_remark()
    assert remark == "" or NOT_LISTED in remark
