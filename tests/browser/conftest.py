"""A real page of a real ComfyUI in headless Chromium."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

HERE = Path(__file__).resolve().parent
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


HELP = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [600, 500];
  app.graph.add(node);
  app.canvas.ds.scale = 0.7;
  app.canvas.ds.offset = [0, 0];
  app.canvas.selectNode(node);
  app.graph.setDirtyCanvas(true, true);
}"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


def _host() -> Any:
    if "host" not in sys.modules:
        file = HERE.parent / "comfyui" / "host.py"
        spec = importlib.util.spec_from_file_location("host", file)
        assert spec is not None and spec.loader is not None
        sys.modules["host"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["host"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium, or a skip that says what is missing.

    Not for the whole session: Playwright's event loop runs in this thread until it is closed, and
    `asyncio.run` in any other test would refuse to work beside it.
    """
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install one, or set CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def ollama_port() -> int:
    """ComfyUI learns the address when it starts."""
    return _host().free_port()


@pytest.fixture(scope="session")
def comfyui(ollama_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running ComfyUI with the pack in it."""
    host = _host()
    found = host.find_host()
    if isinstance(found, str):
        pytest.skip(found)
    env = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{ollama_port}"}
    base = tmp_path_factory.mktemp("comfyui")
    with host.ComfyHost(found, base, env=env, packs={}) as running:
        # No template browser over the canvas at the first visit, no map in the pictures.
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
        running.post("/settings", settings).raise_for_status()
        yield running


@pytest.fixture
def scripted(ollama_port: int) -> Iterator[FaultyOllama]:
    """A scripted Ollama at the address that ComfyUI knows."""
    from faulty_ollama import FaultyOllama

    with FaultyOllama(port=ollama_port) as server:
        yield server


@pytest.fixture
def page(chromium: Any, comfyui: Any, scripted: FaultyOllama) -> Iterator[Any]:
    """The page, when its canvas is ready; errors of ours in its console fail the test."""
    context = chromium.new_context(viewport={"width": 1500, "height": 950})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(comfyui.url)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("!!window.LiteGraph?.registered_node_types?.RefineryLLMImageRefine")
    yield page
    context.close()
    assert not [text for text in problems if "refinery" in text.lower()], problems


USE_NODES_2 = """async (on) => {
  const settings = app.extensionManager.setting;
  if (settings.get("Comfy.VueNodes.Enabled") !== on) {
    await settings.set("Comfy.VueNodes.Enabled", on);
  }
}"""
FIRST_NODES_2 = (0, 3, 76)
"""Before, the page's own second renderer was an experiment without widgets' values."""


@pytest.fixture
def use_nodes_2(page: Any, comfyui: Any) -> Iterator[Callable[[bool], bool]]:
    """Switches to the page's second renderer, or back; returns whether this ComfyUI has it."""
    has_it = comfyui.found.version >= FIRST_NODES_2

    def switch(on: bool) -> bool:
        if has_it:
            page.evaluate(USE_NODES_2, on)
            page.wait_for_timeout(300)
        return has_it

    yield switch
    switch(False)


@pytest.fixture(params=["classic", "Nodes 2.0"])
def renderer(request: pytest.FixtureRequest, use_nodes_2: Callable[[bool], bool]) -> str:
    """Both ways in which a page draws nodes, one after the other."""
    if not use_nodes_2(request.param == "Nodes 2.0") and request.param == "Nodes 2.0":
        pytest.skip("this ComfyUI has one renderer")
    return request.param


@pytest.fixture
def open_help(page: Any) -> Callable[[str], None]:
    """Puts a node of a type alone on the page, selects it, and presses the button for its help."""

    def press(node: str) -> None:
        button = page.get_by_test_id("info-button")
        for _ in range(10):  # a page that has just opened may still bring its own graph
            page.evaluate(HELP, node)
            page.wait_for_timeout(1000)
            if button.is_visible():
                break
        button.dispatch_event("click")  # above a tall node it may lie outside of the window

    return press


@pytest.fixture(autouse=True)
def no_answer_is_kept_from_another_test(request: pytest.FixtureRequest) -> None:
    """Each test begins without kept answers, in the ComfyUI that they share."""
    if "comfyui" in request.fixturenames:
        base = request.getfixturevalue("comfyui").base
        for file in (base / "user" / "image-refinery").glob("answers.db*"):
            file.unlink()
