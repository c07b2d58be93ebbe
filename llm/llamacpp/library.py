"""The models that the embedded engine can load: GGUF files, named the way Ollama names models."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .gguf_header import GgufError, Header, read_header
from .places import (
    BUILT_IN,
    Folder,
    GgufFile,
    Place,
    other_places,
    own_place,
    own_places,
)
from .places import models_folder as models_folder

log = logging.getLogger(__name__)

# Files with an established short name; other files are named by their stem.
KNOWN_FILES = {
    "smollm2-135m-instruct.q4_1.gguf": "smollm2:135m",
    "smolvlm-256m-instruct-q8_0.gguf": "smolvlm:256m",
    "smolvlm-500m-instruct-q8_0.gguf": "smolvlm:500m",
    "smolvlm2-2.2b-instruct-q4_k_m.gguf": "smolvlm2:2.2b",
    "qwen2.5-1.5b-instruct-q4_k_m.gguf": "qwen2.5:1.5b",
}
# The meaning of these names without a tag: Ollama's "latest".
LATEST = {
    "smollm2": "smollm2:135m",
    "smolvlm": "smolvlm:256m",
    "smolvlm2": "smolvlm2:2.2b",
    "qwen2.5": "qwen2.5:1.5b",
}

_QUANTIZATION = re.compile(r"[-._]((?:ud-)?(?:i?q\d\w*|tq\d_\d|bf16|fp?16|fp?32|mxfp4\w*))$")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_PROJECTOR = re.compile(r"[-._]*mmproj[-._]*")
# If a projector comes in several quantizations: the best that every GPU can run.
_PROJECTOR_QUANTIZATIONS = ("f16", "fp16", "q8_0", "bf16", "f32", "fp32")
_THINKING = ("enable_thinking", "<think>")
_DIGEST_SAMPLE = 1 << 20


class UnknownModel(LookupError):
    """No GGUF file has the name; the message is Ollama's."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' not found")


class UnreadableModel(ValueError):
    """A file has the name, but is not a usable GGUF file; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model.

    Attributes:
        name: as Ollama writes it, always with a tag ("smolvlm:256m", "toy-vision:latest"), and with
            the publisher ("bartowski/qwen2.5:q4_k_m") where an earlier file has the same name.
        path: the GGUF file; of a split model the first part.
        mmproj: the projector for images; None for a text model.
        size: bytes of all its files.
        modified: seconds since the epoch.
        digest: 64 hex digits that change when a file changes.
        header: the metadata of the GGUF file.
        projector: the metadata of the mmproj file.
        place: where the file is, for display ("LM Studio").
    """

    name: str
    path: Path
    mmproj: Path | None
    size: int
    modified: float
    digest: str
    header: Header = field(repr=False)
    projector: Header | None = field(repr=False)
    place: str = ""

    @property
    def is_toy(self) -> bool:
        """Whether it is the built-in model, which can only describe drawn images."""
        return self.path.parent == BUILT_IN

    @property
    def capabilities(self) -> list[str]:
        """The capabilities in Ollama's list that this engine supports (no tools, no insert)."""
        if f"{self.header.architecture}.pooling_type" in self.header.metadata:
            return ["embedding"]
        vision = ["vision"] if self.mmproj else []
        thinks = any(mark in self.header.chat_template for mark in _THINKING)
        return ["completion", *vision, *(["thinking"] if thinks else [])]

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
    """The models in a list of places; every call searches them again."""

    def __init__(
        self, places: Sequence[Path | Place] | None = None, *, extra: Sequence[Place] = ()
    ) -> None:
        """
        Args:
            places: own folders (with their direct subfolders), single GGUF files, and places of
                other programs. None: the user's folder, the models installed with this package,
                and the folders of LM Studio, llama.cpp and Hugging Face.
            extra: more places, such as `comfyui_places()`, before those of other programs.
        """
        self._places = places
        self._extra = extra
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

        Without a tag the name means its "latest"; if there is none, the only model of that name,
        whatever its tag.

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
        found: dict[str, _Files] = {}
        by_size: dict[int, list[_Files]] = {}
        for files in self._scan():
            alike = by_size.setdefault(_size(files.path), [])
            name = _name_of(files.name)
            listed = any(_repeats(files, earlier) for earlier in alike)
            if listed and (files.place.foreign or name in found):
                continue
            if name in found:
                name = f"{_slug(files.publisher)}/{name}"
            if name in found:
                self._report(
                    f"{files.path} is not listed: {found[name].path} is called {name} too."
                )
                continue
            found[name] = files
            alike.append(files)
        return found

    def _scan(self) -> Iterator[_Files]:
        for place in self._all_places():
            for folder in place.folders(self._report):
                for files in _group(folder, place):
                    if not place.foreign or self._can_chat(files.path):
                        yield files

    def _all_places(self) -> list[Place]:
        if self._places is None:
            return [*own_places(), *self._extra, *other_places()]
        places = [p if isinstance(p, Place) else own_place(p) for p in self._places]
        return [*places, *self._extra]

    def _can_chat(self, path: Path) -> bool:
        try:
            return _inspect_current(path)[0].can_chat
        except (OSError, GgufError) as error:
            reason = getattr(error, "strerror", None) or error
            self._report(f"Can't read {path} ({reason}). It is not listed.")
            return False

    def _report(self, text: str) -> None:
        if text not in self._reported:  # lists are requested often
            self._reported.add(text)
            log.warning("%s", text)


