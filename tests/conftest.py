"""Load the checkout as the package `image_refinery`, whatever its folder is called, and give every
test a scripted Ollama (tests/faulty_ollama.py) and, on request, a stub of ComfyUI.

The root must never be on sys.path: its `nodes` package would hide ComfyUI's `nodes.py`.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import requests  # noqa: F401 - first imported in a thread, its warning would be an error there

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama
    from scripted_servers import ScriptedServer

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each process and for what it starts: two that share cores wait for each other.
    # Read when torch is imported, which is later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def _load(name: str, file: Path, folder: Path | None = None) -> None:
    """Import a file under a name, once."""
    if name in sys.modules:
        return
    places = None if folder is None else [str(folder)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("image_refinery", ROOT / "__init__.py", ROOT)
_load("faulty_ollama", TESTS / "faulty_ollama.py")
_load("scripted_servers", TESTS / "scripted_servers.py")
_load("llama_server", TESTS / "llama_server.py")
_load("comfy_stub_path", TESTS / "comfy_stub" / "stub_path.py")
_load("shallow_refiner", TESTS / "shallow_refiner.py")
_load("fault_cases", TESTS / "fault_cases.py")
_load("fault_harness", TESTS / "fault_harness.py")


LONGEST = (
    "jobs/test_refining.py",
    "nodes/test_ollama_faults.py",
    "test_packaging.py",
    "cli/test_commands.py",
    "llm/llamacpp/test_lifetime.py",
    "refine/test_image_refiner.py",
    "cli/test_refine.py",
    "refine/test_residency.py",
    "test_counts.py",
    "llm/llamacpp/test_toy_vision.py",
    "nodes/test_refine_folder.py",
    "jobs/test_batch.py",
    "refine/test_specification.py",
)
"""The files that take longest: one of them that began last would be waited for."""
MAY_BE_MISSING = ("gpu", "comfyui", "browser", "ollama", "embedded")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--force",
        action="append",
        default=[],
        choices=MAY_BE_MISSING,
        help="tests with this marker fail instead of being skipped; may be given several times",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file's tests run in one process, and in one process all that start a ComfyUI."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # in the order of pytest_collection_modifyitems

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ComfyUI" if file.startswith(("comfyui/", "browser/")) else file

    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    forced = item.config.getoption("--force")
    if report.skipped and any(item.get_closest_marker(marker) for marker in forced):
        report.outcome = "failed"
        report.longrepr = f"forced, but skipped: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """In a checkout without byte code, let one process compile for all.

    Each would need half a minute of a core for the tests and the libraries.
    """
    everything = [Path(argument).resolve() for argument in session.config.args] == [TESTS]
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not everything or sys.dont_write_bytecode:
        return
    last = sorted(TESTS.rglob("test_*.py"))[-1]

    def is_compiled() -> bool:
        return any(last.parent.glob(f"__pycache__/{last.stem}.*-pytest-*.pyc"))

    if worker == "gw0":
        if not is_compiled():
            # With what a refiner is made of, which diffusers imports where it is first named.
            import image_refinery.refine.loading  # noqa: F401
            from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
        return
    until = time.monotonic() + 240
    while not is_compiled() and time.monotonic() < until:  # else its process failed and tells why
        time.sleep(0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes, what takes longest begins first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        first = {TESTS / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: first.get(item.path, len(first)))


def pytest_collection_finish() -> None:
    gc.freeze()  # torch's million objects: each refiner that is freed collects the garbage


@pytest.fixture(autouse=True)
def loaded_modules_are_not_searched_for_garbage() -> Iterator[None]:
    """Freeze again after a test that imported much, as the first that loads a checkpoint does."""
    count = len(sys.modules)
    yield
    if len(sys.modules) > count + 50:
        gc.freeze()


@pytest.fixture(autouse=True)
def no_answer_is_kept_for_the_next_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Answers are kept in this test's folder, and those of the nodes are removed after it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    yield
    paths = sys.modules.get("folder_paths")
    if paths is not None and str(paths.__file__).startswith(str(TESTS)):
        for file in Path(paths.get_user_directory(), "image-refinery").glob("answers*"):
            file.unlink()


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is sent, for tests that count requests about equal images."""
    from image_refinery.captioning.kept import KeptAnswers

    monkeypatch.setattr(KeptAnswers, "get", lambda answers, key: None)


