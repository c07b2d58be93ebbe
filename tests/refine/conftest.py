"""Fixtures of the refiner's tests: a tiny refiner with the true architecture, and drawn scenes."""

import importlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from image_refinery.refine import Components, ImageRefiner, LocalResidency
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
TRAINED_FILE = TOOLS / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"


def load_tool(folder: str, name: str) -> ModuleType:
    """Import a module of tools/ as its scripts import one another."""
    sys.path.insert(0, str(TOOLS / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="session")
def tool() -> Callable[[str, str], ModuleType]:
    """Imports a module of tools/: tool(folder, name)."""
    return load_tool


@pytest.fixture(scope="session")
def trained_file() -> Path:
    """The tiny refiner that was trained, with the layers of tools/tiny_refiner/tiny_model.py."""
    return TRAINED_FILE


@pytest.fixture(scope="session")
def tiny_folder(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny refiner as a diffusers folder."""
    folder = tmp_path_factory.mktemp("tiny") / "folder"
    pipeline = plain_pipeline(tiny_file, torch.float16)
    load_tool("tiny_refiner", "tiny_export").save_folder(pipeline, folder)
    for name in ("vocab.json", "merges.txt"):
        source = tiny_file.with_suffix("") / "tokenizer_2" / name
        (folder / "tokenizer_2" / name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def draw() -> Callable[[int, tuple[int, int]], Image.Image]:
    """Draws the undamaged scene of a held-out seed: draw(0, (width, height))."""
    scenes = load_tool("toy_vision", "scenes")

    def draw_scene(index: int, size: tuple[int, int]) -> Image.Image:
        return scenes.paint(scenes.compose(scenes.HELD_OUT_SEEDS[index], size))

    return draw_scene


class OpenRefiner(ImageRefiner):
    """A refiner that shows what it loaded, which its `residency` argument gets."""

    components: Components
    residency: LocalResidency

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords, residency=self._open)

    def _open(self, components: Components, device: torch.device) -> LocalResidency:
        self.components = components
        self.residency = LocalResidency(components, device, self.memory_mode)
        return self.residency

    def close(self) -> None:
        super().close()
        vars(self).pop("components", None)
        vars(self).pop("residency", None)


@pytest.fixture(scope="session")
def open_refiner() -> type[OpenRefiner]:
    """Makes a refiner that has `components` and `residency` as soon as it has loaded them."""
    return OpenRefiner


@pytest.fixture(scope="session")
def refiner(tiny_file: Path) -> OpenRefiner:
    """A refiner that tests share; none may leave it in another state."""
    return OpenRefiner("cpu", model=tiny_file)


@pytest.fixture(scope="session")
def trained_refiner(trained_file: Path) -> OpenRefiner:
    """As `refiner`, where it counts what the image shows."""
    return OpenRefiner("cpu", model=trained_file)


@pytest.fixture(scope="session")
def one_call(tiny_file: Path) -> Callable[..., torch.Tensor]:
    """diffusers' single call: one_call(image, seed=0, **arguments) gives BHWC, 0 to 1."""
    return _one_call(tiny_file)


@pytest.fixture(scope="session")
def trained_call(trained_file: Path) -> Callable[..., torch.Tensor]:
    """As `one_call`, for the refiner that was trained."""
    return _one_call(trained_file)


def _one_call(file: Path) -> Callable[..., torch.Tensor]:
    pipeline = plain_pipeline(file, torch.float32)

    def call(image: Image.Image, *, seed: int = 0, **arguments: object) -> torch.Tensor:
        defaults = {
            "prompt": "",
            "strength": 0.3,
            "guidance_scale": 7.5,
            "num_inference_steps": 20,
        }
        generator = [torch.Generator().manual_seed(seed)]
        result = pipeline(
            image=image, generator=generator, output_type="pt", **{**defaults, **arguments}
        )
        return result.images.movedim(1, -1)

    return call


def plain_pipeline(tiny_file: Path, dtype: torch.dtype):
    """Load the tiny refiner with diffusers alone."""
    from diffusers import StableDiffusionXLImg2ImgPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipeline = StableDiffusionXLImg2ImgPipeline.from_single_file(
        str(tiny_file),
        config=str(tiny_file.with_suffix("")),
        torch_dtype=dtype,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    logging.enable_progress_bar()
    return pipeline


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Refuses and records every look-up and connection; the test fails if there was one."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)
        raise OSError("The network is switched off for this test.")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    yield attempts