def parameter_size(parameters: int) -> str:
    """Return a number of weights in Ollama's format.

    >>> parameter_size(134_515_008), parameter_size(7_241_732_096), parameter_size(90_240)
    ('134.52M', '7.2B', '90.24K')
    """
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 2)):
        if parameters >= unit:
            return f"{parameters / unit:.{digits}f}{letter}"
    return str(parameters)


@dataclass(frozen=True)
class _Files:
    place: Place
    publisher: str
    parts: tuple[GgufFile, ...]
    mmproj: Path | None

    @property
    def path(self) -> Path:
        return self.parts[0].path

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def all(self) -> tuple[Path, ...]:
        parts = tuple(part.path for part in self.parts)
        return (*parts, self.mmproj) if self.mmproj else parts


def _group(folder: Folder, place: Place) -> Iterator[_Files]:
    """Yield the models of a folder: a model with its projector, a split model with its parts."""
    projectors = [file for file in folder.files if "mmproj" in file.name.lower()]
    for file in folder.files:
        stem = _stem(file.name)
        part = _PART.search(stem)
        if file in projectors or (part and int(part[1]) != 1):
            continue
        start = stem[: part.start()] if part else ""
        parts = [f for f in folder.files if start and _PART.sub("", _stem(f.name)) == start]
        mmproj = _projector_of(file.name, projectors, any_name=folder.one_repository)
        yield _Files(place, folder.publisher, tuple(parts or [file]), mmproj)


def _projector_of(name: str, projectors: list[GgufFile], *, any_name: bool) -> Path | None:
    base, quantization = _split_name(name)
    named: dict[str, dict[str, Path]] = {}
    for projector in projectors:
        stem = _PROJECTOR.sub("-", _stem(projector.name).lower()).strip("-._")
        projector_base, projector_quantization = _split_quantization(f"-{stem}")
        named.setdefault(projector_base.strip("-"), {})[projector_quantization] = projector.path
    own = named.get(base)
    if own is None and any_name and len(named) == 1:
        (own,) = named.values()
    if own is None:
        return None
    order = (quantization, *_PROJECTOR_QUANTIZATIONS)
    return min(own.items(), key=lambda item: (_rank(order, item[0]), item[0]))[1]


def _rank(order: Sequence[str], value: str) -> int:
    return order.index(value) if value in order else len(order)


def _stem(name: str) -> str:
    return name[: -len(".gguf")]


def _split_name(name: str) -> tuple[str, str]:
    return _split_quantization(_PART.sub("", _stem(name)).lower())


def _split_quantization(stem: str) -> tuple[str, str]:
    match = _QUANTIZATION.search(stem)
    return (stem[: match.start()], match[1]) if match else (stem, "")


def _name_of(file_name: str) -> str:
    known = KNOWN_FILES.get(file_name.lower())
    if known:
        return known
    base, quantization = map(_slug, _split_name(file_name))
    return f"{base}:{quantization or 'latest'}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a broken link
        return -1


def _repeats(files: _Files, earlier: _Files) -> bool:
    """Return whether an earlier file of the same size has the same model, and any projector."""
    if files.mmproj and not earlier.mmproj:
        return False
    try:
        if files.path.samefile(earlier.path):
            return True
        return _inspect_current(files.path)[1] == _inspect_current(earlier.path)[1]
    except (OSError, GgufError):
        return False


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
        place=files.place.label,
    )


def _join_digests(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _inspect_current(path: Path) -> tuple[Header, str]:
    stat = path.stat()
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _inspect(path: Path, size: int, modified_ns: int) -> tuple[Header, str]:
    """Return header and digest of a file, cached until it changes (hence `modified_ns`).

    The digest covers only both ends: hashing gigabytes at every start would take too long.
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
