"""What the source must not contain. docs/security.md says against what each of these stands."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *(
        "nodes",
        "refine",
        "captioning",
        "llm",
        "ollama_client",
        "memory",
        "texts",
        "files",
        "jobs",
        "cli",
    ),
)
CODE_FROM_DATA = {"eval", "exec", "compile", "__import__", "execfile"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
OPENERS = {"torch.load", "numpy.load", "np.load", "yaml.load", "os.system", "os.popen"}
NETWORK = {
    "requests", "urllib3", "httpx", "aiohttp", "socket", "http", "huggingface_hub", "ftplib",
    "fsspec",
}  # fmt: skip
MAY_CONNECT = {
    "jobs/addresses.py",  # inputs that the user of the command line names
    "jobs/comfyui.py",  # to the ComfyUI that the user of the command line names
    "llm/http.py",  # to the server that the environment or the file names
    "llm/servers.py",  # looks up whether a name is this machine
    "llm/errors.py",  # HTTP's words for a status
    "llm/failures.py",  # the same
    "nodes/host/setup.py",  # answers the page with the report
    "refine/hugging_face.py",  # the hub id of the specification, where no file is given
    "refine/tokenizer_files.py",  # the hub's cache on this disk
}


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    files = sorted(ROOT.glob("_*.py"))
    files += [file for name in PACKAGES for file in sorted((ROOT / name).rglob("*.py"))]
    return [
        (file.relative_to(ROOT).as_posix(), ast.parse(file.read_text("utf-8"))) for file in files
    ]


def nodes_of(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield name, node


def imported() -> Iterator[tuple[str, str]]:
    """(file, module) of every import, wherever it stands; of ours none."""
    for name, node in nodes_of(ast.Import):
        assert isinstance(node, ast.Import)
        yield from ((name, alias.name.partition(".")[0]) for alias in node.names)
    for name, node in nodes_of(ast.ImportFrom):
        assert isinstance(node, ast.ImportFrom)
        if node.level == 0 and node.module:
            yield name, node.module.partition(".")[0]


@functools.cache
def called() -> list[tuple[str, str]]:
    return [
        (name, ast.unparse(node.func))
        for name, node in nodes_of(ast.Call)
        if isinstance(node, ast.Call)
    ]


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = set(re.findall(r"(?:::|`)(test_\w+)`", page))
    files = set(re.findall(r"`((?:\w+/)*test_\w+\.py)", page))
    assert len(named) > 30 and len(files) > 8
    assert [file for file in files if not (ROOT / "tests" / file).is_file()] == []
    sources = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    missing = {name for name in named if not any(f"def {name}(" in text for text in sources)}
    assert missing == set()


def test_the_scan_sees_the_pack() -> None:
    names = [name for name, _ in sources()]
    assert len(names) > 40 and "nodes/save_caption.py" in names
    assert ("llm/http.py", "requests") in set(imported())
    assert ("memory/policy.py", "free_comfyui") in set(called())


def test_no_code_is_made_from_data() -> None:
    assert [call for call in called() if call[1] in CODE_FROM_DATA | OPENERS] == []


def test_yaml_is_only_parsed() -> None:
    used = {
        (name, node.attr)
        for name, node in nodes_of(ast.Attribute)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "yaml"
    }
    assert {name for name, _ in used} == {"texts/wildcard_collections.py"}
    assert {name for _, name in used if "load" in name.lower()} == {"SafeLoader"}
    assert ("texts/wildcard_collections.py", "yaml.parse") in called()


def test_nothing_is_unpickled() -> None:
    assert [entry for entry in imported() if entry[1] in PICKLES] == []


def test_commands_are_run_by_the_embedded_engine_only_and_never_by_a_shell() -> None:
    assert {name for name, module in imported() if module == "subprocess"} == {
        "llm/llamacpp/gpu.py",
        "llm/llamacpp/process.py",
    }
    for _, node in nodes_of(ast.keyword):
        assert isinstance(node, ast.keyword)
        assert node.arg != "shell"


def test_only_few_files_can_reach_a_network() -> None:
    users = {name for name, module in imported() if module in NETWORK}
    assert {name for name in users if "/llamacpp/" not in name} == MAY_CONNECT


def test_we_add_one_route_to_comfyui() -> None:
    """For the report of Check Setup: GET, without parameters."""
    added = {name for name, module in imported() if module == "aiohttp"}
    for name, node in nodes_of(ast.Attribute):
        assert isinstance(node, ast.Attribute)
        if node.attr in ("routes", "add_route", "add_routes", "add_static", "middlewares"):
            added.add(name)
    assert added == {"nodes/host/setup.py"}
    source = (ROOT / "nodes" / "host" / "setup.py").read_text("utf-8")
    assert source.count(".routes") == 1 and "server.routes.get(REPORT_PATH)(report)" in source
    assert "async def report(_: Any)" in source, "the request is not read"


def test_no_certificate_goes_unchecked() -> None:
    for name, node in nodes_of(ast.keyword):
        assert isinstance(node, ast.keyword)
        off = isinstance(node.value, ast.Constant) and node.value.value is False
        assert not (node.arg == "verify" and off), name


@pytest.mark.parametrize("file", sorted((ROOT / "web").rglob("*.js")), ids=lambda f: f.name)
def test_our_scripts_neither_call_out_nor_write_html(file: Path) -> None:
    text = file.read_text("utf-8")
    if file.name == "check_setup.js":
        text = text.replace('api.fetchApi("/image_refinery/report")', "", 1)
    wrong = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|fetch\(|" + (
        r"fetchApi|XMLHttpRequest|sendBeacon|WebSocket|https?://|import\("
    )
    assert re.findall(wrong, text) == []
