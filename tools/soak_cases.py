"""The cases of tools/soak.py: the usual inputs of each node, and its faults.

Import this only after the pack, and only if ComfyUI or its stub can be imported.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import safetensors.torch
import torch
from image_refinery import memory, ollama_client
from image_refinery.captioning.job import Result
from image_refinery.llm.errors import LLMError, NoPrompt
from image_refinery.llm.retry import Retries
from image_refinery.nodes import ImageRefineryExtension, llm_run
from image_refinery.nodes.display_anything import DisplayAnything
from image_refinery.nodes.free_memory import FreeMemory
from image_refinery.nodes.llm_describe import LLMDescribe
from image_refinery.nodes.llm_image_refine import LLMImageRefine
from image_refinery.nodes.load_folder import LoadImagesFromFolder
from image_refinery.nodes.ollama_options import OllamaOptions
from image_refinery.nodes.ollama_process import OllamaProcess
from image_refinery.nodes.ready_instructions import ReadyInstructions
from image_refinery.nodes.refiner_inputs import ON_ERROR
from image_refinery.nodes.save_caption import SaveCaption
from image_refinery.nodes.sdxl_refiner import SDXLRefiner
from image_refinery.nodes.text_to_filename import TextToFilename
from image_refinery.nodes.wildcard_processor import WildcardProcessor
from image_refinery.ollama_client import OllamaClient, Server, Timeouts
from image_refinery.refine.errors import RefineError
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

WEIGHTS = Path(__file__).resolve().parent / "tiny_refiner" / "weights"
TINY = "tiny_refiner.safetensors"
SAVED_NAMES = 40
"""At most so many caption files: growth on the disk does not matter here."""

Inputs = dict[str, Any]
Make = Callable[[random.Random], Inputs]


@dataclass(frozen=True)
class Case:
    """A node and its inputs.

    Attributes:
        node: Its class.
        usual: Makes the inputs of a run without a fault.
        faults: The faults, by their description on the page. Each prepares files or the server, and
            makes the inputs that differ from the usual ones.
        raises: What the node may raise because of a fault; anything else ends the soak.
        cancel_s: A cancel comes after this time at most; 0: the node is too fast for a cancel.
        after: Called after each run.
        rest: Called before each measurement: frees what the node keeps on purpose.
        not_ours: Returns how many of Python's memory blocks a library has leaked so far.
    """

    node: Any
    usual: Make
    faults: dict[str, Make]
    raises: tuple[type[BaseException], ...] = ()
    cancel_s: float = 0.0
    after: Callable[[], object] = lambda: None
    rest: Callable[[], object] = lambda: None
    not_ours: Callable[[], int] = lambda: 0


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
    timeouts = Timeouts(connect_s=0.5, first_byte_s=0.3, silence_s=0.3, quick_s=2.0)
    retries = Retries(first_pause_s=0.01, start_s=0.1, limit_s=1.0)
    quick = partial(OllamaClient, timeouts=timeouts, retries=retries)
    ollama_client.OllamaClient = quick


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
    texts = {"user_instructions": ["Shorten it."]}
    models = {"vision_model": ["llava"], "text_model": ["llama3.2"]}
    wrong = {"a missing model": any_of({"text_model": ["gone"]}, {"vision_model": [""]})}
    return llm_case(
        ollama,
        LLMImageRefine,
        lambda chance: {"image": [noise_image(chance)], **models, **texts},
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
    usual = {"text": ["A."], "instructions": ["Up."], "text_model": ["llama3.2"]}
    wrong = {
        "an empty prompt": always(text=[""], instructions=[""]),
        "a missing model": always(text_model=["gone"]),
    }
    return llm_case(ollama, OllamaProcess, always(**usual), **wrong)


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
    return Case(
        FreeMemory, usual, faults, cancel_s=0.02, rest=memory.free_refiner, not_ours=lost.blocks
    )


# SDXL Refiner.


def place_checkpoints() -> Path:
    """Copy the tiny refiner and damaged copies into ComfyUI's checkpoints; return that folder."""
    folder = Path(folder_paths.models_dir, "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(WEIGHTS / "tiny_refiner", folder / "tiny_refiner", dirs_exist_ok=True)
    whole = (WEIGHTS / TINY).read_bytes()
    (folder / TINY).write_bytes(whole)
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
        shutil.copytree(WEIGHTS / "tiny_refiner", folder / name, dirs_exist_ok=True)
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


def sdxl_refiner(_: Any) -> Case:
    """SDXL Refiner with the tiny refiner."""
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

    def usual(chance: random.Random) -> Inputs:
        given = {"on_error": [chance.choice(ON_ERROR)], "unload_after": [chance.random() < 0.5]}
        return {**refiner_inputs(chance), **given}

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
    return Case(
        SDXLRefiner,
        usual,
        faults,
        raises=(RefineError,),
        cancel_s=0.3,
        after=after,
        rest=memory.free_refiner,
        not_ours=lost.blocks,
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


def ready_instructions(_: Any) -> Case:
    """Ready Instructions, with user files that are created and deleted."""
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


CASES: dict[str, Callable[[Any], Case]] = {
    "LLM Image Refine": llm_image_refine,
    "SDXL Refiner": sdxl_refiner,
    "LLM Describe": llm_describe,
    "Ollama Process": ollama_process,
    "Ollama Options": ollama_options,
    "Ready Instructions": ready_instructions,
    "Wildcard Processor": wildcard_processor,
    "Display Anything": display_anything,
    "Free Memory": free_memory_node,
    "Load Images From Folder": load_folder,
    "Save Caption": save_caption,
    "Text To Filename": text_to_filename,
}
"""Makers of the cases; the server is that of tests/faulty_ollama.py (`llava` and `llama3.2`)."""


def make(name: str, ollama: Any) -> Case:
    """Return the case of a node.

    Raises:
        AssertionError: a node of the pack has no case.
    """
    quicken(ollama)
    nodes = asyncio.run(ImageRefineryExtension().get_node_list())
    missing = {node.define_schema().display_name for node in nodes} ^ set(CASES)
    assert not missing, f"no case for {missing}"
    return CASES[name](ollama)
