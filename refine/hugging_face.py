"""Find models in the local Hugging Face cache, or download them once."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from .errors import CheckpointError, HubError

log = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo_id(name: str) -> bool:
    """Return whether a name looks like "owner/name"."""
    return _REPO_ID.fullmatch(name) is not None


def is_cached(repo_id: str) -> bool:
    """Return whether a model's weights are in the cache, so that they load without network.

    Raises:
        CheckpointError: `repo_id` is not a Hugging Face id.
    """
    if not is_repo_id(repo_id):
        raise not_a_model(repo_id)
    try:
        fetch(repo_id, local_files_only=True)
    except HubError:
        return False
    return True


def fetch(repo_id: str, local_files_only: bool) -> Path:
    """Return the folder of a model in the cache; download it first if it is missing.

    Raises:
        CheckpointError: `repo_id` is not a Hugging Face id.
        HubError: it could not be downloaded, or is not in the cache and downloads are off.
    """
    patterns = ["*.json", "*/*.json", "*/*.txt", "*/*.fp16.safetensors"]
    try:
        folder = _download(repo_id, patterns, local_files_only=True)
        if any((folder / "unet").glob("*.safetensors")):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:  # Hugging Face allows less than _REPO_ID does: no "../x"
        raise not_a_model(repo_id) from error
    if local_files_only:
        raise HubError(
            f"{repo_id} is not in the Hugging Face cache, and downloads are turned off. Download "
            "it first, or allow downloads."
        )
    log.info("Downloading %s from Hugging Face (once; about 6 GB for the SDXL refiner).", repo_id)
    try:
        folder = _download(repo_id, patterns)
        if not any((folder / "unet").glob("*.safetensors")):
            # There are no half-precision files: download the full ones.
            patterns[-1] = "*/*.safetensors"
            folder = _download(repo_id, patterns)
        return folder
    except GatedRepoError as error:
        raise HubError(
            f"To download {repo_id} from Hugging Face, you must accept its license: accept it "
            "on the model's page, log in with `hf auth login`, and try again."
        ) from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"There is no folder {repo_id} here and no such model on Hugging Face: check the name."
        ) from error
    # Without a connection huggingface_hub raises its own, httpx's or requests' errors, by version.
    except (HfHubHTTPError, OSError, *_connection_errors()) as error:
        raise HubError(
            f"{repo_id} could not be downloaded from Hugging Face ({first_line(error)}): check the "
            "connection, or download its .safetensors file elsewhere and choose that file (in "
            "ComfyUI: put it into models/checkpoints and choose it)."
        ) from error


def _download(repo_id: str, patterns: list[str], *, local_files_only: bool = False) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repo_id, allow_patterns=patterns, local_files_only=local_files_only
        )
    )


def _connection_errors() -> tuple[type[Exception], ...]:
    try:
        import httpx
    except ImportError:  # huggingface_hub before 1.0 uses requests, whose errors are OSErrors
        return ()
    return (httpx.HTTPError,)


def not_a_model(name: str | Path) -> CheckpointError:
    """Return the error for a name that is not a model."""
    return CheckpointError(
        f"{name} is not a .safetensors file, a diffusers folder or a Hugging Face id: "
        "check the path."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
