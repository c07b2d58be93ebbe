"""What work costs, in numbers that no machine changes: requests, bytes, opens, copies, evaluations.

A benchmark sees a regression only on a quiet machine; these fail on any. What a change makes less
on purpose is written down here anew. Counted elsewhere, and not again here:

- requests of both stages without the node, all images in one question, one load of a model that
  both stages share (tests/captioning/test_run.py); one connection for many calls
  (test_client.py)
- UNet evaluations with guidance_end (tests/refine/test_parity.py); tiles (test_progress.py)
- the very same image object out, views of a batch (tests/nodes)
- a checkpoint that was moved away and is not missed by a second run (tests/refine/test_loading.py)
- bytes in memory by memory mode (tests/refine/test_residency.py)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STUB = TESTS / "comfy_stub"
PHOTO = ROOT / "examples" / "photo.jpg"
TINY = "tiny_refiner.safetensors"

PROOF = [("version", ""), ("ps", "")]
"""Show that the server is Ollama."""
DESCRIBE = [("load", "llava:latest"), ("chat", "llava:latest")]
REWRITE = [("load", "llama3.2:latest"), ("chat", "llama3.2:latest")]

MOST_PHOTO_BYTES = 371_000
"""Request bodies for the photo of 1024 x 768 px: 359,816 bytes in both stages, and 3 % for other
Pillows."""

pytestmark = pytest.mark.usefixtures("comfy", "nothing_is_kept")


# LLM Image Refine


def refine(server: FaultyOllama, images: torch.Tensor, runs: int = 1, **inputs: Any) -> None:
    """Run the node as ComfyUI does, with this server."""
    from image_refinery.nodes.llm_image_refine import LLMImageRefine

    named = {"vision_model": "llava", "text_model": "llama3.2", "user_instructions": "Shorten it."}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_BASE_URL", server.url)
        for _ in range(runs):
            LLMImageRefine.execute(image=[images], **{k: [v] for k, v in (named | inputs).items()})


def asked(server: FaultyOllama) -> list[tuple[str, str]]:
    """Kind and model of every request, in order."""
    return [(request.kind, request.model) for request in server.requests]


def unload(model: str) -> list[tuple[str, str]]:
    """What giving a model back costs: how much it held, the unload, and a look whether it went."""
    return [("ps", ""), ("unload", model), ("ps", "")]


@pytest.mark.parametrize("count", [1, 8])
def test_requests_of_one_image_and_of_eight(ollama: FaultyOllama, count: int) -> None:
    refine(ollama, torch.rand(count, 64, 96, 3))
    assert asked(ollama) == [
        *PROOF,
        ("tags", ""),
        *(DESCRIBE[:1] + DESCRIBE[1:] * count + unload("llava:latest")),
        *(REWRITE[:1] + REWRITE[1:] * count + unload("llama3.2:latest")),
    ]
    assert ollama.loads == ollama.unloads == {"llava:latest": 1, "llama3.2:latest": 1}
    assert len({request.connection for request in ollama.requests[2:]}) == 1
    assert sum(len(request.images) for request in ollama.requests) == count


def test_requests_of_one_model_for_both_stages(ollama: FaultyOllama) -> None:
    refine(ollama, torch.rand(1, 64, 96, 3), text_model="llava")
    chat = DESCRIBE[1]
    assert asked(ollama) == [*PROOF, ("tags", ""), DESCRIBE[0], chat, chat, *unload("llava:latest")]


def test_models_that_stay_are_loaded_once_and_never_unloaded(ollama: FaultyOllama) -> None:
    refine(ollama, torch.rand(1, 64, 96, 3), runs=2, keep_loaded_minutes=5)
    assert asked(ollama) == [*PROOF, *[("tags", ""), *DESCRIBE, *REWRITE] * 2]
    assert ollama.loads == {"llava:latest": 1, "llama3.2:latest": 1}
    assert ollama.unloads == {}


def test_an_old_server_is_asked_once_for_what_a_model_can(make_ollama: Any) -> None:
    """Capabilities are known by the model's digest, from run to run; so names only used here."""
    from faulty_ollama import text_model, vision_model

    old = make_ollama([vision_model("counted-eye"), text_model("counted-pen")], version="0.12.0")
    refine(
        *(old, torch.rand(1, 64, 96, 3), 3), vision_model="counted-eye", text_model="counted-pen"
    )
    kinds = Counter(asked(old))
    shows = {model: n for (kind, model), n in kinds.items() if kind == "show"}
    assert shows == {"counted-eye:latest": 1, "counted-pen:latest": 1}
    assert kinds["tags", ""] == 3


