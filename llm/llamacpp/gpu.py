"""Whether llama.cpp can use this machine's GPU, and how to get a build that can."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..._program import install

# In a separate process: the import loads llama.cpp, and a CUDA build also takes VRAM.
_LIST_DEVICES = "import xllamacpp; print([d['type'].name for d in xllamacpp.get_device_info()])"
_PROBE_TIMEOUT_S = 60


@cache
def gpu_remark() -> str:
    """Return why the embedded engine does not use the GPU, and what to do, or "".

    If there is a GPU, the first call starts a process (about 0.3 s).
    """
    if sys.platform == "darwin" or not find_spec("xllamacpp"):
        return ""  # the build for Macs has Metal
    brand = _gpu_brand()
    reason = _why_unused() if brand else ""
    if not reason:
        return ""
    return (
        f"The embedded engine does not use this machine's {brand} GPU: {reason}. xllamacpp has "
        f"builds for {brand} GPUs, and its page lists the index of each. Install one with: "
        f"{install('xllamacpp --force-reinstall --index-url ADDRESS')}"
    )


def _gpu_brand() -> str:
    torch = sys.modules.get("torch")  # importing it would take seconds
    if torch is not None and torch.cuda.is_available():
        return "AMD" if torch.version.hip else "NVIDIA"
    if torch is not None and hasattr(torch, "xpu") and torch.xpu.is_available():
        return "Intel"
    if shutil.which("nvidia-smi"):
        return "NVIDIA"
    if shutil.which("rocm-smi") or Path("/dev/kfd").exists():
        return "AMD"
    return ""


def _why_unused() -> str:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _LIST_DEVICES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # the reason is unknown
    if probe.returncode:
        lines = probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"]
        return f"xllamacpp can't be loaded ({lines[-1]})"
    if "GPU" in probe.stdout:
        return ""
    return "the installed xllamacpp is built for the CPU only, or not for this GPU's driver"
