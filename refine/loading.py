"""Load components from a file, a folder or a Hugging Face id; local ones need no network.

A single checkpoint file has only weights. Its JSON ships with this package (configs/),
tokenizer_files.py finds its vocabulary, and a folder beside it with the checkpoint's name overrides
both.

This is the only module that imports diffusers and transformers; it is imported when a checkpoint
is loaded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..files.folders import CHECKPOINT_SUFFIXES, PICKLE_SUFFIXES
from .checkpoints import (
    CheckpointInfo,
    read_checkpoint,
    read_header,
    stored_dtype,
)
from .components import Components
from .errors import CheckpointError
from .hugging_face import fetch, first_line, is_repo_id, not_a_model
from .tokenizer_files import find_tokenizer_files, has_tokenizer_files

_CONFIGS = Path(__file__).parent / "configs"
_MAX_OVERRIDE_BYTES = 10_000_000  # JSON and vocabulary files are far smaller, weights far larger
_SCRATCH = "image-refinery-checkpoint-"
_LEFT_AFTER_S = 86400.0  # no load takes a day


def load_components(
    model: str | Path, *, vocabulary: Path | None = None, local_files_only: bool = False
) -> Components:
    """Load a checkpoint's components, mapped from disk, in their stored type.

    Args:
        model: A .safetensors file, a diffusers folder, or a Hugging Face id such as "owner/name".
        vocabulary: A folder with vocab.json and merges.txt, for a single file.
        local_files_only: Do not download; a Hugging Face id must then be in the cache.

    Raises:
        CheckpointError: there is no such model, or it is damaged, or not of the SDXL family.
        VocabularyError: a single file's vocabulary was not found.
        HubError: the model could not be downloaded.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _load_folder(path, str(path))
    if path.suffix.lower() in {*CHECKPOINT_SUFFIXES, *PICKLE_SUFFIXES} or path.is_file():
        return _load_file(read_checkpoint(path), vocabulary)
    if is_repo_id(str(model)):
        return _load_folder(fetch(str(model), local_files_only), str(model))
    raise not_a_model(model)


def shipped_config(name: str) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a family or variant (of configs/), by path."""
    config = json.loads((_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    like = config.pop("like", None)
    return merge_configs(shipped_config(like), config) if like else config


def merge_configs(
    base: dict[str, dict[str, Any]], changes: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the files of `base` with the keys that `changes` names replaced."""
    names = [*base, *(name for name in changes if name not in base)]
    return {name: {**base.get(name, {}), **changes.get(name, {})} for name in names}


def _load_file(info: CheckpointInfo, vocabulary: Path | None) -> Components:
    _remove_leftovers()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_SCRATCH)))
        _write_description(info, folder, vocabulary)
        stack.enter_context(_quiet())
        description = info.path.with_suffix("")
        also = f"; one of other dimensions needs its folder {description.name} of JSON beside it"
        stack.enter_context(_in_one_sentence(str(info.path), "" if description.is_dir() else also))
        pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_single_file(
            str(info.path),
            config=str(folder),
            local_files_only=True,
            add_watermarker=False,
            torch_dtype=_torch_dtype(info.dtype),
            **_tokenizers(folder),
        )
        return _take_components(pipeline, str(info.path), info.advice)


