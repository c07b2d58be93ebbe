"""Commands in messages exist where they are read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from image_refinery import _program as module
from image_refinery._advice import with_advice
from image_refinery.cli.terminal import TERMINAL
from image_refinery.llm.errors import ModelNotFound
from image_refinery.llm.servers import EMBEDDED, Server


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A ComfyUI with the pack in its custom_nodes, started in its own folder."""
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "my refinery"
    pack.mkdir(parents=True)
    monkeypatch.setattr(module, "PACK", pack)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.chdir(tmp_path / "ComfyUI")
    return pack


def test_in_comfyui_the_folder_is_the_command(comfyui: Path) -> None:
    folder = Path("custom_nodes", "my refinery")
    assert module.program() == f'python "{folder}"'
    assert module.install("xllamacpp") == "python -m pip install xllamacpp"
    error = ModelNotFound("x", Server(url=EMBEDDED, kind=EMBEDDED))
    assert f'python "{folder}" models --pull smolvlm' in with_advice(error, TERMINAL)


def test_in_portable_comfyui_its_own_python_is_named(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = comfyui.parents[2]
    monkeypatch.chdir(top)
    monkeypatch.setattr(sys, "executable", str(top / "python_embeded" / "python.exe"))
    python = Path("python_embeded", "python.exe")
    folder = Path("ComfyUI", "custom_nodes", "my refinery")
    assert module.program() == f'{python} "{folder}"'
    assert module.install("xllamacpp") == f"{python} -m pip install xllamacpp"


def test_a_python_that_is_not_found_by_its_name_is_named_in_full(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    full = str(tmp_path / "my apps" / "python.exe")
    monkeypatch.setattr(sys, "executable", full)
    folder = Path("custom_nodes", "my refinery")
    assert module.program() == f'"{full}" "{folder}"'

    monkeypatch.setattr("shutil.which", lambda name: full if name == "python3" else None)
    assert module.python() == "python3", "as on Debian"


def test_a_module_that_was_run_is_named_as_it_was(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "image_refinery", "doctor"])
    assert module.program() == "python -m image_refinery"


def test_an_installed_package_has_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/image-refinery"])
    assert module.program() == "image-refinery"


def test_a_folder_that_was_run_is_named_as_it_was(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = comfyui.parents[2] / "clone"
    clone.mkdir()
    monkeypatch.setattr(module, "PACK", clone)
    monkeypatch.setattr(sys, "argv", [str(clone / "__main__.py")])
    monkeypatch.chdir(clone.parent)
    assert module.program() == "python clone"


def test_a_pack_that_is_linked_into_custom_nodes_is_named_by_the_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "custom_nodes" / "image-refinery"
    link.parent.mkdir()
    link.symlink_to(module.PACK, target_is_directory=True)
    file = link / "_program.py"
    spec = importlib.util.spec_from_file_location("linked_program", file)
    assert spec is not None and spec.loader is not None
    linked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linked)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.chdir(tmp_path)
    assert linked.program() == f"python {Path('custom_nodes', 'image-refinery')}"
