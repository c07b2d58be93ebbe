"""Download known models for the embedded engine from Hugging Face into the user's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .library import LATEST
from .places import MODELS_VARIABLE, models_folder


class PullError(Exception):
    """The model could not be downloaded; the message says why and what to do."""

    code = "R208"


class NotPullable(PullError):
    """The name is not one of `PULLABLE`."""

    code = "R209"


@dataclass(frozen=True)
class Source:
    """A model's repository and files on Hugging Face. The projector comes first, so that a partly
    downloaded vision model is not listed as a text model."""

    repository: str
    files: tuple[str, ...]


PULLABLE = {
    "smolvlm:256m": Source(
        "ggml-org/SmolVLM-256M-Instruct-GGUF",
        ("mmproj-SmolVLM-256M-Instruct-Q8_0.gguf", "SmolVLM-256M-Instruct-Q8_0.gguf"),
    ),
    "smolvlm:500m": Source(
        "ggml-org/SmolVLM-500M-Instruct-GGUF",
        ("mmproj-SmolVLM-500M-Instruct-Q8_0.gguf", "SmolVLM-500M-Instruct-Q8_0.gguf"),
    ),
    "smolvlm2:2.2b": Source(
        "ggml-org/SmolVLM2-2.2B-Instruct-GGUF",
        ("mmproj-SmolVLM2-2.2B-Instruct-Q8_0.gguf", "SmolVLM2-2.2B-Instruct-Q4_K_M.gguf"),
    ),
    "qwen2.5:1.5b": Source(
        "Qwen/Qwen2.5-1.5B-Instruct-GGUF", ("qwen2.5-1.5b-instruct-q4_k_m.gguf",)
    ),
}


def pull(name: str, *, folder: Path | None = None) -> str:
    """Download a model and return its full name; existing files are kept.

    Args:
        name: one of `PULLABLE`, or such a name without its tag ("smolvlm").
        folder: where to put the files; None: `models_folder()`.

    Raises:
        NotPullable: the name is unknown.
        PullError: the download failed, or the files cannot be written.
    """
    full = full_name(name)
    for file in PULLABLE[full].files:
        _download(full, file, folder or models_folder())
    return full


def full_name(name: str) -> str:
    """Return the full name in `PULLABLE` for a name.

    >>> full_name("SmolVLM"), full_name("smolvlm:latest"), full_name("smolvlm:500m")
    ('smolvlm:256m', 'smolvlm:256m', 'smolvlm:500m')

    Raises:
        NotPullable: there is none.
    """
    wanted = name.strip().lower()
    wanted = LATEST.get(wanted.removesuffix(":latest"), wanted)
    if wanted not in PULLABLE:
        known = ", ".join(PULLABLE)
        raise NotPullable(
            f"The embedded engine can't download '{name}'. Choose one of these: {known}."
        )
    return wanted


def _download(name: str, file: str, folder: Path) -> None:
    import huggingface_hub

    try:
        huggingface_hub.hf_hub_download(PULLABLE[name].repository, file, local_dir=folder)
    # RuntimeError: hf_xet, the library behind large files.
    except (OSError, RuntimeError, *_connection_errors()) as error:
        raise PullError(_sentence(name, folder, error)) from error


def _connection_errors() -> tuple[type[Exception], ...]:
    try:
        import httpx
    except ImportError:  # huggingface_hub before 1.0 uses requests, whose errors are OSErrors
        return ()
    return (httpx.HTTPError,)


def _sentence(name: str, folder: Path, error: Exception) -> str:
    from huggingface_hub.constants import ENDPOINT

    network = isinstance(error, (ConnectionError, TimeoutError)) or not getattr(error, "errno", 0)
    if not network:
        return (
            f"Can't save '{name}' in {folder} ({_reason(error)}). Free some space there, or set "
            f"{MODELS_VARIABLE} to a folder that you can write to."
        )
    files = " and ".join(PULLABLE[name].files)
    return (
        f"Can't download '{name}' from {ENDPOINT} ({_reason(error)}). "
        f"Check the connection, or download {files} of {PULLABLE[name].repository} elsewhere and "
        f"put them into {folder}."
    )


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause; the outer ones only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