def _remove_leftovers() -> None:
    """Remove the temporary folders of processes that were killed while they loaded a file."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # somebody else's
            if time.time() - folder.stat().st_mtime > _LEFT_AFTER_S:
                shutil.rmtree(folder)


def _write_description(info: CheckpointInfo, folder: Path, vocabulary: Path | None) -> None:
    """Write the JSON and vocabulary that diffusers needs for a single file into a folder."""
    config = shipped_config(info.family)
    if info.variant:
        config = merge_configs(config, shipped_config(info.variant))
    for name, content in config.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    beside = info.path.with_suffix("")
    if beside.is_dir():
        _copy_small_files(beside, folder)
    tokenizers = [
        n for n, kind in config["model_index.json"].items() if n.startswith("tokenizer") and kind[0]
    ]
    missing = [n for n in tokenizers if not has_tokenizer_files(folder / n)]
    if missing:
        source = find_tokenizer_files(info.path, vocabulary)
        for name in missing:
            _write_tokenizer(source, folder / name)


def _copy_small_files(source: Path, target: Path) -> None:
    """Copy JSON and vocabulary, but not weights, from a folder and its subfolders."""
    for file in [*source.glob("*"), *source.glob("*/*")]:
        is_small = file.is_file() and file.stat().st_size < _MAX_OVERRIDE_BYTES
        if is_small and file.suffix in (".json", ".txt"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _write_tokenizer(vocabulary: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / name)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        # OpenCLIP, the second encoder, pads with "!"; the first one pads with its end token.
        "pad_token": "!" if folder.name == "tokenizer_2" else "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _tokenizers(folder: Path) -> dict[str, Any]:
    # Loaded here: diffusers' pipeline does not pass local_files_only on to the tokenizers.
    names = [name for name in ("tokenizer", "tokenizer_2") if has_tokenizer_files(folder / name)]
    return {n: CLIPTokenizer.from_pretrained(folder / n, local_files_only=True) for n in names}


def _load_folder(folder: Path, origin: str) -> Components:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers folder (it has no model_index.json): "
            "choose the folder that has one, or a .safetensors file."
        )
    weights = sorted((folder / "unet").glob("*.safetensors"))
    halves = [file for file in weights if ".fp16." in file.name]
    if not weights:
        raise CheckpointError(
            f"{folder} has no .safetensors weights in its folder unet, and pickled weights are "
            "not loaded: download the model's safetensors files."
        )
    chosen = (halves or weights)[0]
    with _quiet(), _in_one_sentence(origin):
        pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
            str(folder),
            variant="fp16" if halves else None,
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
            torch_dtype=_torch_dtype(stored_dtype(read_header(chosen))),
        )
    return _take_components(pipeline, origin, "")


def _take_components(pipeline: Any, origin: str, advice: str) -> Components:
    if getattr(pipeline.vae.config, "latents_mean", None) is not None:
        raise CheckpointError(
            f"{origin} shifts its latents, as Playground 2.5 does: choose another SDXL checkpoint."
        )
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise CheckpointError(
            f"{origin} takes guidance as an embedding, as LCM models do: choose another SDXL "
            "checkpoint."
        )
    components = Components(
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer_2,
        scheduler=pipeline.scheduler,
        requires_aesthetics_score=pipeline.config.requires_aesthetics_score,
        force_zeros_for_empty_prompt=pipeline.config.force_zeros_for_empty_prompt,
        origin=origin,
        advice=advice,
    )
    for name, module in components.modules().items():
        module.requires_grad_(False).eval()
        _skip_division_by_one(module)
        # diffusers leaves missing weights without data, and does not always report them.
        lacking = [key for key, tensor in module.state_dict().items() if tensor.is_meta]
        if lacking:
            raise CheckpointError(
                f"{origin} lacks weights of its {name} (such as {lacking[0]}): "
                "download it again, or choose another one."
            )
    return components


class _One:
    """A divisor that returns the tensor itself."""

    def __rtruediv__(self, tensor: Any) -> Any:
        return tensor


def _skip_division_by_one(component: Any) -> None:
    """Let diffusers' blocks return their sum as it is, where they would divide it by 1.0.

    At 1024 px these divisions read and write 2 GB in each step, and 5 GB in the VAE.
    """
    for module in component.modules():
        for name in ("output_scale_factor", "rescale_output_factor"):
            if getattr(module, name, None) == 1:
                setattr(module, name, _One())


def _torch_dtype(stored: str) -> Any:
    """Return the dtype to load weights in: the stored one, so that they stay mapped from disk."""
    known = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    # fp8 and others are for storage only: they are widened once, to fp16.
    return known.get(stored, torch.float16)


@contextmanager
def _in_one_sentence(origin: str, also: str = "") -> Iterator[None]:
    """Turn diffusers' errors for unsuitable weights into one sentence."""
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        NotImplementedError,
        SafetensorError,
        SingleFileComponentError,
    ) as error:
        raise CheckpointError(
            f"{origin} could not be loaded as an SDXL checkpoint ({first_line(error)}): "
            f"download it again, or choose another one{also}."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers and transformers from printing progress bars and notes."""
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
