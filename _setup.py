"""What is installed here, which servers answer, and what is missing: for doctor and Check Setup.

Each fact has a text for the user at this machine, which may name paths and addresses, and one for
a report that anybody may read. The second is built from versions, counts and names of models, and
what comes from outside is scrubbed besides.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ._advice import Edge, advice, with_advice, with_code
from ._backends import open_backend
from ._program import install
from ._version import __version__
from .captioning.kept import open_answers
from .files.folders import CHECKPOINT_SUFFIXES, PICKLE_SUFFIXES
from .llm.backend import Backend, LoadedModel, Model
from .llm.choice import able
from .llm.errors import EndpointMissing, LLMError, NoModel, NoServer, ServerConfigError
from .llm.http import CancelCheck
from .llm.llamacpp.gpu import gpu_remark
from .llm.llamacpp.installed import available, why_unavailable
from .llm.llamacpp.library import Library
from .llm.llamacpp.places import Place
from .llm.probe import find_servers, identify
from .llm.servers import DEFAULT_NAME, EMBEDDED, config_path, find_server, server_names
from .memory.report import readable
from .ollama_client import OllamaClient

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
_MAX_NAMES = 40
"""Of models in a report."""
_MAX_CHARS = 300
"""Of a text from outside."""

_ABSOLUTE = re.compile(r"~?/|[a-z]:[\\/]|\\\\", re.IGNORECASE)
_PRIVATE = re.compile(
    r"""
    [a-z][a-z0-9+.-]*://[^\s"']+                        # a URL
    | (?<![\w.])(?:~?/(?=\S)|[a-z]:[\\/]|\\\\)[^"'`\n]*  # an absolute path, and what follows it
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                      # a mail address, or user@host
    | \b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b              # IPv4
    | (?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}    # IPv6
    | \b(?:localhost|[\w-]+(?:\.[\w-]+)+):\d{2,5}\b     # host:port
    | \b[\w-]+:(?:\d{5}|1234|80[08]0)\b                 # not the tag of a model
    | \b(?:sk|xai|hf|gh[opsu]|github_pat|nvapi)[-_][\w-]{8,} # a key with its prefix
    | \b\w{32,}\b                                       # any other
    """,
    re.VERBOSE | re.IGNORECASE,
)


class MissingPackages(Exception):
    """Packages that the pack needs are not installed."""

    code = "R508"


class Fact(NamedTuple):
    """One line about this machine.

    Attributes:
        text: for its user; "": only for the report.
        safe: for a report; "": not in it.
    """

    text: str = ""
    safe: str = ""


class Problem(NamedTuple):
    """What to do something about.

    Attributes:
        text: the message, with advice and code, for the user.
        safe: the code, the kind of error, and the advice, for a report.
    """

    text: str
    safe: str


@dataclass
class Section:
    """The facts about one thing, and the problems that it has."""

    facts: list[Fact] = field(default_factory=list[Fact])
    problems: list[Problem] = field(default_factory=list[Problem])

    def say(self, text: str, safe: str | None = None) -> None:
        """Add a fact; `safe` is the text itself where it holds nothing private."""
        self.facts.append(Fact(text, text if safe is None else safe))

    def add_problem(self, error: Exception, text: str, to_do: str = "") -> None:
        """Add a problem, with the advice that a report may hold."""
        short = f"{getattr(error, 'code', '')} {type(error).__name__}".strip()
        self.problems.append(Problem(text, f"{short}. {scrub(to_do)}".strip(". ")))


def report(sections: Iterable[Section]) -> str:
    """Return what may be published: no path, address, key, prompt, user or host name."""
    sections = list(sections)
    lines = [f"Image Refinery {__version__}"]
    lines += [fact.safe for section in sections for fact in section.facts if fact.safe]
    problems = [problem.safe for section in sections for problem in section.problems]
    lines += ["Problems:", *(f"  {problem}" for problem in problems or ["none"])]
    return "\n".join(lines)


def packages() -> Section:
    """Python and the libraries."""
    section = Section()
    system = f"Python {platform.python_version()} on {platform.system()}"
    section.say(f"{system}, {sys.executable}", f"{system} {scrub(platform.release())}")
    missing: list[str] = []
    for name in _PACKAGES:
        try:
            section.say(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            section.say(f"  {name}: not installed")
            missing.append(name)
    if missing:
        error = MissingPackages(f"Install what is missing: {install(' '.join(missing))}")
        section.add_problem(error, with_code(error))
    return section


def graphics() -> Section:
    """The GPUs that torch can use, and their memory."""
    section = Section()
    try:
        import torch
    except ImportError:
        return section
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            section.say(f"GPU {index}: {name}, {readable(free)} of {readable(total)} free")
    elif torch.backends.mps.is_available():
        section.say("GPU: Apple Metal")
    else:
        section.say("GPU: none that torch can use; everything runs on the CPU, slowly")
    return section


def servers(
    edge: Edge,
    config: Path | None = None,
    places: Sequence[Place] = (),
    cancelled: CancelCheck | None = None,
) -> Iterator[Section]:
    """Yield the configuration, each server that it names, and others on this machine.

    Args:
        edge: whose terms the advice uses.
        config: path of image-refinery.toml; see `find_server`.
        places: see `open_backend`.
    """
    path = config or config_path()
    section = Section()
    if path.is_file():
        section.say(f"Configuration: {path}", "Configuration: image-refinery.toml")
    else:
        section.say(f"Configuration: {path} (there is none)", "Configuration: none")
    for variable in ("OLLAMA_BASE_URL", "OLLAMA_HOST", "OLLAMA_API_KEY"):
        section.say(f"  {variable} is {'set' if os.environ.get(variable) else 'not set'}")
    yield section
    names = server_names(path)
    look = _Look(edge, path, places, cancelled, names)
    for number, name in enumerate(names, 1):
        # A name in the file may be that of a machine or a person.
        yield look.at(name, name if name == DEFAULT_NAME else f"{number}")
    known = {url for name in names if (url := look.address(name))}
    section = Section()
    for found in find_servers(cancelled):
        if found.url not in known:
            section.say(f'Found "{found.name}": {found.title}', f"Found: {found.product}")
    yield section


class _Look(NamedTuple):
    """How to ask a server what it has."""

    edge: Edge
    config: Path
    places: Sequence[Place]
    cancelled: CancelCheck | None
    names: Sequence[str]

    def address(self, name: str) -> str:
        with contextlib.suppress(LLMError):
            return identify(find_server(name, config=self.config), self.cancelled).url
        return ""

    def at(self, name: str, called: str) -> Section:
        """Return what a server has; a report names it as `called`."""
        section = Section()
        try:
            server = find_server(name, config=self.config)
            with contextlib.closing(
                open_backend(server, places=self.places, cancelled=self.cancelled)
            ) as backend:
                models = [
                    backend.show(model, self.cancelled) for model in backend.list(self.cancelled)
                ]
                loaded, remark = self._loaded(backend)
                title, product = backend.server.title, backend.server.product
                if isinstance(backend, OllamaClient):
                    product = f"Ollama {backend.version()}"
                    title = f"{product} at {backend.url}"
        except NoServer as error:
            section.say(f'Server "{name}": none found', f"Server {called}: none found")
            if not available():
                self._problem(section, name, error)
            elif EMBEDDED not in self.names:  # which is enough
                engine = self.at(EMBEDDED, EMBEDDED)
                return Section([*section.facts, *engine.facts], engine.problems)
            return section
        except LLMError as error:
            section.say(f'Server "{name}": not usable, see below', f"Server {called}: not usable")
            self._problem(section, name, error)
            return section
        count = _count(models)
        section.say(
            f'Server "{name}": {title}, {count}', f"Server {called}: {scrub(product)}, {count}"
        )
        if remark:
            section.say(f"  Which models are loaded is unknown: {remark}", "  loaded: unknown")
        for model in loaded:
            size = f", {readable(model.vram_bytes)} of GPU memory" if model.size_bytes else ""
            section.say(f"  loaded: {model.name}{size}", f"  loaded: {scrub(model.name)}{size}")
        for model in models[:_MAX_NAMES]:
            can = "unknown" if model.capabilities is None else ", ".join(sorted(model.capabilities))
            section.facts.append(Fact(safe=f"  {scrub(model.name)}: {scrub(can)}"))
        if len(models) > _MAX_NAMES:
            section.facts.append(Fact(safe=f"  and {len(models) - _MAX_NAMES} more"))
        self._check(section, backend, models)
        return section

    def _check(self, section: Section, backend: Backend, models: Sequence[Model]) -> None:
        for capability, task in (("vision", "describing images"), ("completion", "writing text")):
            suited = able(models, capability)
            names = [f"{model.name}{_remark(model)}" for model in suited]
            section.say(f"  {capability}: {', '.join(names) or 'none'}", "")
            missing = NoModel(task, backend.server)
            to_do = advice(missing, self.edge)
            if not suited:
                section.add_problem(missing, with_advice(missing, self.edge), to_do)
            elif all(model.note for model in suited):
                text = f"The only model for {task} is a stand-in model. {to_do}"
                section.add_problem(missing, with_code(missing, text), to_do)

    def _problem(self, section: Section, name: str, error: LLMError) -> None:
        text = f'Server "{name}": {with_advice(error, self.edge)}'
        section.add_problem(error, text, advice(error, self.edge))

    def _loaded(self, backend: Backend) -> tuple[Sequence[LoadedModel], str]:
        try:
            return backend.ps(self.cancelled), ""
        except EndpointMissing as error:
            return (), with_advice(error, self.edge)


def _count(models: Sequence[object]) -> str:
    return "1 model" if len(models) == 1 else f"{len(models)} models"


def _remark(model: Model) -> str:
    if model.note:
        return " (a stand-in model)"
    return " (unknown)" if model.capabilities is None else ""


def engine(places: Sequence[Place] = ()) -> Section:
    """The embedded engine, and its models."""
    section = Section()
    if reason := why_unavailable():
        section.say(f"Embedded engine: {reason}", "Embedded engine: not installed")
        return section
    models = Library(extra=places).models()
    section.say(f"Embedded engine: ready, with {_count(models)}")
    for model in models:
        section.say(f"  {model.name}: {model.place}", "")
    if remark := gpu_remark():
        section.say(f"  {remark}", f"  {scrub(remark)}")
    return section


def answers(path: Path | None = None, config: Path | None = None) -> Section:
    """The answers of earlier runs that are kept; see `open_answers` for the arguments."""
    section = Section()
    try:
        with open_answers(path, config=config) as kept:
            if kept is None:
                section.say("Kept answers: turned off (keep_answers = false)")
            else:
                count, size = kept.totals()
                total = f"Kept answers: {count}, {readable(size)}"
                section.say(f"{total}, in {kept.path}", total)
    except ServerConfigError as error:
        section.add_problem(error, with_code(error))
    return section


def refiner() -> Section:
    """The weights that `image-refinery refine` uses, and those that ComfyUI's node can choose.

    Having none is no problem: Hugging Face has them, and only refining needs them.
    """
    section = Section()
    try:
        from .refine.image_refiner import MODEL_VARIABLE
    except ImportError:
        return section  # `packages` tells what is missing
    named = os.environ.get(MODEL_VARIABLE, "")
    chosen = default_refiner()
    model = Path(chosen).expanduser()
    is_file = model.is_file() or model.suffix.lower() in {*CHECKPOINT_SUFFIXES, *PICKLE_SUFFIXES}
    if named:
        why, which = f"named by {MODEL_VARIABLE}", f"the one of {MODEL_VARIABLE}"
    elif is_file:
        why = which = "a file of ComfyUI"
    else:
        why, which = f"because {MODEL_VARIABLE} is not set", chosen
    section.say(f"Refiner: {chosen}, {why}", f"Refiner: {which}")
    if is_file:
        _check_file(section, model)
    elif not (named and model.is_dir()):
        _check_repo(section, chosen)
    found = comfyui_checkpoints()
    for folder, files in found.items():
        names = ", ".join(file.relative_to(folder).as_posix() for file in files)
        section.say(
            f"  for SDXL Refiner in {folder}: {names or 'no checkpoint that can refine'}",
            f"  for SDXL Refiner: {len(files)} checkpoints that can refine",
        )
    if not found:
        section.say("  for SDXL Refiner: no ComfyUI was found; set COMFYUI_PATH to its folder")
    singles = [model] if is_file else [file for files in found.values() for file in files]
    if singles:
        _check_vocabulary(section, singles[0], needed=is_file)
    return section


def default_refiner() -> str:
    """Return what the commands refine with: a file, a folder or a Hugging Face id.

    IMAGE_REFINERY_REFINER, else the SDXL refiner: from Hugging Face's cache, else a file of ComfyUI
    that can be loaded, else a download.
    """
    from .refine import VocabularyError, read_checkpoint
    from .refine.hugging_face import is_cached
    from .refine.image_refiner import DEFAULT_MODEL, MODEL_VARIABLE
    from .refine.tokenizer_files import find_tokenizer_files

    if named := os.environ.get(MODEL_VARIABLE):
        return named
    if not is_cached(DEFAULT_MODEL):
        for file in chain.from_iterable(comfyui_checkpoints().values()):
            if read_checkpoint(file).family == "refiner":
                with contextlib.suppress(VocabularyError):
                    find_tokenizer_files(file)
                    return str(file)
    return DEFAULT_MODEL


def comfyui_checkpoints() -> dict[Path, list[Path]]:
    """Return the checkpoints that can refine, by ComfyUI's folders."""
    return {folder: checkpoints_that_refine(folder.rglob("*")) for folder in _checkpoint_folders()}


def checkpoints_that_refine(files: Iterable[Path]) -> list[Path]:
    """Return those of the SDXL family by their headers, refiners first as in the node's list."""
    from .refine import CheckpointError, read_checkpoint

    able: list[Path] = []
    for file in files:
        if file.suffix.lower() in CHECKPOINT_SUFFIXES:
            with contextlib.suppress(CheckpointError):
                able.append(read_checkpoint(file).path)
    return sorted(able, key=lambda file: ("refiner" not in file.name.lower(), file))


def _check_file(section: Section, file: Path) -> None:
    from .refine import CheckpointError, read_checkpoint

    try:
        info = read_checkpoint(file)
    except CheckpointError as error:
        section.say("  not usable, see below", "  not usable")
        section.add_problem(error, f"Refiner: {with_code(error)}")
    else:
        section.say(f"  a checkpoint of the family {info.family}, {readable(info.size_bytes)}")


def _check_repo(section: Section, repo_id: str) -> None:
    from .refine import CheckpointError
    from .refine.hugging_face import is_cached

    try:
        here = is_cached(repo_id)
    except CheckpointError as error:
        section.say("  not usable, see below", "  not usable")
        section.add_problem(error, f"Refiner: {with_code(error)}")
    else:
        later = "downloaded from Hugging Face when first used (the SDXL refiner: 6 GB)"
        section.say("  in Hugging Face's cache" if here else f"  {later}")


def _checkpoint_folders() -> list[Path]:
    """ComfyUI's, as far as it can be found from outside: by COMFYUI_PATH, around us, at home."""
    around = Path(__file__).absolute().parents[1]
    roots = [around.parent] if around.name == "custom_nodes" else []
    if named := os.environ.get("COMFYUI_PATH"):
        roots.insert(0, Path(named))
    roots.append(Path.home() / "comfy" / "ComfyUI")
    folders = dict.fromkeys(root / "models" / "checkpoints" for root in roots)
    return [folder for folder in folders if folder.is_dir()]


def _check_vocabulary(section: Section, checkpoint: Path, *, needed: bool) -> None:
    """A single file's words; inside ComfyUI its own copy is always there."""
    from .refine import VocabularyError
    from .refine.tokenizer_files import find_tokenizer_files

    title = "  CLIP vocabulary for such files"
    try:
        section.say(f"{title}: {find_tokenizer_files(checkpoint)}", f"{title}: found")
    except VocabularyError as error:
        section.say(f"{title}, outside ComfyUI: none")
        if needed:
            section.add_problem(error, f"Refiner: {with_code(error)}")


def scrub(text: str) -> str:
    """Return a text from outside without what names a person, a machine, a place or a secret.

    Of a model that is named by its path, the file's name stays.

    >>> scrub("/srv/models/llava.gguf"), scrub("hf.co/someone/model:Q4")
    ('llava.gguf', 'hf.co/someone/model:Q4')
    >>> scrub("Run `ollama signin`, or open https://ollama.com/connect?key=abc")
    'Run `ollama signin`, or open ...'
    """
    text = " ".join(text.split()).replace(sys.executable, "python")
    if _ABSOLUTE.match(text):
        text = re.split(r"[\\/]", text)[-1]
    text = _PRIVATE.sub("...", text)
    for name in _own_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "...", text, flags=re.IGNORECASE)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}..."


def _own_names() -> set[str]:
    """The names of this machine and of its user, where they tell more than "root" does."""
    names = {platform.node(), platform.node().partition(".")[0], Path.home().name}
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2} - {"root", "user", "ollama", "python"}