@pytest.fixture(autouse=True)
def no_look_for_models_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A look reads the address when it begins: a late one would ask the next test's server.

    Describing a node starts one. It ends before `monkeypatch` takes back the test's address.
    """
    yield
    if probe := sys.modules.get("image_refinery.llm.probe"):
        probe._known.clear()  # another server may get the same port
    for thread in threading.enumerate():
        if thread.name == "image-refinery-models":
            thread.join(timeout=30)


@pytest.fixture
def make_ollama() -> Iterator[Callable[..., FaultyOllama]]:
    """Start any number of scripted servers: make_ollama(models, version="0.12.0", ...)."""
    from faulty_ollama import FaultyOllama

    with ExitStack() as servers:

        def make(*args: Any, **settings: Any) -> FaultyOllama:
            return servers.enter_context(FaultyOllama(*args, **settings))

        yield make


@pytest.fixture
def ollama(make_ollama: Callable[..., FaultyOllama]) -> FaultyOllama:
    """A scripted server of the newest release with `llava` (vision) and `llama3.2` (text)."""
    return make_ollama()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses before retries: five of the usual ones take a quarter of a minute."""
    from image_refinery.llm.retry import Retries

    monkeypatch.setitem(Retries.__init__.__kwdefaults__, "first_pause_s", 0.01)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each load of a checkpoint."""
    from image_refinery.refine import ImageRefiner

    seen: list[str] = []
    load = ImageRefiner.load

    def noted(self: ImageRefiner) -> None:
        seen.append(str(self.model))
        load(self)

    monkeypatch.setattr(ImageRefiner, "load", noted)
    return seen


@pytest.fixture(scope="session")
def _components_by_file() -> dict[Any, Any]:
    return {}


@pytest.fixture
def quick_loads(monkeypatch: pytest.MonkeyPatch, _components_by_file: dict[Any, Any]) -> None:
    """A file that was loaded before is copied from memory, for tests that are not about loading.

    As after a load, no two refiners share a module, and weights at rest are never written to.
    """
    import copy

    from image_refinery.refine import loading
    from torch.nn import Parameter

    load = loading.load_components

    def load_once(model: str | Path, **settings: Any) -> Any:
        path = Path(model)
        if not path.is_file():
            return load(model, **settings)
        files = [path, *path.with_suffix("").rglob("*.json")]
        key = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        if key not in _components_by_file:
            _components_by_file[key] = load(model, **settings)
        first = _components_by_file[key]
        weights = {
            id(weight): Parameter(weight.data, requires_grad=False)
            for module in first.modules().values()
            for weight in module.parameters()
        }
        return copy.deepcopy(first, weights)

    monkeypatch.setattr(loading, "load_components", load_once)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were encoded, in their order."""
    from image_refinery.refine.stages import Stages

    seen: list[str] = []
    encode = Stages.encode_prompts

    def noted(self: Stages, prompt: str, *rest: Any) -> Any:
        seen.append(prompt)
        return encode(self, prompt, *rest)

    monkeypatch.setattr(Stages, "encode_prompts", noted)
    return seen


@pytest.fixture
def make_server() -> Iterator[Callable[..., ScriptedServer]]:
    """Start any number of doubles of other servers: make_server("lmstudio", models, jit=False)."""
    from scripted_servers import KINDS

    with ExitStack() as servers:

        def make(kind: str, *args: Any, **settings: Any) -> ScriptedServer:
            return servers.enter_context(KINDS[kind](*args, **settings))

        yield make


@pytest.fixture
def end_unloads() -> Callable[[FaultyOllama], None]:
    """end_unloads(ollama): what is being unloaded is gone now.

    So `unload_s` can be far longer than any pause of the machine, and no test waits for it.
    """

    def end(ollama: FaultyOllama) -> None:
        def leaving() -> list[Any]:
            return [entry for entry in ollama._residents.values() if entry.gone_at is not None]

        assert ollama.wait_until(lambda: bool(leaving()), 20), "nothing is being unloaded"
        for entry in leaving():
            entry.gone_at = time.monotonic()

    return end


