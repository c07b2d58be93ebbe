"""ImageRefiner, which refines images with a checkpoint of the SDXL family."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import torch

from ..files.folders import CHECKPOINT_SUFFIXES, PICKLE_SUFFIXES
from .batch import Batch
from .batch_run import BatchRun, PromptCache
from .checkpoints import read_header
from .components import Components
from .errors import CheckpointError
from .pixels import AnyImage
from .plan import TilePrompts
from .progress import Progress, ProgressCallback, ignore, raise_if
from .residency import LocalResidency, Residency, ResidencyFactory, free_cache
from .settings import MemoryMode, RefineSettings, check_choice, settings_from
from .stages import Stages, checked_layers
from .work import Upscaler

log = logging.getLogger(__name__)

DEFAULT_MODEL = "stabilityai/stable-diffusion-xl-refiner-1.0"
MODEL_VARIABLE = "IMAGE_REFINERY_REFINER"
"""The environment variable with the default model: a file, a folder or a Hugging Face id."""


class ImageRefiner:
    """Refines images with a checkpoint of the SDXL family.

    Weights are loaded at the first refinement and stay until `close()`; `unload()` frees the
    device. Usable as a context manager. Calls from several threads wait for each other.

    Args:
        device: Where to compute: "cuda", "cuda:1", "mps", "xpu", "cpu". Without CUDA, "cuda" means
            the CPU, after one warning.
        use_fp16: Half precision (on a CPU always full). The VAE computes in bf16 or fp32.
        model: A .safetensors file, a diffusers folder, or a Hugging Face id; by default the value
            of the environment variable IMAGE_REFINERY_REFINER, else the SDXL refiner 1.0 from
            Hugging Face.
        memory_mode: "auto", "gpu", "offload" or "low_vram"; see docs/memory.md.
        vocabulary: A folder with CLIP's vocab.json and merges.txt, for a single file.
        local_files_only: Never download.
        residency: Makes the manager of the weights, for hosts that manage memory themselves;
            by default `LocalResidency`, which follows `memory_mode`.

    Raises:
        SettingsError: memory_mode is unknown.
        CheckpointError: the model is a path that does not exist.
    """

    def __init__(
        self,
        device: str | torch.device = "cuda",
        use_fp16: bool = True,
        *,
        model: str | Path | None = None,
        memory_mode: MemoryMode = "auto",
        vocabulary: str | Path | None = None,
        local_files_only: bool = False,
        residency: ResidencyFactory | None = None,
    ) -> None:
        check_choice("memory_mode", memory_mode, get_args(MemoryMode))
        self.model = model or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL
        _check_there(self.model)
        self.device = _usable_device(device)
        self.use_fp16 = use_fp16
        self.memory_mode: MemoryMode = memory_mode
        self._vocabulary = None if vocabulary is None else Path(vocabulary)
        self._local_files_only = local_files_only
        self._make_residency = residency
        self._lock = threading.RLock()
        self._stages: Stages | None = None
        self._prompts: PromptCache = {}
        self._advised = False

    def refine(
        self,
        image: AnyImage,
        strength: float = 0.3,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 20,
        *,
        mask: Any = None,
        tile_prompts: TilePrompts | None = None,
        upscaler: Upscaler | None = None,
        on_progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
        **more: Any,
    ) -> AnyImage:
        """Refine one image, or a batch in one array or tensor.

        Args:
            image: A PIL image; or a numpy array or tensor (H, W, C) or (B, H, W, C), 0 to 1.
            strength: See RefineSettings.
            guidance_scale: See RefineSettings.
            num_inference_steps: See RefineSettings.
            mask: Refine only where it is above 0; see `refine_batch`.
            tile_prompts: See `refine_batch`.
            upscaler: See `refine_batch`.
            on_progress: See `refine_batch`.
            should_stop: See `refine_batch`.
            **more: Any other setting of RefineSettings, by name.

        Returns:
            A new image of the same type and transparency, and of `scale` times the size (the same
            object if strength is 0 and scale 1).
            The input is never changed.

        Raises:
            RefineError: one of its subclasses; see errors.py.
            RefineCancelled: `should_stop` returned True.
            TypeError: a keyword is not the name of a setting.
        """
        settings = settings_from(
            more,
            strength=strength,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )
        masks = None if mask is None else [mask]
        tiles = None if tile_prompts is None else [tile_prompts]
        batch = Batch([image], settings, masks=masks, tile_prompts=tiles, upscaler=upscaler)
        return self.refine_items(batch, on_progress=on_progress, should_stop=should_stop)[0]

    def refine_batch(
        self,
        images: Sequence[AnyImage],
        settings: RefineSettings | None = None,
        *,
        prompts: Sequence[str | Sequence[str]] | None = None,
        masks: Sequence[Any] | None = None,
        tile_prompts: Sequence[TilePrompts | Sequence[TilePrompts] | None] | None = None,
        upscaler: Upscaler | None = None,
        on_progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[AnyImage]:
        """Refine several images of any types and sizes; image i uses `settings.seed + i`.

        Args:
            images: As in `refine`. Each row of a batched array or tensor counts as one image.
            settings: How to refine them.
            prompts: One per entry of `images`, instead of `settings.prompt`. For a batch it may be
                a list with one prompt per row.
            masks: One per entry of `images` (or None): a PIL image's gray values, or an array or
                tensor (H, W) or (B, H, W), 0 (keep) to 1 (refine). Pixels where it is 0 stay bit
                for bit the same as in the (enlarged) input.
            tile_prompts: One per entry of `images` (or None): a text for each tile, which joins the
                prompt of its image in place of {tile}, else after it.
            upscaler: Enlarges an image (1, H, W, 3), 0 to 1, for `scale`; to any size, as the
                result is scaled to the right one. None: Lanczos.
            on_progress: Called with a Progress at every stage and step. If it raises, the work ends
                and the exception reaches the caller.
            should_stop: Called before every layer; True ends the work with RefineCancelled.

        Returns:
            One image per entry, each of its entry's type.

        Raises:
            RefineError: one of its subclasses; see errors.py.
            RefineCancelled: `should_stop` returned True.
        """
        batch = Batch(
            images,
            settings or RefineSettings(),
            prompts=prompts,
            masks=masks,
            tile_prompts=tile_prompts,
            upscaler=upscaler,
        )
        return self.refine_items(batch, on_progress=on_progress, should_stop=should_stop)

    def refine_items(
        self,
        batch: Batch,
        *,
        on_progress: ProgressCallback | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Any]:
        """Refine the images of a Batch: the second half of `refine_batch`, for hosts.

        A Batch checks all its inputs before anything is loaded. With its `on_image_error`, a bad
        image does not affect the others.
        """
        if not batch.needs_model:
            return enlarge_items(batch, on_progress=on_progress, should_stop=should_stop)
        if batch.advice and not self._advised:
            log.warning("%s", batch.advice)
            self._advised = True
        report = on_progress or ignore
        check = raise_if(should_stop)
        with self._lock:
            check()
            stages = self._ready_stages(report)
            with checked_layers(stages.components, check):
                return batch.join(BatchRun(batch, stages, self._prompts, report, check).refine())

    def load(self) -> None:
        """Load the weights now rather than at the first refinement."""
        with self._lock:
            self._ready_stages(ignore)

    def unload(self) -> int:
        """Free the device and every copy of the weights; return the bytes freed.

        The checkpoint stays mapped from disk, which needs no extra memory, so that the next
        refinement opens no file. The last encoded prompts also stay, on the CPU: about 0.4 MB per
        75 tokens. Safe to call at any time, and twice.
        """
        with self._lock:
            return 0 if self._stages is None else self._stages.residency.release()

    def close(self) -> None:
        """Unload, and discard the checkpoint and the encoded prompts.

        A later refinement loads the checkpoint again.
        """
        with self._lock:
            self.unload()
            self._prompts.clear()
            if self._stages is not None:
                self._stages = None
                free_cache(self.device)

    def __enter__(self) -> ImageRefiner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _ready_stages(self, report: ProgressCallback) -> Stages:
        """Return the stages of the checkpoint; load it first if necessary."""
        if self._stages is None:
            report(Progress(stage="load"))
            self._stages = self._load()
        return self._stages

    def _load(self) -> Stages:
        from .loading import load_components

        # ComfyUI runs nodes under inference_mode; weights created in it work nowhere else.
        with torch.inference_mode(False):
            components = load_components(
                self.model, vocabulary=self._vocabulary, local_files_only=self._local_files_only
            )
        components.choose_dtypes(self.device, self.use_fp16)
        if components.advice:
            log.warning("%s", components.advice)
        make = self._make_residency or self._own_residency
        with torch.inference_mode(False):
            return Stages(components, make(components, self.device))

    def _own_residency(self, components: Components, device: torch.device) -> Residency:
        return LocalResidency(components, device, self.memory_mode)


def enlarge_items(
    batch: Batch,
    *,
    on_progress: ProgressCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Any]:
    """Return the images of a Batch that has nothing to refine, at their new size.

    That is `ImageRefiner.refine_items` for strength 0 and for masks that mark nothing; it needs no
    checkpoint.
    """
    check = raise_if(should_stop)
    return batch.join(BatchRun(batch, None, {}, on_progress or ignore, check).refine())


def _usable_device(device: str | torch.device) -> torch.device:
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(
            "PyTorch finds no CUDA device, so images are refined on the CPU, which is slow.",
            RuntimeWarning,
            stacklevel=3,
        )
        return torch.device("cpu")
    return wanted


def _check_there(model: str | Path) -> None:
    """Raise CheckpointError for a mistyped path; Hugging Face ids are looked up when loading."""
    path = Path(model).expanduser()
    if path.suffix.lower() in {*CHECKPOINT_SUFFIXES, *PICKLE_SUFFIXES}:
        read_header(path)
    elif isinstance(model, Path) and not path.exists():
        raise CheckpointError(f"There is no checkpoint at {path}: check the path.")
