"""Our rendering of splats beside ComfyUI's own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from host import FoundHost
from image_refinery.refine.splats import Splat, write_ply

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def test_a_splat_looks_as_in_render_splat(
    found_comfyui: FoundHost, draw_splat: Callable[..., Splat], tmp_path: Path
) -> None:
    """Colors change slowly over the surface: Render Splat mixes a thousand Gaussians unordered."""
    if not (found_comfyui.home / "comfy_extras" / "nodes_gaussian_splat.py").is_file():
        pytest.skip(f"ComfyUI {'.'.join(map(str, found_comfyui.version))} has no Render Splat")
    write_ply(draw_splat(16384, "smooth"), tmp_path / "sphere.ply")
    said = subprocess.run(
        [
            *(str(found_comfyui.python), str(HERE / "render_splat_in_host.py")),
            *(str(found_comfyui.home), str(ROOT), str(tmp_path / "sphere.ply"), "256", "--cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | {"PYTHONPATH": "", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"},
    )
    lines = [line for line in said.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, said.stderr
    views = json.loads(lines[-1].removeprefix("RESULT"))
    assert len(views) == 2
    for view in views:
        assert view["share"] > 0.3
        assert view["mean"] <= 1 / 255
        assert view["coverage"] <= 1 / 1000
