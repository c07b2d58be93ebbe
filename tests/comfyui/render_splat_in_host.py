"""Print, as JSON, how our rendering of a splat differs from that of ComfyUI's Render Splat.

    python render_splat_in_host.py ROOT PACK SPLAT SIZE [SPLAT SIZE ...] --cpu

ROOT is ComfyUI's folder, which goes on sys.path; SPLAT is a .ply file. Answer: RESULT and a JSON
list with the mean difference, how many pixels count, and the seconds of each.
"""

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

root, pack = (Path(sys.argv.pop(1)) for _ in range(2))
jobs = [sys.argv.pop(1) for _ in range(len(sys.argv) - 2)]
sys.path[0] = str(root)  # instead of this script's folder
importlib.import_module("comfy.options").enable_args_parsing()
importlib.import_module("utils.extra_config")  # before comfy/, which has a utils.py too
torch = importlib.import_module("torch")
torch.set_num_threads(1)
# The node's module wants the running server, of which it needs nothing here.
sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=None))
nodes = importlib.import_module("comfy_extras.nodes_gaussian_splat")
types = importlib.import_module("comfy_api.latest").Types

spec = importlib.util.spec_from_file_location(
    "pack", pack / "__init__.py", submodule_search_locations=[str(pack)]
)
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
splats = importlib.import_module("pack.refine.splats")
colors = importlib.import_module("pack.refine.splats.colors")


def theirs(splat, camera, around, angles, size):
    """Render Splat's image of the same view, on black, blended physically."""
    batch = types.SPLAT(
        *(part[None] for part in (splat.positions, splat.scales, splat.rotations)),
        splat.opacities[None, :, None],
        splat.sh[None],
    )
    # The viewer's axes have y up and z towards the viewer.
    x, y, z = around.center.tolist()
    distance = float((camera.position - around.center).norm())
    mode = {"mode": "orbit", "yaw": angles[0], "pitch": angles[1], "distance": distance}
    (info,) = nodes.CreateCameraInfo.execute(mode, x, -y, -z, 0.0, 35.0).args
    arguments = (batch, size, size, 1, 1.0, 1.0, 0.0, 0.0, "#000000", "color")
    image, mask = nodes.RenderSplat.execute(*arguments, camera_info=info).args
    return image[0], mask[0]


def compare(file, size, angles):
    splat = splats.read_ply(file)
    around = splats.frame(splat)
    camera = splats.orbit_camera(around, *angles, size)
    start = time.perf_counter()
    weights = splats.view_weights(splat, camera)
    ours = colors.to_srgb(weights.render(colors.to_linear(splat.colors.clamp(0, 1))))
    middle = time.perf_counter()
    image, mask = theirs(splat, camera, around, angles, size)
    end = time.perf_counter()
    both = (mask > 0.01) & (weights.coverage[..., 0] > 0.01)
    difference = (ours - image).abs()[both]
    return {
        "count": len(splat),
        "share": float(both.float().mean()),
        "mean": float(difference.mean()),
        "coverage": float((mask - weights.coverage[..., 0]).abs().mean()),
        "seconds": [middle - start, end - middle],
    }


with torch.inference_mode():
    pairs = zip(jobs[::2], jobs[1::2], strict=True)
    answers = [
        compare(file, int(size), angles)
        for file, size in pairs
        for angles in ((0.0, 0.0), (35.0, 30.0))
    ]
sys.stdout.write("RESULT" + json.dumps(answers))
