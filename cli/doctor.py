"""`image-refinery doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from .._advice import advice
from .._backends import open_backend
from .._program import install
from ..files.folders import CHECKPOINT_SUFFIXES, PICKLE_SUFFIXES
from ..llm.backend import Backend, LoadedModel, Model
from ..llm.choice import able
from ..llm.errors import EndpointMissing, LLMError, NoModel, NoServer
from ..llm.llamacpp.gpu import gpu_remark
from ..llm.llamacpp.installed import available, why_unavailable
from ..llm.llamacpp.library import Library
from ..llm.probe import find_servers, identify
from ..llm.servers import EMBEDDED, config_path, find_server, server_names
from ..memory.report import readable
from ..ollama_client import OllamaClient
from .terminal import TERMINAL, message

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "requests",
    "pillow",
    "numpy",
)


def doctor() -> int:
    """Print one line per check; return 1 if something that is needed is missing."""
    problems = [*_packages(), *_graphics(), *_servers(), *_engine(), *_refiner()]
    print()
    if not problems:
        print("Everything needed to describe images is here.")
        return 0
    print("To do:")
    for problem in problems:
        print(f"  - {problem}")
    return 1


def _packages() -> list[str]:
    print(f"Python {platform.python_version()} on {platform.system()}, {sys.executable}")
    missing: list[str] = []
    for name in _PACKAGES:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name}: not installed")
            missing.append(name)
    return [f"Install what is missing: {install(' '.join(missing))}"] if missing else []


def _graphics() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            print(f"GPU {index}: {name}, {readable(free)} of {readable(total)} free")
    elif torch.backends.mps.is_available():
        print("GPU: Apple Metal")
    else:
        print("GPU: none that torch can use; everything runs on the CPU, slowly")
    return []


def _servers() -> list[str]:
    path = config_path()
    print(f"Configuration: {path}" + ("" if path.is_file() else " (there is none)"))
    for variable in ("OLLAMA_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY"):
        print(f"  {variable} is {'set' if os.environ.get(variable) else 'not set'}")
    problems: list[str] = []
    for name in server_names():
        problems += _server(name)
    named = {url for name in server_names() if (url := _address(name))}
    for found in find_servers():
        if found.url not in named:
            print(f'Found "{found.name}": {found.title}')
    return problems


def _address(name: str) -> str:
    with contextlib.suppress(LLMError):
        return identify(find_server(name)).url
    return ""


def _server(name: str) -> list[str]:
    try:
        with contextlib.closing(open_backend(find_server(name))) as backend:
            models = [backend.show(model) for model in backend.list()]
            loaded, remark = _loaded(backend)
    except NoServer as error:
        print(f'Server "{name}": none found')
        if not available():
            return [f'Server "{name}": {message(error)}']
        return [] if EMBEDDED in server_names() else _server(EMBEDDED)  # which is enough
    except LLMError as error:
        print(f'Server "{name}": not usable, see below')
        return [f'Server "{name}": {message(error)}']
    title = backend.server.title
    if isinstance(backend, OllamaClient):
        title = f"Ollama {backend.version()} at {backend.url}"
    count = "1 model" if len(models) == 1 else f"{len(models)} models"
    print(f'Server "{name}": {title}, {count}')
    if remark:
        print(f"  Which models are loaded is unknown: {remark}")
    for model in loaded:
        size = f", {readable(model.vram_bytes)} of GPU memory" if model.size_bytes else ""
        print(f"  loaded: {model.name}{size}")
    problems: list[str] = []
    for capability, task in (("vision", "describing images"), ("completion", "writing text")):
        suited = able(models, capability)
        names = [f"{model.name}{_remark(model)}" for model in suited]
        print(f"  {capability}: {', '.join(names) or 'none'}")
        missing = NoModel(task, backend.server)
        if not suited:
            problems.append(message(missing))
        elif all(model.note for model in suited):
            to_do = advice(missing, TERMINAL)
            problems.append(f"The only model for {task} is a stand-in model. {to_do}")
    return problems


def _remark(model: Model) -> str:
    if model.note:
        return " (a stand-in model)"
    return " (unknown)" if model.capabilities is None else ""


def _loaded(backend: Backend) -> tuple[Sequence[LoadedModel], str]:
    try:
        return backend.ps(), ""
    except EndpointMissing as error:
        return (), message(error)


def _engine() -> list[str]:
    if reason := why_unavailable():
        print(f"Embedded engine: {reason}")
        return []
    models = Library().models()
    print(f"Embedded engine: ready, with {len(models)} models")
    for model in models:
        print(f"  {model.name}: {model.place}")
    if remark := gpu_remark():
        print(f"  {remark}")
    return []


def _refiner() -> list[str]:
    """The weights that `image-refinery refine` uses, and those that ComfyUI's node can choose.

    Having none is no problem: Hugging Face has them, and only refining needs them.
    """
    try:
        from ..refine.image_refiner import DEFAULT_MODEL, MODEL_VARIABLE
    except ImportError:
        return []  # _packages has printed what is missing
    named = os.environ.get(MODEL_VARIABLE, "")
    model = Path(named).expanduser()
    is_file = model.is_file() or model.suffix.lower() in {*CHECKPOINT_SUFFIXES, *PICKLE_SUFFIXES}
    problems: list[str] = []
    print(f"Refiner: {named or DEFAULT_MODEL}, ", end="")
    print(f"named by {MODEL_VARIABLE}" if named else f"because {MODEL_VARIABLE} is not set")
    if is_file:
        problems += _wrong_with(model)
    elif not (named and model.is_dir()):
        problems += _wrong_with_repo(named or DEFAULT_MODEL)
    found = {folder: _able_to_refine(folder) for folder in _checkpoint_folders()}
    for folder, files in found.items():
        names = [file.relative_to(folder).as_posix() for file in files]
        print(
            f"  for SDXL Refiner in {folder}: {', '.join(names) or 'no checkpoint that can refine'}"
        )
    if not found:
        print("  for SDXL Refiner: no ComfyUI was found; set COMFYUI_PATH to its folder")
    singles = [model] if is_file else [file for files in found.values() for file in files]
    if singles:
        problems += _vocabulary(singles[0], needed=is_file)
    return problems


def _wrong_with(file: Path) -> list[str]:
    from ..refine import CheckpointError, read_checkpoint

    try:
        info = read_checkpoint(file)
    except CheckpointError as error:
        print("  not usable, see below")
        return [f"Refiner: {error}"]
    print(f"  a checkpoint of the family {info.family}, {readable(info.size_bytes)}")
    return []


def _wrong_with_repo(repo_id: str) -> list[str]:
    from ..refine import CheckpointError
    from ..refine.hugging_face import is_cached

    try:
        here = is_cached(repo_id)
    except CheckpointError as error:
        print("  not usable, see below")
        return [f"Refiner: {error}"]
    later = "downloaded from Hugging Face when first used (the SDXL refiner: 6 GB)"
    print("  in Hugging Face's cache" if here else f"  {later}")
    return []


def _checkpoint_folders() -> list[Path]:
    """ComfyUI's, as far as it can be found from outside: by COMFYUI_PATH, around us, at home."""
    around = Path(__file__).absolute().parents[2]
    roots = [around.parent] if around.name == "custom_nodes" else []
    if named := os.environ.get("COMFYUI_PATH"):
        roots.insert(0, Path(named))
    roots.append(Path.home() / "comfy" / "ComfyUI")
    folders = dict.fromkeys(root / "models" / "checkpoints" for root in roots)
    return [folder for folder in folders if folder.is_dir()]


def _able_to_refine(folder: Path) -> list[Path]:
    """Checkpoints of the SDXL family by their headers, refiners first as in the node's list."""
    from ..refine import CheckpointError, read_checkpoint

    able: list[Path] = []
    for file in folder.rglob("*"):
        if file.suffix.lower() in CHECKPOINT_SUFFIXES:
            with contextlib.suppress(CheckpointError):
                able.append(read_checkpoint(file).path)
    return sorted(able, key=lambda file: ("refiner" not in file.name.lower(), file))


def _vocabulary(checkpoint: Path, *, needed: bool) -> list[str]:
    """A single file's words; inside ComfyUI its own copy is always there."""
    from ..refine import VocabularyError
    from ..refine.tokenizer_files import find_tokenizer_files

    try:
        print(f"  CLIP vocabulary for such files: {find_tokenizer_files(checkpoint)}")
    except VocabularyError as error:
        print("  CLIP vocabulary for such files, outside ComfyUI: none")
        return [f"Refiner: {error}"] if needed else []
    return []
