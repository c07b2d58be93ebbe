"""The cases of tools/soak.py: the usual inputs of each node, and its faults.

Import this only after the pack, and only if ComfyUI or its stub can be imported.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import signal
import sys
from _thread import interrupt_main
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import MetadataPathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import numpy as np
import safetensors.torch
import torch
from comfy.model_management import interrupt_current_processing
from drawn_splats import sphere
from filelock import FileLock
from image_refinery.captioning.job import Result
from image_refinery.captioning.kept import FILE_NAME
from image_refinery.jobs import JobError
from image_refinery.jobs.directory import MANIFEST
from image_refinery.llm import probe
from image_refinery.llm.errors import LLMError, NoPrompt
from image_refinery.llm.retry import Retries
from image_refinery.nodes import ImageRefineryExtension, llm_run
from image_refinery.nodes.caption_folder import CaptionFolder
from image_refinery.nodes.check_setup import CheckSetup
from image_refinery.nodes.describe_tiles import DescribeTiles
from image_refinery.nodes.display_anything import DisplayAnything
from image_refinery.nodes.free_memory import FreeMemory
from image_refinery.nodes.host import config_file
from image_refinery.nodes.host.kept import free_refiner
from image_refinery.nodes.llm_describe import LLMDescribe
from image_refinery.nodes.llm_image_refine import LLMImageRefine
from image_refinery.nodes.load_folder import LoadImagesFromFolder
from image_refinery.nodes.ollama_options import OllamaOptions
from image_refinery.nodes.ollama_process import OllamaProcess
from image_refinery.nodes.ready_instructions import ReadyInstructions
from image_refinery.nodes.refine_folder import RefineFolder
from image_refinery.nodes.refine_splat import RefineSplat
from image_refinery.nodes.refiner_inputs import ON_ERROR
from image_refinery.nodes.save_caption import SaveCaption
from image_refinery.nodes.sdxl_refiner import SDXLRefiner
from image_refinery.nodes.text_to_filename import TextToFilename
from image_refinery.nodes.wildcard_processor import WildcardProcessor
from image_refinery.ollama_client import OllamaClient, Server, Timeouts
from image_refinery.refine import geometry
from image_refinery.refine.errors import RefineError
from image_refinery.refine.splats import SplatRefiner
from PIL import Image
from shallow_refiner import write_shallow_refiner
from soak_batch import IMAGES_PER_JOB, IMAGES_PER_RUN, BatchJob
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.rnn import pad_sequence

TINY = "tiny_refiner.safetensors"
SAVED_NAMES = 40
"""At most so many caption files: growth on the disk does not matter here."""
MAX_JOBS = 20
"""The same for jobs over a folder."""

Inputs = dict[str, Any]
Make = Callable[[random.Random], Inputs]


@dataclass(frozen=True)
class Case:
    """A node and its inputs, or a command and its options.

    Attributes:
        node: Its class; None: a command.
        usual: Makes the inputs of a run without a fault.
        faults: The faults, by their description on the page. Each prepares files or the server, and
            makes the inputs that differ from the usual ones.
        raises: What the node may raise because of a fault; anything else ends the soak.
        cancel_s: A cancel comes after this time at most; 0: the node is too fast for a cancel.
        after: Called after each run.
        rest: Called before each measurement: frees what the node keeps on purpose.
        not_ours: Returns how many of Python's memory blocks a library has leaked so far.
        call: Calls the command with its options, and returns the outcome.
        cancel: Cancels from another thread.
        images: How many images each run adds to the command's job.
        about: Sentences for the page.
    """

    node: Any
    usual: Make
    faults: dict[str, Make]
    raises: tuple[type[BaseException], ...] = ()
    cancel_s: float = 0.0
    after: Callable[[], object] = lambda: None
    rest: Callable[[], object] = lambda: None
    not_ours: Callable[[], int] = lambda: 0
    call: Callable[[Inputs], str] | None = None
    cancel: Callable[[], object] = interrupt_current_processing
    images: int = 0
    about: str = ""


def noise_image(chance: random.Random, channels: int = 3) -> torch.Tensor:
    """Return a small image of noise (1, H, W, C)."""
    return torch.rand(1, chance.choice([64, 96]), chance.choice([64, 96]), channels)


def always(**inputs: Any) -> Make:
    """Return a maker of these inputs."""
    return lambda chance: inputs


def any_of(*choices: Inputs) -> Make:
    """Return a maker of one of these inputs, at random."""
    return lambda chance: chance.choice(choices)


def own_folder(name: str) -> Path:
    """Create the folder of the user's own files for this pack, and return it."""
    folder = Path(folder_paths.get_user_directory(), "image-refinery", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# The nodes that use Ollama.


def quicken(ollama: Any) -> None:
    """Point the nodes at the server, with waits short enough for a thousand runs."""
    os.environ["OLLAMA_BASE_URL"] = ollama.url
    probe.PORTS = (ollama.port,)  # other servers of this machine would change the results
    waits = {"connect_s": 0.5, "first_byte_s": 0.3, "silence_s": 0.3, "quick_s": 2.0}
    pauses = {"first_pause_s": 0.01, "start_s": 0.1, "limit_s": 1.0}
    for kind, values in ((Timeouts, waits), (Retries, pauses)):
        defaults = kind.__init__.__kwdefaults__
        assert defaults is not None
        defaults.update(values)


def often_new(chance: random.Random, text: str) -> list[str]:
    """Return a text for a request: usually a new one, else its answer is kept from before."""
    return [f"{text} {chance.random()}" if chance.random() < 0.8 else text]


def damage_answers(_: random.Random) -> Inputs:
    """Damage the file of the kept answers."""
    own_folder(".").joinpath(FILE_NAME).write_bytes(b"not a database " * 99)
    return {}


def scripted(ollama: Any, kind: str, *faults: str) -> Make:
    """Return a maker that scripts one of these faults for the next request of a kind."""

    def script(chance: random.Random) -> Inputs:
        ollama.script(kind, chance.choice(faults))
        return {}

    return script


def server_faults(ollama: Any) -> dict[str, Make]:
    """Return the faults of a server while it runs a model."""
    broken_off = ("drop", "reset", "reset_mid_stream", "cut_mid_stream", "half_utf8", "no_done")
    odd = ("empty", "thinking_only", "not_json", "wrong_types", "html", "gzip", "one_byte")
    refused = ("busy", "oom", "not_found", "forbidden", "context_length", "error_line")
    loads = ("drop", "busy", "oom", "load_failure", "html", "hang")
    lists = ("drop", "busy", "html", "wrong_body", "cut_mid_stream")
    return {
        "an answer that breaks off or stops": scripted(
            ollama, "chat", *broken_off, "hang_mid_line"
        ),
        "an odd answer": scripted(ollama, "chat", *odd),
        "a refusal": scripted(ollama, "chat", *refused),
        "a load that fails or hangs": scripted(ollama, "load", *loads),
        "a broken list of models": scripted(ollama, "tags", *lists),
        "a broken list of loaded models": scripted(ollama, "ps", "drop", "html"),
        "an unload that fails": scripted(ollama, "unload", "drop", "busy"),
        "an unknown server": always(server=["elsewhere"]),
        "a damaged file of kept answers": damage_answers,
    }


def image_faults() -> dict[str, Make]:
    """Return the faults of a list of images."""
    return {
        "NaN in the image": always(image=[torch.full((1, 64, 64, 3), float("nan"))]),
        "an empty batch": always(image=[torch.zeros(0, 64, 64, 3)]),
        "an image without width, or with five channels": any_of(
            {"image": [torch.zeros(1, 64, 0, 3)]}, {"image": [torch.zeros(1, 64, 64, 5)]}
        ),
    }


def llm_case(ollama: Any, node: Any, usual: Make, **faults: Make) -> Case:
    """Return the case of a node that uses a model."""
    on_error = [["output error text"], ["stop the workflow"]]
    return Case(
        node,
        lambda chance: {"on_error": chance.choice(on_error), **usual(chance)},
        {**server_faults(ollama), **faults},
        raises=(LLMError,),
        cancel_s=0.06,
    )


def llm_image_refine(ollama: Any) -> Case:
    """LLM Image Refine: two stages."""
    models = {"vision_model": ["llava"], "text_model": ["llama3.2"]}
    wrong = {"a missing model": any_of({"text_model": ["gone"]}, {"vision_model": [""]})}
    return llm_case(
        ollama,
        LLMImageRefine,
        lambda chance: {
            "image": [noise_image(chance)],
            "user_instructions": often_new(chance, "Shorten it."),
            **models,
        },
        **image_faults(),
        **wrong,
    )


def llm_describe(ollama: Any) -> Case:
    """LLM Describe: one stage, with images."""
    return llm_case(
        ollama,
        LLMDescribe,
        lambda chance: {"image": [noise_image(chance)], "vision_model": ["llava"]},
        **image_faults(),
    )


def ollama_process(ollama: Any) -> Case:
    """Ollama Process: one stage, with texts."""
    usual = {"instructions": ["Up."], "text_model": ["llama3.2"]}
    wrong = {
        "an empty prompt": always(text=[""], instructions=[""]),
        "a missing model": always(text_model=["gone"]),
    }
    return llm_case(
        ollama, OllamaProcess, lambda chance: {"text": often_new(chance, "A."), **usual}, **wrong
    )


def describe_tiles(ollama: Any) -> Case:
    """Describe Tiles: images with one or several tiles, or with regions."""

    def usual(chance: random.Random) -> Inputs:
        given: Inputs = {
            "image": [noise_image(chance)],
            "vision_model": ["llava"],
            "working_size": ["keep size"],
            "tile_size": [chance.choice([0, 256])],
        }
        if chance.random() < 0.3:
            given["image"] = [torch.rand(1, 64, 600, 3)]
        if chance.random() < 0.3:
            mask = torch.zeros(1, 64, 64)
            mask[:, 2:9, 2:9] = mask[:, 50:60, 50:60] = 1
            given["mask"] = [mask]
        return given

    wrong = {
        "an empty mask, or more masks than images": any_of(
            {"mask": [torch.zeros(1, 64, 64)]}, {"mask": [torch.ones(1, 8, 8)] * 3}
        ),
        "settings out of range": any_of(
            {"working_size": ["huge"]}, {"regions": ["some"]}, {"tile_size": [-1]}, {"scale": [0]}
        ),
        "a missing model": always(vision_model=["gone"]),
    }
    return llm_case(ollama, DescribeTiles, usual, **image_faults(), **wrong)


def check_setup(ollama: Any) -> Case:
    """Check Setup, with good and damaged checkpoints."""
    place_checkpoints()

    def configured(*texts: str) -> Make:
        def write(chance: random.Random) -> Inputs:
            config_file().write_text(chance.choice(texts), "utf-8")
            return {}

        return write

    def unknown_kind(chance: random.Random) -> Inputs:
        probe._known.clear()
        ollama.script("tags", "html")
        return scripted(ollama, "version", "html", "hang")(chance)

    def after() -> None:
        config_file().unlink(missing_ok=True)

    faults = {
        "a broken list of models": scripted(
            ollama, "tags", "drop", "busy", "html", "wrong_body", "cut_mid_stream"
        ),
        "a broken description of a model": scripted(ollama, "show", "drop", "html", "not_found"),
        "a broken list of loaded models": scripted(ollama, "ps", "drop", "html"),
        "a server whose kind cannot be told": unknown_kind,
        "a broken image-refinery.toml": configured("[servers", "[servers.x]\nkind = 'banana'"),
        "a server that is off": configured("[servers.off]\nurl = 'http://127.0.0.1:9'"),
        "a damaged file of kept answers": damage_answers,
    }
    return Case(
        CheckSetup,
        always(),
        faults,
        cancel_s=0.03,
        after=after,
        rest=MetadataPathFinder().invalidate_caches,
        about=(
            "before each measurement Python's lists of the installed packages are freed, too. "
            "Python keeps one for each of the last 128 changes of each folder on `sys.path`, and "
            "other programs may change one at any time: 250 changes of one folder added 2,000 "
            "blocks, all of them in the first 128 changes."
        ),
    )


def free_memory_node(ollama: Any) -> Case:
    """Free Memory, in some runs with a refiner or an Ollama model in memory."""
    lost = LostByLoading(place_checkpoints() / TINY)

    def usual(chance: random.Random) -> Inputs:
        if chance.random() < 0.3:
            with OllamaClient(Server(url=ollama.url)) as client:
                client.load("llava")
        if chance.random() < 0.1:
            with torch.inference_mode():
                SDXLRefiner.execute(**refiner_inputs(chance), unload_after=[False])
        ticked = {"comfyui_models": chance.random() < 0.7, "cuda_cache": chance.random() < 0.7}
        return {"value": object(), "ollama_models": chance.random() < 0.7, **ticked}

    broken = scripted(ollama, "ps", "drop", "html", "busy", "cut_mid_stream")
    faults = {
        "a broken list of loaded models": lambda chance: {**broken(chance), "ollama_models": True},
        "an unload that fails": scripted(ollama, "unload", "drop", "busy", "html"),
        "an unknown server": always(server="elsewhere", ollama_models=True),
    }
    return Case(FreeMemory, usual, faults, cancel_s=0.02, rest=free_refiner, not_ours=lost.blocks)


# SDXL Refiner.


def place_checkpoints() -> Path:
    """Write a small refiner and damaged copies into ComfyUI's checkpoints; return that folder."""
    folder = Path(folder_paths.models_dir, "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    whole = write_shallow_refiner(folder).read_bytes()
    (folder / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.safetensors").write_bytes(b"<html>Not found</html>" * 9)
    (folder / "old.ckpt").write_bytes(b"")
    # A folder with the file's name has its JSON, so that these two fail as late as possible.
    weights = safetensors.torch.load_file(folder / TINY)
    last = "first_stage_model.decoder.conv_out.weight"
    for name, changed in (
        ("nan", {**weights, last: torch.full_like(weights[last], float("nan"))}),
        ("lacking", {key: value for key, value in weights.items() if key != last}),
    ):
        safetensors.torch.save_file(changed, folder / f"{name}.safetensors")
        shutil.copytree(folder / "tiny_refiner", folder / name)
    return folder


class LostByLoading:
    """Counts the leaks of safetensors: 0.8 leaks two integers for each tensor that it reads.

    Measures the leak per tensor of the installed release, with the library alone.
    """

    def __init__(self, file: Path) -> None:
        self._load = safetensors.torch.load_file
        self._tensors = 0
        times, count = 10, len(self._load(file))
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(times):
            self._load(file)
        gc.collect()
        self.per_tensor = round((sys.getallocatedblocks() - before) / times / count)
        safetensors.torch.load_file = self._counted

    def _counted(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        tensors = self._load(*args, **kwargs)
        self._tensors += len(tensors)
        return tensors

    def blocks(self) -> int:
        """Return how many of Python's memory blocks were leaked so far."""
        return self.per_tensor * self._tensors


def refiner_inputs(chance: random.Random) -> Inputs:
    """Return inputs for little work: one or two steps at the image's own size."""
    count = chance.choice([1, 1, 1, 1, 2])
    given: Inputs = {
        "image": [noise_image(chance, chance.choice([3, 3, 4])).repeat(count, 1, 1, 1)],
        "checkpoint": [TINY],
        "prompt": [chance.choice(["", "", f"a cat, {chance.random()}", "a dog " * 90])],
        "strength": [0.5],
        "num_inference_steps": [chance.choice([2, 2, 4])],
        "working_size": ["keep size"],
        "seed": [chance.randrange(2**64)],
    }
    if chance.random() < 0.02:  # it enlarges its region, which takes seconds here
        given["mask"] = [(torch.rand(1, 64, 64) > 0.8).float()]
    return given


def refiner_faults() -> tuple[dict[str, Make], Callable[[], None], Callable[[], int]]:
    """Return the faults of every node that refines, and `Case.after` and `Case.not_ours`."""
    folder = place_checkpoints()
    lost = LostByLoading(folder / TINY)
    hooks: list[Any] = []

    def replaced(chance: random.Random) -> Inputs:
        os.utime(folder / TINY, ns=(0, chance.randrange(10**18)))
        return {}

    def out_of_memory(chance: random.Random) -> Inputs:
        left = [chance.choice([1, 1000])]  # once: it continues in low_vram; always: an error

        def run_out(module: torch.nn.Module, _: Any) -> None:
            if isinstance(module, torch.nn.Conv2d) and left[0] > 0:
                left[0] -= 1
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

        hooks.append(register_module_forward_pre_hook(run_out))
        return {}

    def after() -> None:
        while hooks:
            hooks.pop().remove()

    def checkpoint(*names: str) -> Make:
        return any_of(*({"checkpoint": [name]} for name in names))

    faults = {
        "a damaged, pickled or missing checkpoint": checkpoint(
            *("half.safetensors", "text.safetensors", "old.ckpt", "gone.safetensors")
        ),
        "a checkpoint with missing weights": checkpoint("lacking.safetensors"),
        "a checkpoint with NaN": checkpoint("nan.safetensors"),
        "a replaced checkpoint": replaced,
        "another memory mode": any_of({"memory_mode": ["offload"]}, {"memory_mode": ["low_vram"]}),
        "out of memory": out_of_memory,
    }
    return faults, after, lost.blocks


def refiner_case(node: Any, usual: Make, faults: dict[str, Make]) -> Case:
    """Return the case of a node that refines by itself, with the faults of every refiner."""
    common, after, not_ours = refiner_faults()
    return Case(
        node,
        usual,
        {**common, **faults},
        raises=(RefineError,),
        cancel_s=0.3,
        after=after,
        rest=free_refiner,
        not_ours=not_ours,
    )


def sdxl_refiner(_: Any) -> Case:
    """SDXL Refiner with the tiny refiner."""

    def usual(chance: random.Random) -> Inputs:
        given = {"on_error": [chance.choice(ON_ERROR)], "unload_after": [chance.random() < 0.5]}
        return {**refiner_inputs(chance), **given}

    faults = {
        **image_faults(),
        "settings out of range": any_of(
            {"strength": [1.5]},
            {"num_inference_steps": [1]},
            {"guidance_scale": [-1.0]},
            {"working_size": ["huge"]},
            {"seed": [1, 2]},
        ),
        "more prompts or masks than images": any_of(
            {"prompt": ["a", "b", "c"]}, {"mask": [torch.ones(1, 8, 8)] * 3}
        ),
    }
    return refiner_case(SDXLRefiner, usual, faults)


class HostSplat(SimpleNamespace):
    """ComfyUI's SPLAT: tensors (B, N, ...), padded with zeros, and their real lengths."""

    def __init__(self, *parts: Any) -> None:
        names = ("positions", "scales", "rotations", "opacities", "sh", "counts")
        super().__init__(**dict(zip(names, parts, strict=True)))


def host_splat(*counts: int) -> HostSplat:
    """Return a batch of spheres with so many Gaussians."""
    splats = [sphere(count) for count in counts]
    parts = [
        pad_sequence([getattr(one, name) for one in splats], batch_first=True)
        for name in ("positions", "scales", "rotations", "opacities", "sh")
    ]
    parts[3] = parts[3][..., None]
    return HostSplat(*parts, torch.tensor(counts))


def refine_splat(_: Any) -> Case:
    """Refine Splat with the tiny refiner, and small views."""
    defaults = SplatRefiner.refine.__kwdefaults__
    assert defaults is not None
    defaults["size"] = 64
    for name in ("MEGAPIXEL", "MIN_WORKING_AREA_PX", "MAX_SINGLE_TILE_AREA_PX"):
        setattr(geometry, name, getattr(geometry, name) // 64)
    one, two = host_splat(60), host_splat(60, 40)
    odd, without = host_splat(60), host_splat(9, 9)
    odd.positions[0, 3] = float("nan")
    without.counts[1] = 0

    def usual(chance: random.Random) -> Inputs:
        return {
            "splat": [chance.choice([one, one, two])],
            "checkpoint": [TINY],
            "prompt": [chance.choice(["", f"a cat, {chance.random()}"])],
            "strength": [chance.choice([0.5, 0.5, 0.5, 0.0])],
            "num_inference_steps": [2],
            "views": [chance.choice([1, 2])],
            "passes": [1],
            "seed": [chance.randrange(2**64)],
        }

    faults = {
        "NaN in the splat": always(splat=[odd]),
        "an empty batch, or a splat without Gaussians": any_of(
            {"splat": [HostSplat(*(torch.zeros(0, 1, 3),) * 5, None)]},
            {"splat": [without]},
        ),
        "settings out of range": any_of(
            {"strength": [1.5]},
            {"num_inference_steps": [0]},
            {"views": [0]},
            {"passes": [0]},
            {"guidance_scale": [-1.0]},
        ),
    }
    return refiner_case(RefineSplat, usual, faults)


# The nodes that work on a folder.


class Folder:
    """A folder of images in ComfyUI's input folder, and the jobs over it.

    Args:
        known: inputs of a job that is continued in some runs.
        new: makes inputs that no job had.
    """

    def __init__(self, known: Inputs, new: Make) -> None:
        self._images = Path(folder_paths.get_input_directory(), "cats")
        self._images.mkdir()
        self._jobs = own_folder("jobs")
        self._known, self._new = known, new
        self._locks: list[Any] = []
        random_pixels = np.random.default_rng(0)
        for name in ("1.png", "2.jpg"):
            pixels = random_pixels.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(self._images / name)
        Path(folder_paths.get_input_directory(), "none").mkdir()

    def inputs(self, chance: random.Random) -> Inputs:
        """Return inputs: those of a new job, or of one that may have been cancelled or finished."""
        settings = self._new(chance) if chance.random() < 0.6 else self._known
        return {"folder": ["cats"], "retry_failed": [chance.random() < 0.5], **settings}

    def faults(self) -> dict[str, Make]:
        """Return the faults of every job over a folder."""
        return {
            "a damaged image": self._damage_image,
            "a missing or empty folder, or one outside": any_of(
                *({"folder": [name]} for name in ("gone", "none", "../..", "cats/1.png"))
            ),
            "a pattern without matches": always(pattern=["*.avif"]),
            "a damaged manifest of the job": self._damage_manifests,
            "a job that another process works on": self._hold,
        }

    def caption_is_there(self, chance: random.Random) -> Inputs:
        """Write a caption like a user's."""
        (self._images / "1.txt").write_text("mine", "utf-8")
        return {"existing": [chance.choice(["skip", "overwrite"])], **self._new(chance)}

    def caption_is_folder(self, chance: random.Random) -> Inputs:
        """Let a folder have the name of a caption."""
        (self._images / "2.txt").mkdir()
        return self._new(chance)

    def after(self) -> None:
        """Repair all that a run or a fault left."""
        while self._locks:
            self._locks.pop().release()
        for file in (*self._images.glob("*.txt"), *self._images.glob("*.gif")):
            file.rmdir() if file.is_dir() else file.unlink()
        jobs = list(self._jobs.iterdir())
        if len(jobs) > MAX_JOBS or any(_is_damaged(job) for job in jobs):
            for folder in (*jobs, Path(folder_paths.get_output_directory(), "refined")):
                shutil.rmtree(folder, ignore_errors=True)

    def _damage_image(self, chance: random.Random) -> Inputs:
        data = (self._images / "1.png").read_bytes()
        (self._images / "half.gif").write_bytes(data[: len(data) // 2])
        return self._new(chance)

    def _damage_manifests(self, _: random.Random) -> Inputs:
        for job in self._jobs.iterdir():
            (job / MANIFEST).write_text("{", "utf-8")
        return self._known

    def _hold(self, _: random.Random) -> Inputs:
        for job in self._jobs.iterdir():
            lock = FileLock(job / "lock")
            lock.acquire()
            self._locks.append(lock)
        return self._known


def _is_damaged(job: Path) -> bool:
    manifest = job / MANIFEST
    return manifest.exists() and manifest.read_bytes() == b"{"


OF_A_JOB = (JobError, ValueError, NotADirectoryError)


def caption_folder(ollama: Any) -> Case:
    """Caption Folder, with jobs that are new, continued or finished."""

    def asking(text: str) -> Inputs:
        return {"custom_vision_prompt": [text]}

    folder = Folder(asking("Name it."), lambda chance: asking(f"Name it. {chance.random()}"))

    def usual(chance: random.Random) -> Inputs:
        return {
            "vision_model": ["llava"],
            "text_model": ["llama3.2"],
            "instructions": [chance.choice(["", f"Shorten it. {chance.random()}"])],
            "existing": ["overwrite"],
            **folder.inputs(chance),
        }

    faults = {
        **server_faults(ollama),
        **folder.faults(),
        "a caption that is there": folder.caption_is_there,
        "a folder in place of a caption": folder.caption_is_folder,
        "a missing model": any_of({"vision_model": ["gone"]}, {"vision_model": [""]}),
    }
    raises = (LLMError, *OF_A_JOB)
    return Case(CaptionFolder, usual, faults, raises=raises, cancel_s=0.1, after=folder.after)


def refine_folder(_: Any) -> Case:
    """Refine Folder with the tiny refiner, with jobs that are new, continued or finished."""
    common, after_refining, not_ours = refiner_faults()
    folder = Folder({"seed": [7]}, lambda chance: {"seed": [chance.randrange(2**64)]})

    def usual(chance: random.Random) -> Inputs:
        return {
            "checkpoint": [TINY],
            "prompt": [chance.choice(["", f"a cat, {chance.random()}"])],
            "strength": [0.5],
            "num_inference_steps": [2],
            "working_size": ["keep size"],
            "format": [chance.choice(["png", "jpg", "webp"])],
            **folder.inputs(chance),
        }

    def after() -> None:
        after_refining()
        folder.after()

    faults = {
        **common,
        **folder.faults(),
        "settings out of range": any_of(
            {"strength": [1.5]}, {"guidance_scale": [-1.0]}, {"working_size": ["huge"]}
        ),
    }
    return Case(
        RefineFolder,
        usual,
        faults,
        raises=(RefineError, *OF_A_JOB),
        cancel_s=0.3,
        after=after,
        rest=free_refiner,
        not_ours=not_ours,
    )


# The nodes for texts and files.


def ollama_options(_: Any) -> Case:
    """Ollama Options."""
    usual = {"num_ctx": 4096, "stop": "END\nSTOP", "format": '{"type": "object"}', "min_p": 0.1}
    faults = {
        "a format that is not JSON": any_of({"format": "{"}, {"format": "xml"}, {"format": "[1]"}),
        "an invalid schema": always(format='{"type": "objekt"}'),
        "values out of range": any_of(
            {"think": "deep"}, {"free_memory": "perhaps"}, {"max_image_side": 0}, {"parallel": 0}
        ),
    }
    return Case(OllamaOptions, always(**usual), faults, raises=(ValueError,))


def prompt_presets(_: Any) -> Case:
    """Prompt Presets, with user files that are created and deleted."""
    folder = own_folder("instructions")

    def written(data: bytes) -> Make:
        def write(chance: random.Random) -> Inputs:
            (folder / "own.txt").write_bytes(data)
            return {"pick": "own", "text": ""}

        return write

    def after() -> None:
        (folder / "own.txt").unlink(missing_ok=True)

    names = ("Tag list", "Translation")
    faults = {
        "an unknown name": always(pick="gone", text=""),
        "an empty, huge or binary file": lambda chance: written(
            chance.choice([b"", b"x" * 200_000, bytes(range(256)), b"\xff\xfeodd"])
        )(chance),
        "an edited file": lambda chance: written(str(chance.random()).encode())(chance),
    }
    return Case(
        ReadyInstructions,
        lambda chance: {"pick": chance.choice(names), "text": chance.choice(["", "My own."])},
        faults,
        raises=(ValueError,),
        after=after,
    )


def wildcard_processor(_: Any) -> Case:
    """Wildcard Processor, with a file that changes before each run."""
    folder = own_folder("wildcards")
    (folder / "endless.txt").write_text("__endless__ __endless__", "utf-8")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 9)

    def usual(chance: random.Random) -> Inputs:
        (folder / "edited.txt").write_text(f"one {chance.random()}\n2::two\n# no", "utf-8")
        text = "A __colour__ cat, {2$$a|b|c}, __edited__, __style/*__, {x|__light__}"
        return {"text": [text], "seed": [chance.randrange(2**64)], "strip_comments": [True]}

    faults = {
        "files that refer to themselves": always(text=["__endless__"]),
        "missing files, or files without text": always(text=["__gone__ __binary__ __../x__"]),
        "unbalanced braces": any_of(
            {"text": ["{a|{b|c}"]}, {"text": ["{" * 500]}, {"text": ["{999$$__colour__}"]}
        ),
        "odd characters": always(text=["\ud800 \0 __\ud800__"]),
        "an empty or missing text": any_of({"text": [""]}, {"text": []}),
    }
    return Case(WildcardProcessor, usual, faults)


class Unshowable:
    """An object without a text form."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def display_anything(_: Any) -> Case:
    """Display Anything, with all kinds of values."""

    def usual(chance: random.Random) -> Inputs:
        image, mask = noise_image(chance), torch.rand(1, 32, 32)
        values = ("a text", 1.5, {"a": [1, None]}, image, mask, image.numpy(), image.half())
        held = {"hold": [chance.random() < 0.1], "held_text": ["mine"]}
        return {"value": [chance.choice(values)] * chance.choice([1, 3]), **held}

    ring: list[Any] = [1]
    ring.append(ring)
    faults = {
        "NaN, empty and odd tensors": any_of(
            {"value": [torch.full((1, 8, 8, 3), float("nan"))]},
            {"value": [torch.zeros(0, 8, 8, 3)]},
            {"value": [torch.zeros(2, 2, dtype=torch.complex64)]},
        ),
        "a list that contains itself": always(value=[ring]),
        "a huge text": lambda chance: {"value": ["x" * 2_000_000]},
        "a value without a text form": any_of({"value": [Unshowable()]}, {"value": ["\ud800"]}),
        "no value": always(value=None),
    }

    def after() -> None:
        for file in Path(folder_paths.get_temp_directory()).iterdir():
            file.unlink()

    return Case(DisplayAnything, usual, faults, raises=(RuntimeError,), after=after)


def load_folder(_: Any) -> Case:
    """Load Images From Folder, with good and damaged files."""
    top = Path(folder_paths.get_input_directory())
    good, mixed, bad = (top / name for name in ("good", "mixed", "bad"))
    for folder in (good, mixed, bad):
        folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for name in ("1.png", "2.jpg", "3.webp", "4.gif", "5.tiff"):
        Image.fromarray(noise).save(good / name)
        data = (good / name).read_bytes()
        (mixed / name).write_bytes(data)
        (mixed / f"half{name}").write_bytes(data[: len(data) // 2])
        (bad / name).write_bytes(data[: len(data) // 3])
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(good / "6.png")
    (bad / "empty.png").write_bytes(b"")
    (bad / "text.jpg").write_bytes(b"not an image")
    Image.new("1", (20_000, 20_000)).save(bad / "bomb.png")  # Pillow's limit is below that

    def chosen(*names: str) -> Make:
        return any_of(*({"folder": name} for name in names))

    faults = {
        "damaged files among good ones": chosen("mixed"),
        "only damaged files, one of them a decompression bomb": chosen("bad"),
        "a missing folder, or one outside input": chosen("gone", "../..", "/", "good/1.png"),
        "a pattern or start without matches": any_of({"pattern": "*.avif"}, {"start": 99}),
    }
    return Case(
        LoadImagesFromFolder,
        lambda chance: {"folder": "good", "limit": chance.choice([0, 0, 2])},
        faults,
        raises=(ValueError, NotADirectoryError),
        cancel_s=0.01,
    )


def save_caption(_: Any) -> Case:
    """Save Caption, into several folders."""
    top = Path(folder_paths.get_input_directory())
    (top / "taken.txt").mkdir()
    (top / "file").write_bytes(b"")
    (top / "binary.txt").write_bytes(bytes(range(256)))

    def usual(chance: random.Random) -> Inputs:
        number = chance.randrange(SAVED_NAMES)
        return {
            "name": f"cats/{number}.png",
            "text": f"a cat {number}",
            "place": chance.choice(["input", "output"]),
            "subfolder": chance.choice(["", "set/1"]),
            "existing": chance.choice(["skip", "overwrite", "append"]),
        }

    faults = {
        "a name outside the folder, or no name": any_of(
            {"name": "../a.png"}, {"name": "/a.png"}, {"name": "a\0.png"}, {"name": " "}
        ),
        "a name that is too long": always(name="x" * 300 + ".png"),
        "a folder in place of the file, or the reverse": any_of(
            {"name": "taken.png", "place": "input", "subfolder": "", "existing": "overwrite"},
            {"name": "file/a.png", "place": "input", "subfolder": ""},
        ),
        "an existing caption that is not text": always(
            name="binary.png", place="input", subfolder="", existing="append"
        ),
        "a text that cannot be encoded": always(text="\ud800", name="odd.png"),
        "an error message as the text": lambda chance: {
            "text": llm_run.to_texts([Result(error=NoPrompt("The prompt is empty."))])[0]
        },
        "an unknown place or mode": any_of({"place": "root"}, {"existing": "ask"}),
    }
    return Case(SaveCaption, usual, faults, raises=(ValueError, OSError))


def text_to_filename(_: Any) -> Case:
    """Text To Filename, with all kinds of texts."""
    odd = ("\ud800", "\0", "CON", "a/../b", "\u0301" * 500, "\U0001f600" * 200, "x" * 100_000)
    faults = {
        "odd texts": any_of(*({"text": text} for text in odd)),
        "odd folders": any_of({"folder": "../.."}, {"folder": "/a//b\\c"}, {"folder": "NUL"}),
        "an empty text": always(text=""),
    }
    return Case(TextToFilename, lambda chance: {"text": f"A cat, {chance.random()}"}, faults)


# The command.


def batch(ollama: Any) -> Case:
    """`image-refinery batch`: jobs that grow, and that Ctrl-C cancels."""
    # Without a handler, interrupt_main does nothing: a cancel counts while the command handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["XDG_CONFIG_HOME"] = folder_paths.get_user_directory()
    job = BatchJob(Path(folder_paths.base_path, "batch"), ollama.forget_script)
    return Case(
        None,
        job.options,
        {**server_faults(ollama), **job.faults()},
        cancel_s=0.08,
        after=job.after,
        call=job.call,
        cancel=interrupt_main,
        images=IMAGES_PER_RUN,
        about=(
            f"each run adds {IMAGES_PER_RUN} images to a job and calls the command, which Ctrl-C "
            "may cancel. What a call leaves undone, the next call does. An error message is exit "
            f"code 1. When the job has {IMAGES_PER_JOB} images, calls without a fault retry "
            "what failed. Then the tool checks that each image has one result in the job's rows, "
            "one line in `metadata.jsonl` and one `.txt` file, that all three agree, and that no "
            "other file is beside the images. Then a new job begins."
        ),
    )


CASES: dict[str, Callable[[Any], Case]] = {
    "LLM Image Refine": llm_image_refine,
    "SDXL Refiner": sdxl_refiner,
    "LLM Describe": llm_describe,
    "Ollama Process": ollama_process,
    "Ollama Options": ollama_options,
    "Prompt Presets": prompt_presets,
    "Wildcard Processor": wildcard_processor,
    "Display Anything": display_anything,
    "Free Memory": free_memory_node,
    "Load Images From Folder": load_folder,
    "Save Caption": save_caption,
    "Text To Filename": text_to_filename,
    "Check Setup": check_setup,
    "Caption Folder": caption_folder,
    "Refine Folder": refine_folder,
    "Describe Tiles": describe_tiles,
    "Refine Splat": refine_splat,
}
COMMANDS: dict[str, Callable[[Any], Case]] = {"batch": batch}
"""Makers of the cases; the server is that of tests/faulty_ollama.py (`llava` and `llama3.2`)."""


def check_cases(left_out: Collection[str]) -> None:
    """Raise AssertionError if a node of the pack has no case, or a case has no node.

    Args:
        left_out: display names of nodes that need no case.
    """
    nodes = asyncio.run(ImageRefineryExtension().get_node_list())
    missing = {node.define_schema().display_name for node in nodes} ^ {*CASES, *left_out}
    assert not missing, f"no case for {missing}"


def make(name: str, ollama: Any) -> Case:
    """Return the case of a node or command."""
    quicken(ollama)
    return {**CASES, **COMMANDS}[name](ollama)