@pytest.fixture(scope="module")
def comfy() -> Iterator[None]:
    """`comfy`, `comfy_api`, `server` and `folder_paths` can be imported: the real ones, or ours."""
    from comfy_stub_path import installed

    with installed():
        yield


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny refiner as one checkpoint file, its description beside it; it has few layers."""
    from shallow_refiner import write_shallow_refiner

    return write_shallow_refiner(tmp_path_factory.mktemp("shallow"))


@pytest.fixture(scope="module")
def checkpoints(comfy: None, tiny_file: Path) -> Path:
    """The stub's checkpoints folder, with the tiny refiner in it."""
    import folder_paths

    folder = Path(folder_paths.base_path, "models", "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(tiny_file.with_suffix(""), folder / "tiny_refiner", dirs_exist_ok=True)
    shutil.copy2(tiny_file, folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models, of which `cut` and `noise` are damaged."""
    _load("tiny_gguf", TESTS / "llm" / "llamacpp" / "tiny_gguf.py")
    import tiny_gguf

    folder = tmp_path_factory.mktemp("models")
    tiny_gguf.write_text_model(folder / "tiny.gguf", seed=3)
    tiny_gguf.write_text_model(folder / "other.gguf", seed=4)
    tiny_gguf.write_text_model(folder / "tiny-vision.gguf", seed=1)
    tiny_gguf.write_projector(folder / "mmproj-tiny-vision.gguf")
    tiny_gguf.write_text_model(folder / "thinker.gguf", template=tiny_gguf.THINKING_TEMPLATE)
    tiny_gguf.write_text_model(folder / "slow.gguf", width=384, layers=8, heads=6, context=16384)
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:300_000])
    (folder / "noise.gguf").write_bytes(b"this is no model")
    return folder


@pytest.fixture(scope="session")
def scenes() -> ModuleType:
    """tools/toy_vision/scenes.py, which draws scenes and describes them."""
    _load("toy_vision_scenes", ROOT / "tools" / "toy_vision" / "scenes.py")
    return sys.modules["toy_vision_scenes"]


@pytest.fixture(scope="session")
def draw_splat() -> Callable[..., Any]:
    """Computes a splat: draw_splat(count, texture="fine"). See drawn_splats.py."""
    _load("drawn_splats", TESTS / "drawn_splats.py")
    return sys.modules["drawn_splats"].sphere


@pytest.fixture
def quarter_megapixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are enlarged to 512 x 512 px in place of 1024 x 1024, which takes a fifth of the time.

    The true sizes are those of refine/test_geometry.py.
    """
    _shrink_work(monkeypatch, 4)


@pytest.fixture
def sixteenth_megapixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are enlarged to 256 x 256 px: for tests in which no pixel counts."""
    _shrink_work(monkeypatch, 16)


@pytest.fixture
def sixty_fourth_megapixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are enlarged to 128 x 128 px: as `sixteenth_megapixel`, where many are refined."""
    _shrink_work(monkeypatch, 64)


@pytest.fixture
def tiny_default(
    sixty_fourth_megapixel: None,
    quick_loads: None,
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Work in an empty folder, with the tiny refiner as the default model."""
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", str(tiny_file))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_process() -> list[str]:
    """The command line in a process of its own, as `sixty_fourth_megapixel`."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "image_refinery", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
)
package = sys.modules["image_refinery"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from image_refinery.__main__ import main
from image_refinery.refine import geometry
for name in {_AREAS}:
    setattr(geometry, name, getattr(geometry, name) // 64)
sys.exit(main(sys.argv[1:]))
"""
    return [sys.executable, "-c", code]


_AREAS = ("MEGAPIXEL", "MIN_WORKING_AREA_PX", "MAX_SINGLE_TILE_AREA_PX")


def _shrink_work(monkeypatch: pytest.MonkeyPatch, divisor: int) -> None:
    from image_refinery.refine import geometry

    for name in _AREAS:
        monkeypatch.setattr(geometry, name, getattr(geometry, name) // divisor)