def test_bytes_sent_for_a_photo(ollama: FaultyOllama) -> None:
    refine(ollama, photo())
    assert 200_000 < sum(len(request.raw_body) for request in ollama.requests) <= MOST_PHOTO_BYTES


def test_describing_all_nodes_asks_for_the_models_once(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI does this when it starts and each time the page is loaded."""
    from image_refinery.nodes import free_memory, host, llm_describe, llm_image_refine
    from image_refinery.nodes import ollama_process as process
    from image_refinery.nodes.host import model_lists, servers

    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    default = model_lists.Source("", lambda: host.open_backend(""))
    lists = model_lists.ModelListCache(lambda: [default])
    monkeypatch.setattr(servers, "model_lists", lists)
    # A hundred times as long, for a machine that pauses; no time at all would stay none.
    monkeypatch.setattr(model_lists, "FRESH_S", model_lists.FRESH_S * 100)
    for _ in range(2):  # while the look goes on, and when it has ended
        for node in (
            llm_image_refine.LLMImageRefine,
            llm_describe.LLMDescribe,
            process.OllamaProcess,
            free_memory.FreeMemory,
        ):
            node.define_schema()
        assert lists._look is not None
        lists._look.join(timeout=30)
        assert asked(ollama) == [*PROOF, ("tags", "")]


# pixels


class Copies(TorchDispatchMode):
    """Counts the tensors of at least `numel` values that operations made in memory of their own."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.count = numel, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.numel() >= self.numel:
            self.count += result.untyped_storage().data_ptr() not in given
        return result


def photo() -> torch.Tensor:
    """The example photo as ComfyUI's LoadImage gives it: (1, 768, 1024, 3)."""
    with Image.open(PHOTO) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).astype(np.float32) / 255.0)[None]


def test_pixels_are_converted_without_a_second_copy() -> None:
    """The bytes of the result, and some rows to work in; a float copy would be four times that."""
    from image_refinery.nodes.host import convert

    picture = photo()
    with Copies(picture.numel()) as copies:
        convert.pixels(picture)()
    assert copies.count == 0, "torch's memory, which tracemalloc does not see"
    tracemalloc.start()
    try:
        result = convert.pixels(picture)()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.nbytes == picture.numel() == 3 * 768 * 1024
    assert result.nbytes <= peak <= 1.5 * result.nbytes


