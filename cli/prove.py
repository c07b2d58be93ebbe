"""`image-refinery prove`: run both halves over photographs, and write down what they did here."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from PIL import Image

from .._setup import default_refiner, scrub
from ..files import NameTaken, NoImages, NotWritten, UnreadableImage, check_image
from ..llm.errors import Cancelled, LLMError
from ..llm.llamacpp.pull import PullError, pull
from ..llm.servers import find_server
from ..refine import ImageRefiner, RefineCancelled, RefineError, RefineSettings
from ..refine.hugging_face import fetch, is_repo_id
from ..refine.similarity import MIN_SIDE_PX
from .demo import best_server, vision_models
from .proof import JSON_FILE, PAGE_FILE, Proof
from .prove_photos import Photo, default_photos
from .prove_refine import refine_photos
from .prove_words import describe_photos
from .refine import best_device, image_files
from .refine_demo import STAND_IN
from .terminal import FILES_READ, cancelled, failed, message

_NO_GPU = "No GPU that PyTorch can use: VRAM is not measured, and the refiner takes minutes."
_NO_PEAKS = "The memory modes of the refiner are measured on NVIDIA and AMD GPUs only."


def prove(options: argparse.Namespace) -> int:
    """Describe, rewrite and refine photographs; write `proof.json` and a page.

    Returns 0 if nothing is missing and every photograph went well, else 1.

    Raises:
        LLMError, RefineError: a server or a checkpoint that `options` names cannot be used.
    """
    folder: Path = options.output
    if folder.is_file():
        return failed(NotWritten(f"{folder} is a file. Choose a folder with --output."))
    taken = [name for name in (JSON_FILE, PAGE_FILE) if (folder / name).exists()]
    if taken and not options.overwrite:
        return failed(
            NameTaken(
                f"{folder / taken[0]} exists already. Add --overwrite to replace the proof, or "
                "choose another folder with --output."
            )
        )
    photos, lacking = [Photo(path) for path in image_files(options.photos)], ""
    if not options.photos:
        photos, lacking = default_photos()
    photos = [photo for photo in photos if _is_usable(photo)]
    if not photos:
        return failed(NoImages(lacking or f"There is no photograph to work on. {FILES_READ}"))
    device = best_device()
    proof = Proof(folder, photos, device)
    proof.miss(lacking)
    if device == "cpu":
        proof.missing.append(_NO_GPU)  # `best_device` has printed it
    elif device != "cuda":
        proof.miss(_NO_PEAKS)
    try:
        server = _server(options, proof)
        refiner = _refiner(options, proof, device)
    except PullError as error:
        return failed(error)
    if refiner is not None:
        _import_diffusers()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with proof.timeline:
            try:
                if server is not None:
                    describe_photos(proof, server, options)
                if refiner is not None:
                    refine_photos(proof, refiner)
            finally:
                proof.timeline.end()
                proof.write()
    except (Cancelled, RefineCancelled):
        return cancelled(f"{proof.summary()} It is in {folder}.")
    except OSError as error:
        return failed(NotWritten(f"{folder} cannot be written ({error.strerror or error})."))
    print(proof.summary())
    for name in (JSON_FILE, PAGE_FILE):
        print(folder / name)
    if proof.missing:
        print("Missing:", *(f"  - {text}" for text in proof.missing), sep="\n")
    return 1 if proof.missing or any(row["errors"] for row in proof.rows) else 0


def _is_usable(photo: Photo) -> bool:
    """Return whether a photograph can be used; print why not."""
    try:
        check_image(photo.path)
        with Image.open(photo.path) as image:
            if min(image.size) < MIN_SIDE_PX:
                raise UnreadableImage(
                    f"{photo.path} is too small: both sides must have {MIN_SIDE_PX} px or more."
                )
    except UnreadableImage as error:
        failed(error)
        return False
    return True


def _server(options: argparse.Namespace, proof: Proof) -> str | None:
    """Return the server to use, after a download of what it needs; None: there is none.

    Raises:
        LLMError, PullError: a server or a model that is named cannot be used.
    """
    if options.server != "default":
        server, models = options.server, vision_models(options.server)[1]
    else:
        try:
            server, models = best_server("This run")
        except LLMError as error:
            proof.miss(f"No description: {message(error)}")
            return None
    wanted = options.vision_model or "smolvlm"
    if all(model.note for model in models) and find_server(server).is_embedded:
        why = "--no-download was given."
        if not options.no_download:
            print(f"Downloading {wanted}", file=sys.stderr, flush=True)
            try:
                pull(wanted)
                return server
            except PullError as error:
                if options.vision_model:
                    raise
                why = str(error)
        proof.miss(f"No real vision model, so a stand-in describes the photographs: {why}")
    return server


def _refiner(options: argparse.Namespace, proof: Proof, device: str) -> ImageRefiner | None:
    """Return the refiner, after a download of what it needs; None: there is none.

    Raises:
        RefineError: a checkpoint that is named cannot be used.
    """
    model = options.model or default_refiner()
    refiner = ImageRefiner(device, model=model, local_files_only=options.no_download)
    name = str(refiner.model)
    try:
        if is_repo_id(name) and not Path(name).exists():
            if not options.no_download:
                print(f"Downloading {name}, unless it is here", file=sys.stderr, flush=True)
            fetch(name, options.no_download)
    except RefineError as error:
        if options.model:
            raise
        proof.miss(f"No real checkpoint{_instead()}: {error}")
        refiner = ImageRefiner(device, model=STAND_IN) if STAND_IN.is_file() else None
    if refiner is not None:
        path = Path(refiner.model).expanduser()
        proof.models["refiner"] = {
            "name": scrub(path.name if path.exists() else name),
            "size_bytes": _size_bytes(str(refiner.model)),
            "stand_in": path.exists() and STAND_IN.exists() and path.samefile(STAND_IN),
            "settings": RefineSettings().describe(),
        }
    return refiner


def _import_diffusers() -> None:
    """Import what loads a checkpoint: it takes seconds, which are not those of the load."""
    import_module("..refine.loading", __package__)
    for name in ("AutoencoderKL", "UNet2DConditionModel"):
        getattr(import_module("diffusers"), name)


def _instead() -> str:
    return ", so a stand-in refines the photographs" if STAND_IN.is_file() else ""


def _size_bytes(model: str) -> int:
    """Return the size of a checkpoint's weights that are here."""
    path = Path(model).expanduser()
    if path.is_file():
        return path.stat().st_size
    folder = path if path.is_dir() else fetch(model, local_files_only=True)
    files = [*folder.rglob("*.fp16.safetensors")] or [*folder.rglob("*.safetensors")]
    return sum(file.stat().st_size for file in files)