def test_each_image_is_converted_once(
    ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes.host import convert

    converted: list[torch.Tensor] = []
    usual = convert.pixels

    def counted(image: torch.Tensor) -> Any:
        source = usual(image)
        return lambda: (converted.append(image), source())[1]

    monkeypatch.setattr(convert, "pixels", counted)
    images = torch.rand(8, 64, 96, 3)
    refine(ollama, images)
    assert [one.data_ptr() for one in converted] == [one.data_ptr() for one in images]


# SDXL Refiner

COUNTED = ("UNet2DConditionModel", "Encoder", "Decoder", "CLIPTextModelWithProjection")
"""The UNet, the VAE's two halves, the text encoder."""


@contextmanager
def evaluations() -> Iterator[Counter[str]]:
    """Count how often the parts of the model are run."""
    counts: Counter[str] = Counter()

    def count(module: torch.nn.Module, _: Any) -> None:
        if type(module).__name__ in COUNTED:
            counts[type(module).__name__] += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


_opened: list[str] = []


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Every file that Python opens from now on. An audit hook stays for good, so there is one."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            _opened.append(str(arguments[0]))

    sys.addaudithook(note)
    return _opened


@pytest.fixture
def refiner(checkpoints: Path) -> Iterator[Any]:
    """The node, as ComfyUI calls it; afterwards no refiner is kept."""
    from image_refinery.nodes.host.kept import free_refiner
    from image_refinery.nodes.sdxl_refiner import SDXLRefiner

    def run(images: torch.Tensor, **inputs: Any) -> torch.Tensor:
        named = {"checkpoint": TINY, "prompt": "a ball", "working_size": "keep size"} | inputs
        with torch.inference_mode():
            result = SDXLRefiner.execute(image=[images], **{k: [v] for k, v in named.items()})
        return result.result[0][0]

    yield run
    free_refiner()


@pytest.mark.usefixtures("quick_loads")
@pytest.mark.parametrize(
    ("batch", "inputs", "unet", "vae", "prompts"),
    [
        (1, {}, 6, 1, 2),
        (1, {"strength": 0.5, "num_inference_steps": 10}, 5, 1, 2),
        (1, {"guidance_scale": 1.0}, 6, 1, 1),
        (3, {}, 18, 3, 2),
        (1, {"strength": 0.0}, 0, 0, 0),
    ],
    ids=["20 x 0.3", "10 x 0.5", "no guidance", "a batch of three", "strength 0"],
)
def test_evaluations_of_a_refinement(
    refiner: Any, batch: int, inputs: dict[str, Any], unet: int, vae: int, prompts: int
) -> None:
    """int(steps x strength) times the UNet, with both prompts in one evaluation; each prompt once.

    One image through the VAE and back; the prompts of a batch are read once for all of it.
    """
    with evaluations() as counts:
        refiner(torch.rand(batch, 64, 64, 3), **inputs)
    assert [counts[name] for name in COUNTED] == [unet, vae, vae, prompts]


def test_a_second_run_opens_nothing(refiner: Any, checkpoints: Path, opened: list[str]) -> None:
    """Not the checkpoint, not its description, nothing of the package; unload_after is on."""
    refiner(torch.rand(1, 64, 64, 3))
    opened.clear()
    refiner(torch.rand(1, 64, 64, 3))
    assert [name for name in opened if name.startswith((str(checkpoints), str(ROOT)))] == []


# loading the pack

MAX_CPU_S = 0.150
"""What loading may cost the thread that loads packs, on a slow or busy machine.

`dev.py bench imports` holds the real limit, 50 ms above an empty pack.
"""
HEAVY = {"diffusers", "transformers", "accelerate", "huggingface_hub", "xllamacpp"}
PROGRAM = """
import importlib, importlib.util, json, sys, threading, time
from pathlib import Path
root, stub = map(Path, sys.argv[1:])
sys.path.insert(0, str(stub))
# What ComfyUI itself has imported by then.
for name in ("server", "nodes", "comfy_api.latest", "comfy.utils", "folder_paths", "requests",
             "PIL.Image", "safetensors.torch"):
    importlib.import_module(name)
place = root / "tests" / "comfyui" / "measure_import.py"
spec = importlib.util.spec_from_file_location("measure_import", place)
measure = importlib.util.module_from_spec(spec)
spec.loader.exec_module(measure)
threading.Thread.start = lambda thread: None  # nobody waits for the list of models
before = time.thread_time()
nodes = measure.load(root, "loaded_pack")
cpu_s = time.thread_time() - before
print(json.dumps({"nodes": nodes, "cpu_s": cpu_s, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def loaded() -> list[dict[str, Any]]:
    """The pack loaded over the stub, each time in a new process: its nodes, modules, and CPU time.

    The least time counts, so the first that is short enough is the last of at most five.
    """
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(STUB)]
    # Without PYTHONDONTWRITEBYTECODE: as for a user, later runs have the byte code of the first.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    runs: list[dict[str, Any]] = []
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        if runs[-1]["cpu_s"] < MAX_CPU_S:
            break
    return runs


def test_loading_imports_no_heavy_library(loaded: list[dict[str, Any]]) -> None:
    tops = {name.partition(".")[0] for name in loaded[0]["modules"]}
    assert HEAVY & tops == set()
    assert len(loaded[0]["nodes"]) == 18


def test_loading_takes_little_time(loaded: list[dict[str, Any]]) -> None:
    assert min(run["cpu_s"] for run in loaded) < MAX_CPU_S
